// `causal_conv1d`: a task is one row, one chunk of channels of one block and one piece of the walk. Its inputs are
// first laid out by step, with those before it; a backward makes the outputs after it again, so that no task
// depends on another.
#ifndef NVSUBQ_CPU_CONV1D_COMMON_H
#define NVSUBQ_CPU_CONV1D_COMMON_H

#include "../op.h"
#include "../pool.h"
#include "../storage.h"

namespace {

using Conv = nvsubq_conv1d_args;

template <class T>
struct ConvPlan {
  static constexpr int W = Simd<T>::W;
  const Conv& a;
  int64_t reach, run, width, per_block, chunks, piece, pieces;
  int64_t partial_bytes, slot_bytes;

  explicit ConvPlan(const Conv& args) : a(args) {
    reach = (a.taps - 1) * a.dilation;
    run = a.width / a.blocks;
    width = 512;  // rows of a cell lie side by side: few pages, and whole lines
    per_block = (run + width - 1) / width;
    chunks = per_block * a.blocks;
    piece = reach > 128 ? reach : 128;
    pieces = a.length > 0 ? (a.length + piece - 1) / piece : 1;
    Arena partial(nullptr);
    partial.take<T>(a.batch * pieces * (a.taps + 1) * a.width);
    partial_bytes = partial.bytes();
    Arena slot(nullptr);
    Scratch(slot, *this);
    slot_bytes = slot.bytes();
  }

  struct Scratch {
    Vec<T>*x, *g, *weight, *d_weight;  // inputs from 2 reach before the piece to reach after; cotangents; taps
    Scratch(Arena& arena, const ConvPlan& p) {
      x = arena.take<Vec<T>>(p.piece + 2 * p.reach);
      g = arena.take<Vec<T>>(p.piece + p.reach);
      weight = arena.take<Vec<T>>(p.a.taps);
      d_weight = arena.take<Vec<T>>(p.a.taps);
    }
  };

  int64_t bytes() const { return partial_bytes + slot_bytes * a.threads; }
  int64_t tasks() const { return a.batch * chunks * pieces; }
  // Gradients of taps (and the bias, after them) of one piece, [B][pieces][K + 1][D].
  T* partial(int64_t row, int64_t at_piece) const {
    Arena arena(a.workspace);
    return arena.take<T>(0) + (row * pieces + at_piece) * (a.taps + 1) * a.width;
  }
};

template <class T>
struct ConvTask {
  using V = Vec<T>;
  static constexpr int W = Simd<T>::W;
  static constexpr int64_t kAhead = 32;  // steps
  const ConvPlan<T>& p;
  const Conv& a;
  int64_t row, number, begin, end;  // steps of the piece that visit a cell
  Steps steps;
  typename ConvPlan<T>::Scratch s;
  int64_t channel = 0;
  int n = 0;
  Lanes<T> x;  // the input's

  static typename ConvPlan<T>::Scratch scratch(const ConvPlan<T>& plan, int64_t slot) {
    Arena arena(static_cast<char*>(plan.a.workspace) + plan.partial_bytes + slot * plan.slot_bytes);
    return typename ConvPlan<T>::Scratch(arena, plan);
  }

  ConvTask(const ConvPlan<T>& plan, int64_t task, int64_t slot) : p(plan), a(plan.a), s(scratch(plan, slot)) {
    const int64_t chunk = task / p.pieces % p.chunks, block = chunk / p.per_block;
    row = task / (p.pieces * p.chunks);
    number = task % p.pieces;
    steps = steps_of(a, row, block);
    begin = number * p.piece;
    end = begin + p.piece < steps.count ? begin + p.piece : steps.count;
    const int64_t within = chunk % p.per_block * p.width;
    first_ = block * p.run + within;
    channels_ = p.run - within < p.width ? p.run - within : p.width;
  }

  // Calls `todo` for each tile of W channels.
  template <class F>
  void for_tiles(F todo) {
    for (int64_t c = 0; c < channels_; c += W) {
      channel = first_ + c;
      n = int(channels_ - c < W ? channels_ - c : W);
      for (int64_t k = 0; k < a.taps; ++k)
        s.weight[k] = read_column<T>(a.weight, at(a.weight, channel, k), a.weight.stride[0], n);
      x = lanes(a.x);
      todo();
    }
  }

  Lanes<T> lanes(const nvsubq_tensor& t) const { return Lanes<T>(t, row, channel, n); }

  // Asks for a tile's line some steps ahead: they jump from row to row, which no hardware foresees, and all lines of a
  // row at once would be more than a core can wait for. Always inline: GCC 12 drops calls of a function that does
  // nothing but prefetch.
  __attribute__((always_inline)) void expect(const Lanes<T>& of, int64_t step, int64_t stop) const {
    step += kAhead;
    if (step >= 0 && step < stop) __builtin_prefetch(of.first + steps.cell(step) * of.bytes, 0, 2);
  }

  // The input at a step; before the walk, from the initial state.
  V input(int64_t step) const {
    if (step >= 0) return x[steps.cell(step)];
    const int64_t i = a.state_width + step;
    if (!has(a.initial_state) || i < 0) return V{};
    return read_column<T>(a.initial_state, at(a.initial_state, row, channel, i), a.initial_state.stride[1], n);
  }

  void read_inputs(int64_t from, int64_t to) {
    for (int64_t step = from; step < to; ++step) {
      expect(x, step, to);
      s.x[step - from] = input(step);
    }
  }

  // The sum of taps at a step; `x` points at its input.
  V sum(const V* x, int64_t step, V bias) const {
    V y = bias;
    for (int64_t k = 0; k < a.taps; ++k) {
      const int64_t lag = (a.taps - 1 - k) * a.dilation;
      if (steps.segment && !steps.together(step, step - lag)) continue;
      y = y + s.weight[k] * x[-lag];
    }
    return y;
  }

  V bias() const { return has(a.bias) ? read_lanes<T>(a.bias, at(a.bias, channel), n) : V{}; }
  bool last() const { return number == p.pieces - 1; }

  void clear(const nvsubq_tensor& t) const {
    const int64_t from = begin > steps.count ? begin : steps.count;
    for (int64_t k = from; k < steps.length && k < begin + p.piece; ++k)
      write_lanes<T>(t, at(t, row, steps.cell(k), channel), n, V{});
  }

  // The shape that is in every Mamba: four neighbours, of one sequence. Its loops keep taps and inputs in registers.
  bool is_usual() const { return a.taps == 4 && a.dilation == 1 && !steps.segment; }

  // Whether the step i of the final window was seen by the sequence that the walk ends in.
  bool in_final(int64_t step) const { return !steps.count || steps.together(step, steps.count - 1); }

  void forward();   // forward.h
  void backward();  // backward.h

 private:
  void outputs_of_four();
  void outputs_of_any();
  void write_final() const;

  V from_final(int64_t step) const;
  V gradient(int64_t step, int64_t stop) const;
  V gradients_of_four(int64_t stop);
  V gradients_of_any(int64_t stop);

  int64_t first_, channels_;
};

}  // namespace
#endif
