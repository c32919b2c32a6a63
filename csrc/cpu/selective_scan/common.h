// `selective_scan`: the shape of the work. Lanes are channels; a task is one row and some chunks of channels of one
// group, and runs along the whole walk, segment by segment, in each segment chunk by chunk.
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

// How many chunks a task takes, and how many tasks a group's are. Rows of a cell lie side by side in memory, so a task
// takes as many chunks of a row as leave each thread its share; no chunk's arithmetic depends on the others.
struct Packs {
  static constexpr int64_t kMost = 8;  // what a task keeps of them stays in the second cache
  int64_t each, per_group;

  Packs(const Selective& a, const Chunks& chunks) {
    each = per_group = 0;  // without channels
    if (!chunks.per_group) return;
    const int64_t threads = a.threads > 1 ? a.threads : 1;
    const int64_t wanted = a.batch * chunks.groups % threads ? threads : 1;
    per_group = wanted < chunks.per_group ? wanted : chunks.per_group;
    each = (chunks.per_group + per_group - 1) / per_group;
    if (each > kMost) each = kMost;
    per_group = (chunks.per_group + each - 1) / each;
  }
};

// The chunks of a task: `count` from `first` on, numbered over all rows as `Place::of` has them.
struct Pack {
  int64_t first, count;

  Pack(const Chunks& chunks, const Packs& packs, int64_t task) {
    const int64_t within = task % packs.per_group * packs.each;
    first = task / packs.per_group * chunks.per_group + within;
    count = chunks.per_group - within < packs.each ? chunks.per_group - within : packs.each;
  }
};

// One chunk's place: channels first .. first + channels of group `group`, in tiles of W lanes.
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
    const int64_t left = begin < 0 ? 0 : steps.count - begin;  // before the first: of a walk without cells
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
};

// Reads tiles: cell by cell, all tiles of a cell together, since they lie in one row and each cell in another.
template <class T>
struct TileReader {
  using V = Vec<T>;
  Lanes<T> u, delta, delta_a;
  V bias, rate;  // rate: delta_a where it is to be multiplied by timesteps
  bool by_time, by_delta, soft;

  void aim(const Selective& a, const Place& place, int tile, Tile<T>* to) {
    const int n = place.template lanes<T>(tile);
    const int64_t channel = place.template channel<T>(tile);
    u = place.of<T>(a.u, tile), delta = place.of<T>(a.delta, tile);
    bias = has(a.delta_bias) ? read_lanes<T>(a.delta_bias, at(a.delta_bias, channel), n) : V{};
    by_time = has(a.timesteps), by_delta = scales_input(a.discretization), soft = a.flags & NVSUBQ_SOFTPLUS;
    rate = by_time ? read_lanes<T>(a.delta_a, at(a.delta_a, channel), n) : V{};
    if (!by_time) delta_a = place.of<T>(a.delta_a, tile);
    to->same = !has(a.delta_a);
    if (to->same) to->da = to->d;
  }
  void read(int t, int64_t cell, T timestep, const Tile<T>& to) const {
    const V value = u[cell], raw = delta[cell] + bias;
    const V d = soft ? softplus<T>(raw) : raw;
    to.u[t] = value;
    to.raw[t] = raw;
    to.d[t] = d;
    to.w[t] = by_delta ? d * value : value;
    if (!to.same) to.da[t] = by_time ? rate * timestep : delta_a[cell];
  }
};

template <class T>
inline void read_tiles(const Selective& a, const Place& place, const Segment& segment, const TileReader<T>* readers,
                       const Tile<T>* to) {
  for (int t = 0; t < segment.cells; ++t) {
    const int64_t cell = segment.cell[t];
    const T timestep = has(a.timesteps) ? read_one<T>(a.timesteps, at(a.timesteps, place.row, cell)) : T(0);
    for (int tile = 0; tile < place.tiles; ++tile) readers[tile].read(t, cell, timestep, to[tile]);
  }
}

// Zeros at the cells of a row that are not there.
template <class T>
inline void clear_absent(const nvsubq_tensor& t, const Place& place, const Steps& steps) {
  if (!has(t)) return;
  for (int64_t k = steps.count; k < steps.length; ++k)
    for (int tile = 0; tile < place.tiles; ++tile) place.of<T>(t, tile).put(steps.cell(k), Vec<T>{});
}

}  // namespace
#endif
