// `rglru_scan`, backward: segments from the last to the first; the states of one are made again from the one kept at
// its border. Sums over a walk are made by segments, which keeps them accurate over long walks.
#ifndef NVSUBQ_CPU_RGLRU_SCAN_BACKWARD_H
#define NVSUBQ_CPU_RGLRU_SCAN_BACKWARD_H

#include "common.h"

namespace {

// As numerics.SQRT_MAX_DERIVATIVE: the square root's derivative is infinite where the decay is 1.
constexpr double kMaxDerivative = 1000.0;

// Gradients of parameters, summed over a segment or a walk.
template <class T>
struct Sums {
  Vec<T> rate, r_bias, i_bias;
};

template <class T>
struct RglruBackward {
  using V = Vec<T>;
  const Rglru& a;
  Chunks chunks;
  int64_t tiles, partial_bytes, slot_bytes;

  // Of one task; `made` and `before` hold each cell of a segment, tile by tile.
  struct Scratch {
    Channel<T>* channels;  // `state` is the cotangent that comes from later cells
    Sums<T>*segment, *walk;
    Opened<T>* made;
    V *before, *state;

    Scratch(Arena& arena, int64_t tiles) {
      channels = arena.take<Channel<T>>(tiles);
      segment = arena.take<Sums<T>>(tiles);
      walk = arena.take<Sums<T>>(tiles);
      made = arena.take<Opened<T>>(tiles * kCells);
      before = arena.take<V>(tiles * kCells);
      state = arena.take<V>(tiles);
    }
  };

  explicit RglruBackward(const Rglru& args) : a(args), chunks(args) {
    tiles = (chunks.width + Simd<T>::W - 1) / Simd<T>::W;
    Arena partial(nullptr);
    partial.take<T>(3 * a.batch * a.width);
    partial_bytes = partial.bytes();
    Arena slot(nullptr);
    Scratch(slot, tiles);
    slot_bytes = slot.bytes();
  }

  int64_t bytes() const { return partial_bytes + slot_bytes * a.threads; }
  // Gradients of the rate, r_bias and i_bias by row, [3][B][D].
  T* partial(int which, int64_t row) const {
    Arena arena(a.workspace);
    return arena.take<T>(0) + (which * a.batch + row) * a.width;
  }

  void run() {
    for_places<T>(*this, a.batch, chunks, a.threads);
    for (int64_t c = 0; c < a.width; ++c) {
      if (has(a.d_a_log)) {
        Vec<T> logit = {};
        logit[0] = read_one<T>(a.a_log, at(a.a_log, c));
        const T by_rate = T(sharpness(a)) * gate_of<T>(logit).shut[0];
        write_one<T>(a.d_a_log, at(a.d_a_log, c), by_rate * sum_rows(partial(0, 0) + c, a.batch, a.width));
      }
      if (has(a.d_r_bias))
        write_one<T>(a.d_r_bias, at(a.d_r_bias, c), sum_rows(partial(1, 0) + c, a.batch, a.width));
      if (has(a.d_i_bias))
        write_one<T>(a.d_i_bias, at(a.d_i_bias, c), sum_rows(partial(2, 0) + c, a.batch, a.width));
    }
  }

  void walk(const Place<T>& place, int64_t slot) {
    Arena arena(static_cast<char*>(a.workspace) + partial_bytes + slot * slot_bytes);
    Scratch s(arena, tiles);
    for (int tile = 0; tile < place.tiles; ++tile) {
      s.channels[tile].read(a, place, tile);
      s.channels[tile].state = read_state<T>(a.d_final_state, place, tile);
      s.walk[tile] = Sums<T>{};
    }
    const Steps steps = steps_of(a, place.row, place.block);
    for (int64_t i = steps.count > 0 ? (steps.count - 1) / kCells : -1; i >= 0; --i) {
      const int64_t begin = i * kCells, end = begin + kCells < steps.count ? begin + kCells : steps.count;
      for (int tile = 0; tile < place.tiles; ++tile) {
        s.segment[tile] = Sums<T>{};
        s.state[tile] = i ? read_part<T>(saved_states<T>(a, place, i, tile), place.lanes(tile))
                          : read_state<T>(a.initial_state, place, tile);
      }
      for (int64_t k = begin; k < end; ++k) make_again(place, steps, k, s, (k - begin) * tiles);
      for (int64_t k = end - 1; k >= begin; --k) one_cell(place, steps, k, s, (k - begin) * tiles);
      for (int tile = 0; tile < place.tiles; ++tile) {
        s.walk[tile].rate += s.segment[tile].rate;
        s.walk[tile].r_bias += s.segment[tile].r_bias;
        s.walk[tile].i_bias += s.segment[tile].i_bias;
      }
    }
    for (int tile = 0; tile < place.tiles; ++tile) {
      const int64_t channel = place.channel(tile);
      const int n = place.lanes(tile);
      write_state<T>(a.d_initial_state, place, tile, s.channels[tile].state);
      write_part<T>(partial(0, place.row) + channel, n, s.walk[tile].rate);
      write_part<T>(partial(1, place.row) + channel, n, s.walk[tile].r_bias);
      write_part<T>(partial(2, place.row) + channel, n, s.walk[tile].i_bias);
    }
    for (const nvsubq_tensor* t : {&a.d_x, &a.d_r, &a.d_i, &a.d_gate}) clear_absent<T>(*t, place, steps);
  }

  void make_again(const Place<T>& place, const Steps& steps, int64_t step, Scratch& s, int64_t kept) const {
    const int64_t row = place.row, cell = steps.cell(step), first = place.first;
    const int64_t x_at = at(a.x, row, cell, first), r_at = at(a.r, row, cell, first), i_at = at(a.i, row, cell, first);
    const bool start = steps.starts(step), unscaled = is_unscaled(a, step, start);
    for (const nvsubq_tensor* t : {&a.d_y, &a.gate}) expect_row(*t, at(*t, row, cell, first), place.channels);
    for (const nvsubq_tensor* t : {&a.d_x, &a.d_r, &a.d_i, &a.d_gate})
      expect_row(*t, at(*t, row, cell, first), place.channels, true);
    for (int tile = 0; tile < place.tiles; ++tile) {
      const Channel<T>& here = s.channels[tile];
      const int n = place.lanes(tile), c = tile * Simd<T>::W;
      const Opened<T> o(read_lanes<T>(a.r, r_at + c, n) + here.r_bias, read_lanes<T>(a.i, i_at + c, n) + here.i_bias,
                        here.rate);
      V in = o.i.open * read_lanes<T>(a.x, x_at + c, n);
      if (!unscaled) in = in * o.norm;
      const V before = start ? V{} : s.state[tile];
      s.made[kept + tile] = o;
      s.before[kept + tile] = before;
      s.state[tile] = o.decay * before + in;
    }
  }

  void one_cell(const Place<T>& place, const Steps& steps, int64_t step, Scratch& s, int64_t kept) const {
    const int64_t row = place.row, cell = steps.cell(step), first = place.first;
    const int64_t x_at = at(a.x, row, cell, first), dy_at = at(a.d_y, row, cell, first);
    const int64_t gate_at = at(a.gate, row, cell, first), d_gate_at = at(a.d_gate, row, cell, first);
    const int64_t dx_at = at(a.d_x, row, cell, first), dr_at = at(a.d_r, row, cell, first),
                  di_at = at(a.d_i, row, cell, first);
    const bool start = steps.starts(step), unscaled = is_unscaled(a, step, start);
    const bool gated = has(a.gate), by_tanh = a.flags & NVSUBQ_GELU_TANH;
    if (step >= kCells)  // the next segment
      for (const nvsubq_tensor* t : {&a.x, &a.r, &a.i})
        expect_row(*t, at(*t, row, steps.cell(step - kCells), first), place.channels);
    for (int tile = 0; tile < place.tiles; ++tile) {
      Channel<T>& here = s.channels[tile];
      const Opened<T> o = s.made[kept + tile];
      const V before = s.before[kept + tile], norm = unscaled ? splat<T>(T(1)) : o.norm;
      const int n = place.lanes(tile), c = tile * Simd<T>::W;
      const V x = read_lanes<T>(a.x, x_at + c, n), in = o.i.open * x;
      V dy = has(a.d_y) ? read_lanes<T>(a.d_y, dy_at + c, n) : V{};
      if (gated) {
        const V g = read_lanes<T>(a.gate, gate_at + c, n);
        const Slope<T> gelu = by_tanh ? gelu_tanh<T>(g) : gelu_erf<T>(g);
        if (has(a.d_gate)) write_lanes<T>(a.d_gate, d_gate_at + c, n, dy * (o.decay * before + norm * in) * gelu.slope);
        dy = dy * gelu.value;
      }
      const V h = here.state + dy, scaled = h * norm;
      V d_log = h * before * o.decay;  // of the logarithm of the decay
      if (!unscaled) {
        const V twice = T(2) * o.norm, low = splat<T>(T(1 / kMaxDerivative));
        d_log -= h * in * T(2) * o.decay * o.decay / (twice < low ? low : twice);
      }
      const V d_r = d_log * here.rate * o.r.open * o.r.shut, d_i = scaled * in * o.i.shut;
      s.segment[tile].rate += d_log * o.r.open;
      s.segment[tile].r_bias += d_r;
      s.segment[tile].i_bias += d_i;
      if (has(a.d_x)) write_lanes<T>(a.d_x, dx_at + c, n, scaled * o.i.open);
      if (has(a.d_r)) write_lanes<T>(a.d_r, dr_at + c, n, d_r);
      if (has(a.d_i)) write_lanes<T>(a.d_i, di_at + c, n, d_i);
      here.state = start ? V{} : h * o.decay;
    }
  }
};

}  // namespace
#endif
