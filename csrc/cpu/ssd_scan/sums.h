// `ssd_scan`, backward: sums over the heads of a group and over the rows, from partial sums in a fixed order.
#ifndef NVSUBQ_CPU_SSD_SCAN_SUMS_H
#define NVSUBQ_CPU_SSD_SCAN_SUMS_H

#include "chunk.h"

namespace {

// Of one row and head, for the cells of a window by step: what the cells of a chunk give to the gradients of C
// through the state that enters and to those of B through the one that leaves, blocks [N][cells of the chunk], and
// the weights [cells][T] with which they add B_j to the gradient of C_i and C_i to that of B_j.
template <class T>
struct HeadPart {
  T *C, *B, *weights;

  static int64_t elements(const Ssd& a, int64_t cells) { return cells * (2 * a.states + chunk_cells(a)); }
  HeadPart(const Ssd& a, T* memory, int64_t cells) {
    C = memory;
    B = C + cells * a.states;
    weights = B + cells * a.states;
  }
};

// Sums over the walk, by row and head.
template <class T>
struct WalkSums {
  T *D, *A, *bias;  // [B][H][padded P], [B][H]

  WalkSums(Arena& arena, const Ssd& a) {
    D = arena.take<T>(a.batch * a.heads * padded_width<T>(a));
    A = arena.take<T>(a.batch * a.heads);
    bias = arena.take<T>(a.batch * a.heads);
  }

  void add_rows(const Ssd& a) const {
    const int64_t width = a.head_width, padded = padded_width<T>(a);
    for (int64_t h = 0; h < a.heads; ++h) {
      T by_rate = 0, by_bias = 0;
      for (int64_t row = 0; row < a.batch; ++row) {
        by_rate += A[row * a.heads + h];
        by_bias += bias[row * a.heads + h];
      }
      write_one<T>(a.d_A, at(a.d_A, h), by_rate);
      if (has(a.d_dt_bias)) write_one<T>(a.d_dt_bias, at(a.d_dt_bias, h), by_bias);
      if (!has(a.d_D)) continue;
      const bool by_lane = a.d_D.stride[1] != 0;
      T all = 0;
      for (int64_t p = 0; p < width; ++p) {
        T sum = 0;
        for (int64_t row = 0; row < a.batch; ++row) sum += D[(row * a.heads + h) * padded + p];
        all += sum;
        if (by_lane) write_one<T>(a.d_D, at(a.d_D, h, p), sum);
      }
      if (!by_lane) write_one<T>(a.d_D, at(a.d_D, h), all);
    }
  }
};

// Room for the gradients of B and C of a chunk, as blocks [N][cells] and as rows [cells][padded N].
template <class T>
struct GroupScratch {
  T *block, *rows, *weights;

  GroupScratch(Arena& arena, const Ssd& a) {
    block = arena.take<T>(a.states * kMaxChunk);
    rows = arena.take<T>(kMaxChunk * whole_vectors<T>(a.states) * Simd<T>::W);
    weights = arena.take<T>(kMaxChunk * kMaxChunk);
  }
};

// to = the sum over heads of `count` elements of each one's part.
template <class T, class From>
inline void sum_heads(int64_t heads, int64_t count, From from, T* to) {
  memcpy(to, from(0), count * sizeof(T));
  for (int64_t h = 1; h < heads; ++h) {
    const T* more = from(h);
    for (int64_t i = 0; i < count; ++i) to[i] += more[i];
  }
}

// Writes the gradients of B and C of one chunk and group; `part(h)` is that of the group's head h, `first` the
// chunk's first cell in it and in what is shared.
template <class T, class Part>
inline void write_group(const Ssd& a, const Place& place, const Steps& steps, const Chunk& chunk, int64_t first,
                        const Shared<T>& shared, Part part, GroupScratch<T>& x) {
  const int64_t N = a.states, most = chunk_cells(a), heads = a.heads / a.groups, cells = chunk.cells;
  const int64_t vectors = whole_vectors<T>(N), padded = vectors * Simd<T>::W;
  const T one = 1;
  sum_heads<T>(heads, cells * most, [&](int64_t h) { return part(h).weights + first * most; }, x.weights);
  if (chunk.enters) {
    sum_heads<T>(heads, cells * N, [&](int64_t h) { return part(h).C + first * N; }, x.block);
    transpose<T>(x.block, cells, N, cells, x.rows, padded);
  }
  multiply<T, Left::rows, Span::upto>({cells, cells, vectors, x.weights, most, shared.B + first * N, N, x.rows, padded,
                                       chunk.enters ? &one : nullptr, 0});
  write_cells(a, a.d_C, place, steps, chunk, x.rows, padded);
  if (chunk.leaves) {
    sum_heads<T>(heads, cells * N, [&](int64_t h) { return part(h).B + first * N; }, x.block);
    transpose<T>(x.block, cells, N, cells, x.rows, padded);
  }
  multiply<T, Left::columns, Span::from>({cells, cells, vectors, x.weights, most, shared.C + first * N, N, x.rows,
                                          padded, chunk.leaves ? &one : nullptr, 0});
  write_cells(a, a.d_B, place, steps, chunk, x.rows, padded);
}

template <class T>
inline void write_cells(const Ssd& a, const nvsubq_tensor& to, const Place& place, const Steps& steps,
                        const Chunk& chunk, const T* rows, int64_t row_step) {
  for (int t = 0; t < chunk.cells; ++t)
    write_elements<T>(to, at(to, place.row, steps.cell(chunk.begin + t), place.group), a.states, rows + t * row_step);
}

}  // namespace
#endif
