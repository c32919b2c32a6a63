// `ssd_scan`: matrices in scratch memory turned over, by squares of whole vectors.
#ifndef NVSUBQ_CPU_SSD_SCAN_TRANSPOSE_H
#define NVSUBQ_CPU_SSD_SCAN_TRANSPOSE_H

#include "product.h"

namespace {

// Lanes HALF apart of two vectors change places: one step of turning a square of W x W.
template <int HALF, class V, class I, int W>
inline void exchange_lanes(V& a, V& b) {
#if defined(__clang__)
  V low = a, high = b;
  for (int l = 0; l < W; ++l) {
    low[l] = l & HALF ? b[l - HALF] : a[l];
    high[l] = l & HALF ? b[l] : a[l + HALF];
  }
#else
  I to_low = {}, to_high = {};
#pragma GCC unroll 16
  for (int l = 0; l < W; ++l) {
    to_low[l] = l & HALF ? W + l - HALF : l;
    to_high[l] = l & HALF ? W + l : l + HALF;
  }
  const V low = __builtin_shuffle(a, b, to_low), high = __builtin_shuffle(a, b, to_high);
#endif
  a = low;
  b = high;
}

template <class T, int HALF>
inline void turn_step(Vec<T>* square) {
  constexpr int W = Simd<T>::W;
  if constexpr (HALF < W) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
      if (!(i & HALF)) exchange_lanes<HALF, Vec<T>, typename Simd<T>::I, W>(square[i], square[i + HALF]);
    turn_step<T, HALF * 2>(square);
  }
}

// to[c][r] = from[r][c]; nothing else of `to` is written.
template <class T>
__attribute__((noinline)) void transpose(const T* from, int64_t from_step, int64_t rows, int64_t columns, T* to,
                                         int64_t to_step) {
  constexpr int W = Simd<T>::W;
  for (int64_t r = 0; r < rows; r += W)
    for (int64_t c = 0; c < columns; c += W) {
      if (r + W <= rows && c + W <= columns) {
        Vec<T> square[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) square[i] = load<T>(from + (r + i) * from_step + c);
        turn_step<T, 1>(square);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) store<T>(to + (c + i) * to_step + r, square[i]);
        continue;
      }
      for (int64_t j = c; j < columns && j < c + W; ++j)
        for (int64_t i = r; i < rows && i < r + W; ++i) to[j * to_step + i] = from[i * from_step + j];
    }
}

}  // namespace
#endif
