// `selective_scan`: the shape of the work. Lanes are channels; a task is one row and one chunk of channels of one
// group, and runs along the whole walk, segment by segment.
#ifndef NVSUBQ_CPU_SELECTIVE_SCAN_COMMON_H
#define NVSUBQ_CPU_SELECTIVE_SCAN_COMMON_H

#include <initializer_list>

#include "../complex.h"
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

// Chunks depend on the width alone: on neither threads nor batch, or the bits of a row would.
struct Chunks {
  int64_t groups, run, width, per_group, count;

  explicit Chunks(const Selective& a) {
    const int64_t fixed = NVSUBQ_FIXED_B | NVSUBQ_FIXED_C;
    groups = (a.flags & fixed) == fixed ? a.blocks : a.groups;  // where nothing has groups, blocks have walks
    run = a.width / groups;
    width = run > 256 ? 64 : 32;
    per_group = (run + width - 1) / width;
    count = per_group * groups;
  }
  template <class T>
  int64_t tiles() const {
    return (width + Simd<T>::W - 1) / Simd<T>::W;
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
  // Asks for the rows of a cell of the next segment.
  void expect_read(const nvsubq_tensor& t, int64_t cell, int64_t channel) const {
    if (has(t)) ::expect_read(t, at(t, row, cell, channel));
  }
  void expect_write(const nvsubq_tensor& t, int64_t cell, int64_t channel) const {
    if (has(t)) ::expect_write(t, at(t, row, cell, channel));
  }
};

inline Steps steps_at(const Selective& a, const Chunks& chunks, const Place& place) {
  return steps_of(a, place.row, place.group * a.blocks / chunks.groups);
}

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

// Discretizations. The decay depends on da and A; the input's factor is w times a scale: w is d u for mamba, zoh and
// bilinear and u for the others, the scale depends on d and A and is 1 but for zoh and bilinear.
inline bool is_exponential(int64_t kind) {
  return kind == NVSUBQ_MAMBA || kind == NVSUBQ_ZOH || kind == NVSUBQ_DIRAC;
}
inline bool has_scale(int64_t kind) { return kind == NVSUBQ_ZOH || kind == NVSUBQ_BILINEAR; }
inline bool scales_input(int64_t kind) { return kind == NVSUBQ_MAMBA || has_scale(kind); }

// The inputs of one segment and one tile, by step.
template <class T>
struct Tile {
  using V = Vec<T>;
  V *u, *d, *da, *w, *raw;
  bool same;  // da is d

  void take(Arena& arena) {
    for (V** p : {&u, &d, &da, &w, &raw}) *p = arena.take<V>(kMaxCells);
  }

  void read(const Selective& a, const Place& place, const Segment& segment, int tile) {
    const int n = place.template lanes<T>(tile);
    const int64_t channel = place.template channel<T>(tile), row = place.row;
    const V bias = has(a.delta_bias) ? read_lanes<T>(a.delta_bias, at(a.delta_bias, channel), n) : V{};
    const bool by_time = has(a.timesteps), by_delta = scales_input(a.discretization);
    const V rate = by_time ? read_lanes<T>(a.delta_a, at(a.delta_a, channel), n) : V{};
    same = !has(a.delta_a);
    for (int t = 0; t < segment.cells; ++t) {
      const int64_t cell = segment.cell[t];
      u[t] = read_lanes<T>(a.u, at(a.u, row, cell, channel), n);
      V x = read_lanes<T>(a.delta, at(a.delta, row, cell, channel), n) + bias;
      raw[t] = x;
      if (a.flags & NVSUBQ_SOFTPLUS) x = softplus<T>(x);
      d[t] = x;
      w[t] = by_delta ? x * u[t] : u[t];
      if (by_time) {
        da[t] = rate * read_one<T>(a.timesteps, at(a.timesteps, row, cell));
      } else {
        da[t] = has(a.delta_a) ? read_lanes<T>(a.delta_a, at(a.delta_a, row, cell, channel), n) : x;
      }
    }
  }
};

// Zeros at the cells of a row that are not there.
template <class T>
inline void clear_absent(const nvsubq_tensor& t, const Place& place, const Steps& steps) {
  if (!has(t)) return;
  for (int64_t k = steps.count; k < steps.length; ++k)
    for (int tile = 0; tile < place.tiles; ++tile)
      write_lanes<T>(t, at(t, place.row, steps.cell(k), place.template channel<T>(tile)),
                     place.template lanes<T>(tile), Vec<T>{});
}

}  // namespace
#endif
