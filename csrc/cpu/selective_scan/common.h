// `selective_scan`: what the forward and the backward share. Lanes are channels; a task is one row and one chunk
// of channels of one group, and runs along the whole walk.
#ifndef NVSUBQ_CPU_SELECTIVE_SCAN_COMMON_H
#define NVSUBQ_CPU_SELECTIVE_SCAN_COMMON_H

#include <initializer_list>

#include "../op.h"
#include "../pool.h"
#include "../storage.h"

namespace {

using Selective = nvsubq_selective_scan_args;

// Cells of a segment: states are kept at the borders of segments, and a backward makes the others again.
inline int64_t segment_cells(int64_t states) { return states <= 16 ? 32 : 64; }

inline int64_t segments(int64_t length, int64_t states) {
  const int64_t cells = segment_cells(states);
  return (length + cells - 1) / cells;
}

constexpr int kMaxCells = 64;  // of a segment
constexpr int kTogether = 4;   // states that are advanced in one pass, in registers

// Chunks depend on the width alone: on neither threads nor batch, or the bits of a row would.
struct Chunks {
  int64_t run, width, per_group, count;

  explicit Chunks(const Selective& a) {
    run = a.groups > 0 ? a.width / a.groups : 0;
    width = run > 256 ? 64 : 32;
    per_group = (run + width - 1) / width;
    count = per_group * a.groups;
  }
};

// One task's place: channels first .. first + channels of group `group`, in tiles of W lanes.
struct Place {
  int64_t row, chunk, group, first;
  int channels, tiles;

  template <class T>
  static Place of(const Chunks& chunks, int64_t task) {
    Place p;
    p.row = task / chunks.count;
    p.chunk = task % chunks.count;
    p.group = p.chunk / chunks.per_group;
    const int64_t within = p.chunk % chunks.per_group * chunks.width;
    p.first = p.group * chunks.run + within;
    p.channels = int(chunks.run - within < chunks.width ? chunks.run - within : chunks.width);
    p.tiles = (p.channels + Simd<T>::W - 1) / Simd<T>::W;
    return p;
  }
  template <class T>
  int lanes(int tile) const {
    const int left = channels - tile * Simd<T>::W;
    return left < Simd<T>::W ? left : Simd<T>::W;
  }
  template <class T>
  int64_t channel(int tile) const {
    return first + int64_t(tile) * Simd<T>::W;
  }
};

// The cells of a segment, and which of them drop the state that comes in.
struct Segment {
  int cells = 0;
  bool any_starts = false;
  int64_t cell[kMaxCells];
  bool starts[kMaxCells];

  void read(const Steps& steps, int64_t begin, int64_t most) {
    const int64_t left = steps.count - begin;
    cells = int(left < 0 ? 0 : left < most ? left : most);
    any_starts = false;
    for (int t = 0; t < cells; ++t) {
      cell[t] = steps.cell(begin + t);
      starts[t] = steps.starts(begin + t);
      any_starts |= starts[t];
    }
  }
};

// Discretizations: the decay a(da, A), and the input's factor f, with f = w-part times `scale(d, A)`; for mamba,
// zoh and bilinear the w-part is d u, for the others u. `A` is times log2(e) where the decay is an exponential.
constexpr bool is_exponential(int kind) {
  return kind == NVSUBQ_MAMBA || kind == NVSUBQ_ZOH || kind == NVSUBQ_DIRAC;
}
constexpr bool scales_input(int kind) {
  return kind == NVSUBQ_MAMBA || kind == NVSUBQ_ZOH || kind == NVSUBQ_BILINEAR;
}
constexpr bool has_scale(int kind) { return kind == NVSUBQ_ZOH || kind == NVSUBQ_BILINEAR; }

template <class T, int KIND>
inline Vec<T> decay(Vec<T> da, Vec<T> A) {
  if (is_exponential(KIND)) return exp2v(da * A);
  if (KIND == NVSUBQ_BILINEAR) {
    const Vec<T> h = da * A * T(0.5);
    return (T(1) + h) / (T(1) - h);
  }
  return A;
}

// The scale of the input beside d u, its slope in d (of d times it), and the slope in A over d times it.
template <class T>
struct Scale {
  Vec<T> value, by_d, by_a;
};

template <class T, int KIND>
inline Scale<T> input_scale(Vec<T> d, Vec<T> A) {
  Scale<T> s;
  if (KIND == NVSUBQ_ZOH) {
    const Vec<T> z = d * A, e = exp2v(z);
    expm1_over<T>(z * T(kLn2), e, &s.value, &s.by_a);
    s.by_d = e;
    s.by_a = s.by_a * d;
  } else {
    s.value = T(1) / (T(1) - d * A * T(0.5));
    s.by_d = s.value * s.value;
    s.by_a = s.by_d * d * T(0.5);
  }
  return s;
}

// Per-channel constants and the inputs of one segment and one tile, by step.
template <class T>
struct Tile {
  using V = Vec<T>;
  V *u, *d, *da, *w, *raw;

  void take(Arena& arena) {
    for (V** p : {&u, &d, &da, &w, &raw}) *p = arena.take<V>(kMaxCells);
  }

  template <int KIND>
  void read(const Selective& a, const Place& place, const Segment& segment, int tile) {
    const int n = place.template lanes<T>(tile);
    const int64_t channel = place.template channel<T>(tile), row = place.row;
    const V bias = has(a.delta_bias) ? read_lanes<T>(a.delta_bias, at(a.delta_bias, channel), n) : V{};
    const bool by_time = has(a.timesteps);
    const V rate = by_time ? read_lanes<T>(a.delta_a, at(a.delta_a, channel), n) : V{};
    for (int t = 0; t < segment.cells; ++t) {
      const int64_t cell = segment.cell[t];
      u[t] = read_lanes<T>(a.u, at(a.u, row, cell, channel), n);
      V x = read_lanes<T>(a.delta, at(a.delta, row, cell, channel), n) + bias;
      raw[t] = x;
      if (a.flags & NVSUBQ_SOFTPLUS) x = softplus<T>(x);
      d[t] = x;
      w[t] = scales_input(KIND) ? x * u[t] : u[t];
      if (by_time) {
        da[t] = rate * read_one<T>(a.timesteps, at(a.timesteps, row, cell));
      } else {
        da[t] = has(a.delta_a) ? read_lanes<T>(a.delta_a, at(a.delta_a, row, cell, channel), n) : x;
      }
    }
  }
};

// B or C of a segment, [cells][N].
template <class T>
inline void read_states(const nvsubq_tensor& from, const Place& place, const Segment& segment, int64_t states, T* to) {
  for (int t = 0; t < segment.cells; ++t) {
    const int64_t offset = at(from, place.row, segment.cell[t], place.group);
    if (from.dtype == DtypeOf<T>::value) {
      memcpy(to + t * states, static_cast<const T*>(from.data) + offset, states * sizeof(T));
    } else {
      for (int64_t n = 0; n < states; ++n) to[t * states + n] = read_one<T>(from, offset + n);
    }
  }
}

template <class T, int KIND>
inline void read_rates(const Selective& a, const Place& place, Vec<T>* to) {
  for (int tile = 0; tile < place.tiles; ++tile)
    for (int64_t n = 0; n < a.states; ++n) {
      const int64_t offset = at(a.A, place.template channel<T>(tile), n);
      const Vec<T> v = read_column<T>(a.A, offset, a.A.stride[0], place.template lanes<T>(tile));
      to[tile * a.states + n] = is_exponential(KIND) ? v * T(kLog2E) : v;
    }
}

// A state tensor [B, D, N], or zeros where it is absent.
template <class T>
inline void read_state(const nvsubq_tensor& from, const Place& place, int64_t states, Vec<T>* to) {
  for (int tile = 0; tile < place.tiles; ++tile)
    for (int64_t n = 0; n < states; ++n)
      to[tile * states + n] =
          has(from) ? read_column<T>(from, at(from, place.row, place.template channel<T>(tile), n), from.stride[1],
                                     place.template lanes<T>(tile))
                    : Vec<T>{};
}
template <class T>
inline void write_state(const nvsubq_tensor& to, const Place& place, int64_t states, const Vec<T>* from) {
  for (int tile = 0; tile < place.tiles; ++tile)
    for (int64_t n = 0; n < states; ++n)
      write_column<T>(to, at(to, place.row, place.template channel<T>(tile), n), to.stride[1],
                      place.template lanes<T>(tile), from[tile * states + n]);
}

// Where the states that enter segment s >= 1 are kept, [B][segments - 1][N][D].
template <class T>
inline T* saved_states(const Selective& a, const Place& place, int64_t segment, int tile) {
  const int64_t borders = segments(a.length, a.states) - 1;
  T* row = static_cast<T*>(a.saved) + (place.row * borders + segment - 1) * a.states * a.width;
  return row + place.template channel<T>(tile);
}

// Zeros at the cells of a row that are not there.
template <class T>
inline void clear_absent(const nvsubq_tensor& t, const Place& place, const Steps& steps) {
  if (!has(t)) return;
  for (int64_t k = steps.count; k < steps.length; ++k)
    for (int tile = 0; tile < place.tiles; ++tile)
      write_lanes<T>(t, at(t, place.row, steps.cell(k), place.template channel<T>(tile)),
                     place.template lanes<T>(tile), Vec<T>{});
}

inline Steps steps_at(const Selective& a, const Place& place) {
  return steps_of(a, place.row, place.group * a.blocks / a.groups);
}

}  // namespace
#endif
