// `ssd_scan`: the matrix products that it consists of, on small matrices of the compute dtype in scratch memory.
// Lanes are columns; an element of the left factor is a scalar that is spread over them.
#ifndef NVSUBQ_CPU_SSD_SCAN_PRODUCT_H
#define NVSUBQ_CPU_SSD_SCAN_PRODUCT_H

#include "../storage.h"

namespace {

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
inline void store(T* p, Vec<T> v) {
  memcpy(p, &v, sizeof v);
}

// out[r] = keep[r] out[r] + sum_k a(r, k) b[k], for rows r and whole vectors of columns. Without `keep` the old
// content of `out` does not count.
template <class T>
struct Product {
  int64_t rows, depth, vectors;
  const T* a;
  int64_t lda;
  const T* b;
  int64_t ldb;
  T* out;
  int64_t ldo;
  const T* keep;
  int64_t keep_step;  // 1, or 0: one factor for all rows
};

// a(r, k) is a[r lda + k], or for `columns` a[k lda + r].
enum class Left { rows, columns };
// Which k belong to row r: all, those up to r, or those from r on. Nothing else is read as a factor, so what lies
// on the other side of the diagonal may be anything.
enum class Span { all, upto, from };

template <class T, Left LEFT, Span SPAN, int R, int V>
inline void product_tile(const Product<T>& p, int64_t row, int64_t column) {
  constexpr int W = Simd<T>::W;
  using X = Vec<T>;
  X sum[R][V];
  T* const out = p.out + row * p.ldo + column;
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      sum[r][v] = p.keep ? load<T>(out + r * p.ldo + v * W) * p.keep[(row + r) * p.keep_step] : X{};
  const int64_t row_step = LEFT == Left::rows ? p.lda : 1, depth_step = LEFT == Left::rows ? 1 : p.lda;
  const T* const a = p.a + row * row_step;
  const T* const b = p.b + column;
  // The block on the diagonal: row + r takes part where k <= row + r, or k >= row + r.
  if (SPAN != Span::all)
#pragma GCC unroll 16
    for (int k = 0; k < R; ++k) {
      X right[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) right[v] = load<T>(b + (row + k) * p.ldb + v * W);
#pragma GCC unroll 16
      for (int r = SPAN == Span::upto ? k : 0; r < (SPAN == Span::upto ? R : k + 1); ++r) {
        const T left = a[r * row_step + (row + k) * depth_step];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[r][v] = sum[r][v] + left * right[v];
      }
    }
  const int64_t begin = SPAN == Span::from ? row + R : 0, end = SPAN == Span::upto ? row : p.depth;
  for (int64_t k = begin; k < end; ++k) {
    X right[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) right[v] = load<T>(b + k * p.ldb + v * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T left = a[r * row_step + k * depth_step];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = sum[r][v] + left * right[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store<T>(out + r * p.ldo + v * W, sum[r][v]);
}

template <class T, Left LEFT, Span SPAN, int R, int V>
inline void product_columns(const Product<T>& p, int64_t column) {
  int64_t row = 0;
  for (; row + R <= p.rows; row += R) product_tile<T, LEFT, SPAN, R, V>(p, row, column);
  for (; row < p.rows; ++row) product_tile<T, LEFT, SPAN, 1, V>(p, row, column);
}

// As many sums at once as hide the latency of an addition and fit into the registers.
template <class T, Left LEFT, Span SPAN>
__attribute__((noinline)) void multiply(const Product<T>& p) {
  constexpr int W = Simd<T>::W;
  constexpr bool wide = sizeof(T) == 4 && sizeof(Vec<T>) == 64, fast = sizeof(T) == 4;
  int64_t v = 0;
  if (wide)
    for (; v + 4 <= p.vectors; v += 4) product_columns<T, LEFT, SPAN, wide ? 4 : 1, wide ? 4 : 1>(p, v * W);
  if (fast)
    for (; v + 2 <= p.vectors; v += 2)
      product_columns<T, LEFT, SPAN, wide ? 8 : fast ? 4 : 1, fast ? 2 : 1>(p, v * W);
  for (; v < p.vectors; ++v) product_columns<T, LEFT, SPAN, fast ? 8 : 4, 1>(p, v * W);
}

// Sums of products of two rows of n whole vectors.
template <class T>
inline T dot(const T* a, const T* b, int64_t vectors) {
  constexpr int W = Simd<T>::W;
  Vec<T> even = {}, odd = {};
  int64_t v = 0;
  for (; v + 2 <= vectors; v += 2, a += 2 * W, b += 2 * W) {
    even = even + load<T>(a) * load<T>(b);
    odd = odd + load<T>(a + W) * load<T>(b + W);
  }
  if (v < vectors) even = even + load<T>(a) * load<T>(b);
  return sum_lanes<T>(even + odd);
}

}  // namespace
#endif
