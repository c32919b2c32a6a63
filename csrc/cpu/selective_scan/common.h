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
  template <class T>
  Lanes<T> of(const nvsubq_tensor& t, int tile) const {
    return Lanes<T>(t, row, channel<T>(tile), lanes<T>(tile));
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

// The memory of a chunk's next segment, asked for line by line while the loops over states run: a walk jumps from row
// to row, which no hardware foresees, and more lines at once than a core can wait for would stall it.
struct Ahead {
  static constexpr int kMost = 8;  // tensors
  const char* first[kMost];
  int64_t by_cell[kMost], by_tile[kMost];
  const int64_t* cell = nullptr;
  int each = 0, cells = 0, tiles = 0, at_cell = 0, at_tile = 0;

  // The tensors [B, L, D] that are there.
  template <class T>
  void aim(std::initializer_list<const nvsubq_tensor*> tensors, const Place& place, const Segment& segment) {
    each = at_cell = at_tile = 0, cells = segment.cells, tiles = place.tiles, cell = segment.cell;
    for (const nvsubq_tensor* t : tensors) {
      if (!has(*t) || each == kMost) continue;
      const Lanes<T> x = place.of<T>(*t, 0);
      first[each] = x.first, by_cell[each] = x.bytes, by_tile[each++] = Simd<T>::W * item_size(*t);
    }
  }
  // One line of each; to be called once for each tile and step.
  void ask() {
    if (at_cell >= cells) return;
    for (int i = 0; i < each; ++i) __builtin_prefetch(first[i] + cell[at_cell] * by_cell[i] + at_tile * by_tile[i]);
    if (++at_tile == tiles) at_tile = 0, ++at_cell;
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
    for (V** p : {&u, &d, &da, &w, &raw}) *p = arena.take<V>(kMaxCells + 5);
  }

  void read(const Selective& a, const Place& place, const Segment& segment, int tile) {
    const int n = place.template lanes<T>(tile);
    const int64_t channel = place.template channel<T>(tile);
    const V bias = has(a.delta_bias) ? read_lanes<T>(a.delta_bias, at(a.delta_bias, channel), n) : V{};
    const bool soft = a.flags & NVSUBQ_SOFTPLUS, by_delta = scales_input(a.discretization);
    const Lanes<T> in = place.of<T>(a.u, tile), step = place.of<T>(a.delta, tile);
    for (int t = 0; t < segment.cells; ++t) {
      const int64_t cell = segment.cell[t];
      u[t] = in[cell];
      V x = step[cell] + bias;
      raw[t] = x;
      if (soft) x = softplus<T>(x);
      d[t] = x;
      w[t] = by_delta ? x * u[t] : u[t];
    }
    same = !has(a.delta_a);
    if (same) {
      da = d;
    } else if (has(a.timesteps)) {
      const V rate = read_lanes<T>(a.delta_a, at(a.delta_a, channel), n);
      for (int t = 0; t < segment.cells; ++t)
        da[t] = rate * read_one<T>(a.timesteps, at(a.timesteps, place.row, segment.cell[t]));
    } else {
      const Lanes<T> given = place.of<T>(a.delta_a, tile);
      for (int t = 0; t < segment.cells; ++t) da[t] = given[segment.cell[t]];
    }
  }
};

// Zeros at the cells of a row that are not there.
template <class T>
inline void clear_absent(const nvsubq_tensor& t, const Place& place, const Steps& steps) {
  if (!has(t)) return;
  for (int64_t k = steps.count; k < steps.length; ++k)
    for (int tile = 0; tile < place.tiles; ++tile) place.of<T>(t, tile).put(steps.cell(k), Vec<T>{});
}

}  // namespace
#endif
