// Rows of numbers in memory, where the parts of complex ones lie beside each other, as vectors of each part.
#ifndef NVSUBQ_CPU_COMPLEX_STORAGE_H
#define NVSUBQ_CPU_COMPLEX_STORAGE_H

#include <utility>

#include "complex.h"
#include "storage.h"

namespace {

inline bool is_complex(const nvsubq_tensor& t) { return t.flags & NVSUBQ_COMPLEX; }

#if defined(__clang__) || __GNUC__ >= 12
#define NVSUBQ_SHUFFLE(I, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define NVSUBQ_SHUFFLE(I, a, b, ...) __builtin_shuffle(a, b, I{__VA_ARGS__})
#endif

// Real and imaginary parts of the W pairs that lie in two vectors.
template <class T, int... K>
inline Cx<T> split(Vec<T> low, Vec<T> high, std::integer_sequence<int, K...>) {
  return {NVSUBQ_SHUFFLE(typename Simd<T>::I, low, high, (2 * K)...),
          NVSUBQ_SHUFFLE(typename Simd<T>::I, low, high, (2 * K + 1)...)};
}
// The W/2 pairs of the lanes from FIRST on.
template <class T, int FIRST, int... K>
inline Vec<T> join(Cx<T> x, std::integer_sequence<int, K...>) {
  return NVSUBQ_SHUFFLE(typename Simd<T>::I, x.re, x.im, (FIRST + K / 2 + K % 2 * Simd<T>::W)...);
}
template <class T>
using LaneNumbers = std::make_integer_sequence<int, Simd<T>::W>;

template <class T>
inline Cx<T> read_pairs(const nvsubq_tensor& t, int64_t offset, int n) {
  constexpr int W = Simd<T>::W;
  const Vec<T> low = read_lanes<T>(t, 2 * offset, 2 * n < W ? 2 * n : W);
  return split<T>(low, 2 * n > W ? read_lanes<T>(t, 2 * offset + W, 2 * n - W) : Vec<T>{}, LaneNumbers<T>());
}
template <class T>
inline void write_pairs(const nvsubq_tensor& t, int64_t offset, int n, Cx<T> x) {
  constexpr int W = Simd<T>::W;
  write_lanes<T>(t, 2 * offset, 2 * n < W ? 2 * n : W, join<T, 0>(x, LaneNumbers<T>()));
  if (2 * n > W) write_lanes<T>(t, 2 * offset + W, 2 * n - W, join<T, W / 2>(x, LaneNumbers<T>()));
}

// The `n` elements from `offset` on, both counted in elements of the tensor, which may be real where numbers are
// complex: then it has, and takes, the real parts.
template <class T, bool CX>
inline Number<T, CX> read_numbers(const nvsubq_tensor& t, int64_t offset, int n) {
  if constexpr (CX) {
    if (is_complex(t)) return read_pairs<T>(t, offset, n);
  }
  return number<T, CX>(read_lanes<T>(t, offset, n));
}
inline void write_numbers(const nvsubq_tensor& t, int64_t offset, int n, VecF x) { write_lanes<float>(t, offset, n, x); }
inline void write_numbers(const nvsubq_tensor& t, int64_t offset, int n, VecD x) { write_lanes<double>(t, offset, n, x); }
template <class T>
inline void write_numbers(const nvsubq_tensor& t, int64_t offset, int n, Cx<T> x) {
  is_complex(t) ? write_pairs<T>(t, offset, n, x) : write_lanes<T>(t, offset, n, x.re);
}

// Elements that are `stride` apart.
template <class T, bool CX>
inline Number<T, CX> read_spaced_numbers(const nvsubq_tensor& t, int64_t offset, int64_t stride, int n) {
  if (stride == 1) return read_numbers<T, CX>(t, offset, n);
  const int parts = CX && is_complex(t) ? 2 : 1;
  Number<T, CX> x = {};
  for (int i = 0; i < parts; ++i) part(x, i) = read_column<T>(t, parts * offset + i, parts * stride, n);
  return x;
}
template <class T, class Numbers>
inline void write_spaced_numbers(const nvsubq_tensor& t, int64_t offset, int64_t stride, int n, Numbers x) {
  if (stride == 1) return write_numbers(t, offset, n, x);
  const int parts = is_complex(t) ? 2 : 1;
  for (int i = 0; i < parts; ++i) write_column<T>(t, parts * offset + i, parts * stride, n, part(x, i));
}

}  // namespace
#endif
