// `selective_scan`, forward.
#ifndef NVSUBQ_CPU_SELECTIVE_SCAN_FORWARD_H
#define NVSUBQ_CPU_SELECTIVE_SCAN_FORWARD_H

#include "common.h"

namespace {

// Advances NB states of a tile over a segment and adds C s to `out`.
template <class T, int KIND, int NB, bool STARTS>
inline void advance(const Tile<T>& x, const Segment& segment, int64_t states, const T* B, const T* C, const Vec<T>* A,
                    Vec<T>* state, Vec<T>* out) {
  using V = Vec<T>;
  V s[NB], rate[NB];
  for (int j = 0; j < NB; ++j) s[j] = state[j], rate[j] = A[j];
  for (int t = 0; t < segment.cells; ++t, B += states, C += states) {
    if (STARTS && segment.starts[t])
      for (int j = 0; j < NB; ++j) s[j] = V{};
    const V da = x.da[t], w = x.w[t];
    V sum = out[t];
#pragma GCC unroll 8
    for (int j = 0; j < NB; ++j) {
      V in = w * B[j];
      if (has_scale(KIND)) in = in * input_scale<T, KIND>(x.d[t], rate[j]).value;
      s[j] = decay<T, KIND>(da, rate[j]) * s[j] + in;
      sum = sum + s[j] * C[j];
    }
    out[t] = sum;
  }
  for (int j = 0; j < NB; ++j) state[j] = s[j];
}

template <class T, int KIND, bool STARTS>
inline void advance_all(const Tile<T>& x, const Segment& segment, int64_t states, const T* B, const T* C,
                        const Vec<T>* A, Vec<T>* state, Vec<T>* out) {
  constexpr int NB = sizeof(Vec<T>) == 64 ? 8 : 4;  // as many as there are registers for
  int64_t n = 0;
  for (; n + NB <= states; n += NB)
    advance<T, KIND, NB, STARTS>(x, segment, states, B + n, C + n, A + n, state + n, out);
  for (; n < states; ++n) advance<T, KIND, 1, STARTS>(x, segment, states, B + n, C + n, A + n, state + n, out);
}

template <class T>
struct ForwardScratch {
  Tile<T> tile;
  Vec<T>*rates, *state, *out;
  T *B, *C;

  ForwardScratch(Arena& arena, const Selective& a) {
    const int64_t tiles = (Chunks(a).width + Simd<T>::W - 1) / Simd<T>::W;
    tile.take(arena);
    rates = arena.take<Vec<T>>(tiles * a.states);
    state = arena.take<Vec<T>>(tiles * a.states);
    out = arena.take<Vec<T>>(kMaxCells);
    B = arena.take<T>(kMaxCells * a.states);
    C = arena.take<T>(kMaxCells * a.states);
  }
};

template <class T, int KIND>
struct Forward {
  const Selective& a;
  Chunks chunks;
  int64_t slot_bytes;

  explicit Forward(const Selective& args) : a(args), chunks(args) {
    Arena arena(nullptr);
    ForwardScratch<T>(arena, a);
    slot_bytes = arena.bytes();
  }

  int64_t bytes() const { return slot_bytes * a.threads; }

  void run() {
    nvsubq::run_tasks(
        a.threads, a.batch * chunks.count,
        [](void* self, int64_t task, int64_t slot) { static_cast<Forward*>(self)->one(task, slot); }, this);
  }

  void one(int64_t task, int64_t slot) {
    using V = Vec<T>;
    const Place place = Place::of<T>(chunks, task);
    const Steps steps = steps_at(a, place);
    Arena arena(static_cast<char*>(a.workspace) + slot * slot_bytes);
    ForwardScratch<T> x(arena, a);
    read_rates<T, KIND>(a, place, x.rates);
    read_state<T>(a.initial_state, place, a.states, x.state);
    const int64_t most = segment_cells(a.states), count = segments(a.length, a.states);
    Segment segment;
    for (int64_t i = 0; i < count; ++i) {
      segment.read(steps, i * most, most);
      if (segment.cells) {
        read_states<T>(a.B, place, segment, a.states, x.B);
        read_states<T>(a.C, place, segment, a.states, x.C);
      }
      for (int tile = 0; tile < place.tiles; ++tile) {
        V* state = x.state + tile * a.states;
        if (i && a.saved) {
          T* to = saved_states<T>(a, place, i, tile);
          for (int64_t n = 0; n < a.states; ++n) write_part<T>(to + n * a.width, place.lanes<T>(tile), state[n]);
        }
        if (!segment.cells) continue;
        x.tile.template read<KIND>(a, place, segment, tile);
        for (int t = 0; t < segment.cells; ++t) x.out[t] = V{};
        const V* rates = x.rates + tile * a.states;
        if (segment.any_starts)
          advance_all<T, KIND, true>(x.tile, segment, a.states, x.B, x.C, rates, state, x.out);
        else
          advance_all<T, KIND, false>(x.tile, segment, a.states, x.B, x.C, rates, state, x.out);
        write_outputs(place, segment, tile, x);
      }
    }
    if (has(a.final_state)) write_state<T>(a.final_state, place, a.states, x.state);
    clear_absent<T>(a.y, place, steps);
  }

  void write_outputs(const Place& place, const Segment& segment, int tile, const ForwardScratch<T>& x) {
    using V = Vec<T>;
    const int n = place.lanes<T>(tile);
    const int64_t channel = place.channel<T>(tile);
    const V skip = has(a.D) ? read_lanes<T>(a.D, at(a.D, channel), n) : V{};
    for (int t = 0; t < segment.cells; ++t) {
      V y = x.out[t];
      if (has(a.D)) y = y + skip * x.tile.u[t];
      if (has(a.z)) {
        const V z = read_lanes<T>(a.z, at(a.z, place.row, segment.cell[t], channel), n);
        y = y * (z * sigmoid<T>(z));
      }
      write_lanes<T>(a.y, at(a.y, place.row, segment.cell[t], channel), n, y);
    }
  }
};

}  // namespace
#endif
