// `selective_scan`, backward: gradients of one task while it runs, and partial sums between tasks. Sums over channels
// (dB, dC, the gate's) and over rows (dA and other parameters) are added in a fixed order.
#ifndef NVSUBQ_CPU_SELECTIVE_SCAN_ADJOINTS_H
#define NVSUBQ_CPU_SELECTIVE_SCAN_ADJOINTS_H

#include "coefficients.h"

namespace {

// By step, of one tile: the cotangent of the output before the gate z, that output, and gradient sums over states.
template <class T>
struct TileAdjoints {
  using V = Vec<T>;
  V *out, *y, *by_w, *by_d, *by_da;

  void take(Arena& arena) {
    for (V** p : {&out, &y, &by_w, &by_d, &by_da}) *p = arena.take<V>(kMaxCells + 5);
  }
};

// Partial sums: over the channels of a chunk, and over the walk of a row.
template <class T>
struct Partial {
  int64_t length, states, width, chunks;
  struct Cells {  // [B][L][chunks][N][parts], where it is by cell
    T* sums;
    int64_t parts;
  } B, C, gate;
  struct Channels {  // [B][N][parts][D]
    T* sums;
    int64_t parts;
  } A, fixed_B, fixed_C, fixed_gate;
  T* times;            // [B][L][chunks]
  T *D, *bias, *step;  // [B][D]

  Partial(Arena& arena, const Selective& a, const Chunks& all)
      : length(a.length), states(a.states), width(a.width), chunks(all.count) {
    const int64_t cells = a.batch * a.length * chunks, channels = a.batch * a.width;
    A = {arena.take<T>(channels * states * parts_of(a.A)), parts_of(a.A)};
    take(arena, a.B, a.flags & NVSUBQ_FIXED_B, cells, channels, B, fixed_B);
    take(arena, a.C, a.flags & NVSUBQ_FIXED_C, cells, channels, C, fixed_C);
    take(arena, a.decay_gate, a.flags & NVSUBQ_FIXED_GATE, cells, channels, gate, fixed_gate);
    times = arena.take<T>(has(a.timesteps) ? cells : 0);
    D = arena.take<T>(channels);
    bias = arena.take<T>(channels);
    step = arena.take<T>(has(a.timesteps) ? channels : 0);
  }
  void take(Arena& arena, const nvsubq_tensor& t, bool fixed, int64_t cells, int64_t channels, Cells& by_cell,
            Channels& by_channel) {
    const int64_t parts = has(t) ? parts_of(t) : 0;
    by_cell = {arena.take<T>(fixed ? 0 : cells * states * parts), fixed ? 0 : parts};
    by_channel = {arena.take<T>(fixed ? channels * states * parts : 0), fixed ? parts : 0};
  }

  T* of(const Cells& c, int64_t row, int64_t cell, int64_t chunk, int64_t n) const {
    return c.sums + (((row * length + cell) * chunks + chunk) * states + n) * c.parts;
  }
  T* of(const Channels& c, int64_t row, int64_t n, int64_t part, int64_t channel) const {
    return c.sums + ((row * states + n) * c.parts + part) * width + channel;
  }
};

// What a task of a backward makes of a segment of one chunk of channels, and forgets: the next chunk's takes its place.
template <class Loops>
struct SegmentMemory {
  using T = typename Loops::T;
  using V = Vec<T>;
  Tile<T>* tile;
  TileAdjoints<T>* grad;
  Number<T, Loops::CX>* entering;  // states
  T* times;
  typename Loops::Memory* memory;

  SegmentMemory(Arena& arena, const Selective& a, int64_t tiles) {
    tile = arena.take<Tile<T>>(tiles);
    grad = arena.take<TileAdjoints<T>>(tiles);
    Tile<T> one;
    TileAdjoints<T> other;
    for (int64_t i = 0; i < tiles; ++i) {
      one.take(arena), other.take(arena);
      if (arena.base) tile[i] = one, grad[i] = other;
    }
    entering = arena.take<Number<T, Loops::CX>>(tiles * a.states);
    times = arena.take<T>(kMaxCells);
    memory = arena.take<typename Loops::Memory>(1);
  }
};

// What a task of a backward keeps of one chunk of channels.
template <class Loops>
struct Adjoints {
  using T = typename Loops::T;
  using V = Vec<T>;
  static constexpr bool CX = Loops::CX;
  using Num = Number<T, CX>;
  const Place place;
  const Segment& segment;
  const Partial<T>& partial;
  int64_t kind, states;
  bool gated_output;
  Tile<T>* tile;
  TileReader<T>* reader;
  struct Rows {
    Lanes<T> d_y, z;
  }* rows;  // [tiles], as those above
  Ahead ahead;
  TileAdjoints<T>* grad;
  Coefficients<T, CX> given;
  Num *entering, *arriving;                   // states, and their cotangents, at the ends of a segment
  Num *d_rate, *d_fixed_B, *d_fixed_C;        // sums over the walk, [tiles][N]
  V* d_fixed_gate;
  V *d_skip, *d_bias, *d_step;                // the same, [tiles]
  T* times;
  typename Loops::Memory* memory;

  Adjoints(Arena& arena, const Selective& a, int64_t tiles, const Place& where, const Segment& cells,
           const Partial<T>& sums, const SegmentMemory<Loops>& shared)
      : place(where),
        segment(cells),
        partial(sums),
        kind(a.discretization),
        states(a.states),
        gated_output(has(a.z)),
        tile(shared.tile),
        grad(shared.grad),
        given(arena, a, tiles),
        entering(shared.entering),
        times(shared.times),
        memory(shared.memory) {
    const int64_t each = tiles * states;
    reader = arena.take<TileReader<T>>(tiles);
    rows = arena.take<Rows>(tiles);
    for (Num** p : {&arriving, &d_rate}) *p = arena.take<Num>(each);
    d_fixed_B = arena.take<Num>(a.flags & NVSUBQ_FIXED_B ? each : 0);
    d_fixed_C = arena.take<Num>(a.flags & NVSUBQ_FIXED_C ? each : 0);
    d_fixed_gate = arena.take<V>(given.gated && (a.flags & NVSUBQ_FIXED_GATE) ? each : 0);
    for (V** p : {&d_skip, &d_bias, &d_step}) *p = arena.take<V>(tiles);
  }

  void aim(const Selective& a, int i) {
    reader[i].aim(a, place, i, &tile[i]);
    rows[i].d_y = place.template of<T>(a.d_y, i), rows[i].z = place.template of<T>(a.z, i);
  }

  void start() {
    for (int tile_ = 0; tile_ < place.tiles; ++tile_) d_skip[tile_] = d_bias[tile_] = d_step[tile_] = V{};
    for (int64_t i = 0; i < place.tiles * states; ++i) {
      d_rate[i] = Num{};
      if (!given.B.cells) d_fixed_B[i] = Num{};
      if (!given.C.cells) d_fixed_C[i] = Num{};
      if (given.gated && !given.gate.cells) d_fixed_gate[i] = V{};
    }
  }

  // Adds up the lanes of a state's gradients, by step, and keeps them for the segment's cells.
  template <class X>
  void keep(const typename Partial<T>::Cells& to, int64_t n, X* by_step) const {
    for (int t = 0; t < segment.cells; ++t) {
      T* at = partial.of(to, place.row, segment.cell[t], place.chunk, n);
      for (int i = 0; i < to.parts; ++i) at[i] = sum_lanes<T>(part(by_step[t], i));
    }
  }

  template <class X>
  void keep(const typename Partial<T>::Channels& to, X* from) const {
    for (int tile_ = 0; tile_ < place.tiles; ++tile_)
      for (int64_t n = 0; n < states; ++n)
        for (int i = 0; i < to.parts; ++i)
          write_part<T>(partial.of(to, place.row, n, i, place.template channel<T>(tile_)),
                        place.template lanes<T>(tile_), part(from[tile_ * states + n], i));
  }
  void finish() const {
    keep(partial.A, d_rate);
    if (!given.B.cells) keep(partial.fixed_B, d_fixed_B);
    if (!given.C.cells) keep(partial.fixed_C, d_fixed_C);
    if (given.gated && !given.gate.cells) keep(partial.fixed_gate, d_fixed_gate);
  }
};

// Adds the partial sums up: over chunks for a piece of a row, or over rows for a few channels.
template <class T>
struct AddUp {
  const Selective& a;
  const Partial<T>& partial;
  int64_t groups;  // chunks lie side by side for each

  static constexpr int64_t kCells = 64, kChannels = 32;
  int64_t pieces() const { return (a.length + kCells - 1) / kCells; }
  int64_t tasks() const { return a.batch * pieces() + (a.width + kChannels - 1) / kChannels; }

  void one(int64_t task) const {
    if (task < a.batch * pieces())
      over_chunks(task / pieces(), task % pieces() * kCells);
    else
      over_rows((task - a.batch * pieces()) * kChannels);
  }

 private:
  void over_chunks(int64_t row, int64_t begin) const {
    const int64_t end = begin + kCells < a.length ? begin + kCells : a.length;
    for (int64_t cell = begin; cell < end; ++cell) {
      sum_chunks(a.d_B, partial.B, row, cell);
      sum_chunks(a.d_C, partial.C, row, cell);
      sum_chunks(a.d_decay_gate, partial.gate, row, cell);
      if (!has(a.timesteps)) continue;
      const T* from = partial.times + (row * a.length + cell) * partial.chunks;
      T sum = 0;
      for (int64_t i = 0; i < partial.chunks; ++i) sum += from[i];
      write_one<T>(a.d_timesteps, at(a.d_timesteps, row, cell), sum);
    }
  }

  // The gradient has as many groups as its tensor: one (stride 0 over groups) or G.
  void sum_chunks(const nvsubq_tensor& to, const typename Partial<T>::Cells& from, int64_t row, int64_t cell) const {
    if (!from.parts) return;
    const int64_t all = to.stride[2] == 0 ? 1 : groups, each = partial.chunks / all, run = a.states * from.parts;
    for (int64_t g = 0; g < all; ++g) {
      const T* first = partial.of(from, row, cell, g * each, 0);
      const int64_t offset = at(to, row, cell, g) * from.parts;
      for (int64_t n = 0; n < run; ++n) {
        T sum = 0;
        for (int64_t i = 0; i < each; ++i) sum += first[i * run + n];
        write_one<T>(to, offset + n, sum);
      }
    }
  }

  void over_rows(int64_t begin) const {
    const int64_t end = begin + kChannels < a.width ? begin + kChannels : a.width;
    for (int64_t c = begin; c < end; ++c) {
      sum_states(a.d_A, partial.A, c);
      sum_states(a.d_B, partial.fixed_B, c);
      sum_states(a.d_C, partial.fixed_C, c);
      sum_states(a.d_decay_gate, partial.fixed_gate, c);
      if (has(a.d_D)) sum_rows(a.d_D, at(a.d_D, c), partial.D + c, a.width);
      if (has(a.d_delta_bias)) sum_rows(a.d_delta_bias, at(a.d_delta_bias, c), partial.bias + c, a.width);
      if (has(a.timesteps)) sum_rows(a.d_delta_a, at(a.d_delta_a, c), partial.step + c, a.width);
    }
  }
  void sum_states(const nvsubq_tensor& to, const typename Partial<T>::Channels& from, int64_t c) const {
    for (int64_t n = 0; n < a.states; ++n)
      for (int64_t i = 0; i < from.parts; ++i)
        sum_rows(to, at(to, c, n) * from.parts + i, partial.of(from, 0, n, i, c), a.states * from.parts * a.width);
  }
  void sum_rows(const nvsubq_tensor& to, int64_t offset, const T* from, int64_t stride) const {
    T sum = 0;
    for (int64_t row = 0; row < a.batch; ++row) sum += from[row * stride];
    write_one<T>(to, offset, sum);
  }
};

}  // namespace
#endif
