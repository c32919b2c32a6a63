// What the first-order recurrences share. A task walks a chunk of channels of one row and one block from end to end,
// and the lanes of a vector are channels, so no channel's arithmetic depends on the chunk that it is in.
#ifndef NVSUBQ_CPU_CHANNEL_WALK_H
#define NVSUBQ_CPU_CHANNEL_WALK_H

#include "pool.h"
#include "storage.h"

namespace {

// Cells of a segment: states are kept at the borders of segments, and a backward makes the others again.
constexpr int kCells = 32;
// Sums over channels are made by units of this many, which no chunk cuts.
constexpr int64_t kUnit = 64;
// Widest chunk: what a backward keeps of a segment stays in the second cache.
constexpr int64_t kWidest = 512;

inline int64_t borders(int64_t length) { return length > kCells ? (length - 1) / kCells : 0; }

// Memory is read fastest by whole rows, so there are no more chunks than the threads need.
struct Chunks {
  int64_t run, width, per_block, count, units;  // `units` of one block

  template <class Args>
  explicit Chunks(const Args& a) {
    run = a.width / a.blocks;
    const int64_t rows = a.batch * a.blocks > 1 ? a.batch * a.blocks : 1;
    const int64_t wanted = (a.threads + rows - 1) / rows;
    width = ((run + wanted - 1) / wanted + kUnit - 1) / kUnit * kUnit;
    width = width < kUnit ? kUnit : width > kWidest ? kWidest : width;
    per_block = (run + width - 1) / width;
    count = per_block * a.blocks;
    units = (run + kUnit - 1) / kUnit;
  }
};

// The channels first .. first + channels of one row, in tiles of W lanes.
template <class T>
struct Place {
  static constexpr int W = Simd<T>::W;
  int64_t row, block, first, unit;  // `unit` of the first channel, over all blocks
  int channels, tiles;

  Place(const Chunks& chunks, int64_t task) {
    row = task / chunks.count;
    const int64_t chunk = task % chunks.count, within = chunk % chunks.per_block * chunks.width;
    block = chunk / chunks.per_block;
    first = block * chunks.run + within;
    unit = block * chunks.units + within / kUnit;
    channels = int(chunks.run - within < chunks.width ? chunks.run - within : chunks.width);
    tiles = (channels + W - 1) / W;
  }
  int lanes(int tile) const { return channels - tile * W < W ? channels - tile * W : W; }
  int64_t channel(int tile) const { return first + int64_t(tile) * W; }
};

// Runs `task(place, slot)` for every chunk of every row.
template <class T, class Self>
void for_places(Self& self, int64_t batch, const Chunks& chunks, int64_t threads) {
  nvsubq::run_tasks(
      threads, batch * chunks.count,
      [](void* p, int64_t task, int64_t slot) {
        Self& self = *static_cast<Self*>(p);
        self.walk(Place<T>(self.chunks, task), slot);
      },
      &self);
}

// Asks for the channels of a cell that will be read, or written, some steps from now: a backward goes from row to row
// against the order of memory, and a walk may jump. Inlined always: GCC takes a function that only does this for one
// that does nothing, and drops its calls.
__attribute__((always_inline)) inline void expect_row(const nvsubq_tensor& t, int64_t offset, int channels, bool write = false) {
  if (!has(t)) return;
  const int64_t size = item_size(t);
  const char* line = static_cast<const char*>(t.data) + offset * size;
  const char* end = line + channels * size;
  if (write)
    for (; line < end; line += 64) __builtin_prefetch(line, 1, 2);
  else
    for (; line < end; line += 64) __builtin_prefetch(line, 0, 2);
}
constexpr int kAhead = 8;  // steps

// Lanes that are `stride` elements apart.
template <class T>
inline Vec<T> read_spaced(const nvsubq_tensor& t, int64_t offset, int64_t stride, int n) {
  return stride == 1 ? read_lanes<T>(t, offset, n) : read_column<T>(t, offset, stride, n);
}
template <class T>
inline void write_spaced(const nvsubq_tensor& t, int64_t offset, int64_t stride, int n, Vec<T> v) {
  stride == 1 ? write_lanes<T>(t, offset, n, v) : write_column<T>(t, offset, stride, n, v);
}

// A parameter [D], or zeros where it is absent.
template <class T>
inline Vec<T> read_parameter(const nvsubq_tensor& t, const Place<T>& place, int tile) {
  return has(t) ? read_spaced<T>(t, at(t, place.channel(tile)), t.stride[0], place.lanes(tile)) : Vec<T>{};
}

// Zeros at the cells of a row that are not there; `parts` elements to a channel.
template <class T>
inline void clear_absent(const nvsubq_tensor& t, const Place<T>& place, const Steps& steps) {
  if (!has(t)) return;
  const int parts = t.flags & NVSUBQ_COMPLEX ? 2 : 1;
  for (int64_t k = steps.count; k < steps.length; ++k) {
    const int64_t offset = parts * at(t, place.row, steps.cell(k), place.first);
    for (int c = 0; c < parts * place.channels; c += Simd<T>::W) {
      const int left = parts * place.channels - c;
      write_lanes<T>(t, offset + c, left < Simd<T>::W ? left : Simd<T>::W, Vec<T>{});
    }
  }
}

// Partial sums [rows][D] of a parameter's gradient, added up in a fixed order.
template <class T>
inline T sum_rows(const T* from, int64_t rows, int64_t stride) {
  T sum = 0;
  for (int64_t row = 0; row < rows; ++row) sum += from[row * stride];
  return sum;
}

}  // namespace
#endif
