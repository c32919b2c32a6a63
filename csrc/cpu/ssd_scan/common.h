// `ssd_scan`: what the passes share. The walk is cut into chunks, none of which spans two sequences, and a chunk
// is a few matrix products (Dao & Gu 2024, arXiv:2405.21060): what its cells give to each other, what they read
// from the state that enters it, and what they add to the state that leaves it. States are [N][P], lanes are P.
#ifndef NVSUBQ_CPU_SSD_SCAN_COMMON_H
#define NVSUBQ_CPU_SSD_SCAN_COMMON_H

#include "../op.h"
#include "../pool.h"
#include "rows.h"
#include "transpose.h"

namespace {

using Ssd = nvsubq_ssd_scan_args;

// Cells of a chunk at most. The products within a chunk grow with it, the traffic of states shrinks with it.
inline int chunk_cells(const Ssd& a) { return a.states >= 64 ? 32 : 16; }
constexpr int kMaxChunk = 32;

// Cells between two states that a forward keeps: up to N = 128 these take no more memory than x in fp32.
inline int64_t segment_cells(const Ssd& a) { return a.states > 64 ? 128 : 64; }
constexpr int kMaxSegment = 128;

inline int64_t segments(const Ssd& a) { return (a.length + segment_cells(a) - 1) / segment_cells(a); }

template <class T>
inline int64_t whole_vectors(int64_t lanes) {
  return (lanes + Simd<T>::W - 1) / Simd<T>::W;
}
// Elements of a row of P in scratch memory; the lanes beyond P are zeros.
template <class T>
inline int64_t padded_width(const Ssd& a) {
  return whole_vectors<T>(a.head_width) * Simd<T>::W;
}
template <class T>
inline int64_t state_elements(const Ssd& a) {
  return a.states * padded_width<T>(a);
}

// One row and one head.
struct Place {
  int64_t row, head, group, block;

  Place(const Ssd& a, int64_t row, int64_t head)
      : row(row), head(head), group(head / (a.heads / a.groups)), block(head / (a.heads / a.blocks)) {}
};

struct Chunk {
  int64_t begin;
  int cells;
  bool enters, leaves;  // the state that enters is not zero, the one that leaves is of use
};

// The chunks of one segment; a state enters each but those that begin a sequence.
struct Chunks {
  int count = 0;
  Chunk chunk[kMaxSegment];

  // `begins`: a state enters the walk; `ends`: the one after it is of use.
  void read(const Ssd& a, const Steps& steps, int64_t begin, bool begins, bool ends) {
    const int most = chunk_cells(a);
    int64_t end = begin + segment_cells(a);
    end = end < steps.count ? end : steps.count;
    count = 0;
    for (int64_t k = begin; k < end;) {
      Chunk& c = chunk[count++];
      c.begin = k;
      c.enters = k ? !steps.starts(k) : begins;
      for (++k; k < end && k - c.begin < most && !steps.starts(k);) ++k;
      c.cells = int(k - c.begin);
      c.leaves = k < steps.count ? !steps.starts(k) : ends;
    }
  }
};

// A call runs in rounds of some rows and a window of cells, so that what the heads of a group share and what they
// sum up takes bounded memory, which stays in a cache. A row computes the same bits in any round.
struct Rounds {
  int64_t rows, cells, windows;

  Rounds(const Ssd& a, int64_t bytes_of_cell, int64_t bytes_of_row) {
    constexpr int64_t kBytes = 2 << 20;
    const int64_t step = segment_cells(a), all = segments(a) * step;
    cells = kBytes / (bytes_of_cell + 1) / step * step;
    cells = cells < step ? step : cells;
    cells = cells < all ? cells : all;
    windows = cells > 0 ? (all + cells - 1) / cells : 1;
    rows = kBytes / (cells * bytes_of_cell + (windows > 1 ? bytes_of_row : 0) + 1);
    rows = rows < 1 ? 1 : rows;
    rows = rows < a.batch ? rows : a.batch;
  }
  // States that outlast a round: those of a row with several windows.
  int64_t kept_states(const Ssd& a) const { return windows > 1 ? rows * a.heads : 0; }
};

// The part of a call that is under way.
struct Round {
  int64_t first_row, rows, begin, end;  // steps begin .. end
  bool first, last;                     // of the windows of a row, in the order of the pass
};

template <class Run>
inline void for_each_round(const Ssd& a, const Rounds& rounds, bool backwards, Run run) {
  for (int64_t row = 0; row < a.batch; row += rounds.rows)
    for (int64_t i = 0; i < rounds.windows; ++i) {
      Round r;
      const int64_t window = backwards ? rounds.windows - 1 - i : i, left = a.batch - row;
      r.first_row = row;
      r.rows = left < rounds.rows ? left : rounds.rows;
      r.begin = window * rounds.cells;
      r.end = r.begin + rounds.cells < a.length ? r.begin + rounds.cells : a.length;
      r.first = i == 0;
      r.last = i + 1 == rounds.windows;
      run(r);
    }
}

// A state tensor [B, H, P, N], or zeros where it is absent, as [N][P].
template <class T>
inline void read_state(const Ssd& a, const nvsubq_tensor& from, const Place& place, T* to) {
  const int64_t width = a.head_width, step = padded_width<T>(a);
  memset(to, 0, state_elements<T>(a) * sizeof(T));
  if (!has(from)) return;
  const int64_t offset = at(from, place.row, place.head);
  if (from.dtype == DtypeOf<T>::value) {
    transpose<T>(static_cast<const T*>(from.data) + offset, from.stride[2], width, a.states, to, step);
    return;
  }
  for (int64_t p = 0; p < width; ++p)
    for (int64_t n = 0; n < a.states; ++n) to[n * step + p] = read_one<T>(from, offset + p * from.stride[2] + n);
}
template <class T>
inline void write_state(const Ssd& a, const nvsubq_tensor& to, const Place& place, const T* from) {
  if (!has(to)) return;
  const int64_t width = a.head_width, step = padded_width<T>(a), offset = at(to, place.row, place.head);
  if (to.dtype == DtypeOf<T>::value) {
    transpose<T>(from, step, a.states, width, static_cast<T*>(to.data) + offset, to.stride[2]);
    return;
  }
  for (int64_t p = 0; p < width; ++p)
    for (int64_t n = 0; n < a.states; ++n) write_one<T>(to, offset + p * to.stride[2] + n, from[n * step + p]);
}

// Where the state that enters segment s >= 1 is kept, [B][segments - 1][H][N][P].
template <class T>
inline T* saved_state(const Ssd& a, const Place& place, int64_t segment) {
  const int64_t border = place.row * (segments(a) - 1) + segment - 1;
  return static_cast<T*>(a.saved) + (border * a.heads + place.head) * a.states * a.head_width;
}

// Rows of P lanes of one head: one cell of x, y, z or a gradient of theirs. Neighbouring rows of a head lie H P
// elements apart, which a processor does not foresee.
template <class T>
inline void read_row(const Ssd& a, const nvsubq_tensor& from, const Place& place, int64_t cell, T* to) {
  read_elements<T>(from, at(from, place.row, cell, place.head), a.head_width, to);
  for (int64_t p = a.head_width; p < padded_width<T>(a); ++p) to[p] = 0;
}
// Has the row of a step brought near, for when it will be read. GCC 12 drops calls of a function that only
// prefetches, so this is none.
__attribute__((always_inline)) inline void fetch_row(const Ssd& a, const nvsubq_tensor& from, const Place& place,
                                                     const Steps& steps, int64_t step) {
  if (step < 0 || step >= steps.count) return;
  const int64_t bytes = item_size(from), offset = at(from, place.row, steps.cell(step), place.head);
  const char* row = static_cast<const char*>(from.data) + offset * bytes;
  for (int64_t i = 0; i < a.head_width * bytes; i += 64) __builtin_prefetch(row + i);
}
template <class T>
inline void write_row(const Ssd& a, const nvsubq_tensor& to, const Place& place, int64_t cell, const T* from) {
  write_elements<T>(to, at(to, place.row, cell, place.head), a.head_width, from);
}

// D of a head over its lanes; [H] has stride 0 over P.
template <class T>
inline void read_skip(const Ssd& a, const Place& place, T* to) {
  const int64_t width = a.head_width;
  memset(to, 0, padded_width<T>(a) * sizeof(T));
  if (!has(a.D)) return;
  for (int64_t p = 0; p < width; ++p) to[p] = read_one<T>(a.D, at(a.D, place.head, p));
}

}  // namespace
#endif
