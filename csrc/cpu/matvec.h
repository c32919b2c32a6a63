// Products of the rows of a weight with a few vectors, for steps: a step of few rows is bound by the weight's bytes,
// so each row of the weight is read once, as it is stored. A sum is the same whatever is computed beside it.
#ifndef NVSUBQ_CPU_MATVEC_H
#define NVSUBQ_CPU_MATVEC_H

#include "storage.h"

namespace {

struct F16 {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};

typedef uint16_t Halves __attribute__((vector_size(NVSUBQ_BYTES / 2)));
typedef uint32_t VecU __attribute__((vector_size(NVSUBQ_BYTES)));

// W stored elements as lanes of T.
template <class T, class S>
struct Stored {
  static Vec<T> lanes(const S* p) {
    Vec<T> v;
    for (int i = 0; i < Simd<T>::W; ++i) v[i] = T(p[i]);
    return v;
  }
};
template <class T>
struct Stored<T, T> {
  static Vec<T> lanes(const T* p) {
    Vec<T> v;
    memcpy(&v, p, sizeof v);
    return v;
  }
};
template <>
struct Stored<float, Bf16> {
  static VecF lanes(const Bf16* p) {
    Halves h;
    memcpy(&h, p, sizeof h);
    return (VecF)(__builtin_convertvector(h, VecU) << 16);
  }
};
template <>
struct Stored<float, F16> {
  static VecF lanes(const F16* p) {
    Halves h;
    memcpy(&h, p, sizeof h);
#if defined(__AVX512F__)
    return (VecF)_mm512_cvtph_ps((__m256i)h);
#else
    const VecU u = __builtin_convertvector(h, VecU), sign = (u & 0x8000) << 16, rest = u & 0x7fff;
    const VecU finite = (VecU)((VecF)(rest << 13) * 5.192296858534828e33f);  // as `from_f16`
    const VecU special = 0x7f800000 | (rest << 13);
    return (VecF)(sign | (rest >= 0x7c00 ? special : finite));
#endif
  }
};

template <class T, class S>
inline Vec<T> lanes_of(const S* p, int n) {
  S some[Simd<T>::W] = {};
  memcpy(some, p, n * sizeof(S));
  return Stored<T, S>::lanes(some);
}

// How the lanes of a sum become one result, or two where the lanes alternate between real and imaginary parts.
struct OneSum {
  static constexpr int count = 1;
  template <class T>
  static void write(Vec<T> lanes, T* to) {
    *to = sum_lanes<T>(lanes);
  }
};
struct PairSum {
  static constexpr int count = 2;
  template <class T>
  static void write(Vec<T> lanes, T* to) {
    T a[Simd<T>::W];
    memcpy(a, &lanes, sizeof lanes);
    for (int half = Simd<T>::W / 2; half > 1; half /= 2)
      for (int i = 0; i < half; ++i) a[i] += a[i + half];
    to[0] = a[0];
    to[1] = a[1];
  }
};

// Vectors x [B] of `size` elements of the compute dtype, and where their products go.
template <class T>
struct Vectors {
  const T* x;
  int64_t x_stride, batch, size;
  T* y;
  int64_t y_stride;
};

// R rows of the weight with M vectors: R M sums at once, one accumulator each.
template <class T, class S, class Sum, int R, int M>
inline void dots(const S* weight, int64_t row_stride, const Vectors<T>& v, int64_t first_vector, T* y) {
  constexpr int W = Simd<T>::W;
  const T* x = v.x + first_vector * v.x_stride;
  Vec<T> sums[R][M] = {};
  int64_t k = 0;
  for (; k + W <= v.size; k += W) {
    Vec<T> xs[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) memcpy(&xs[m], x + m * v.x_stride + k, sizeof(Vec<T>));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<T> w = Stored<T, S>::lanes(weight + r * row_stride + k);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) sums[r][m] = sums[r][m] + w * xs[m];
    }
  }
  if (const int n = int(v.size - k)) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<T> w = lanes_of<T, S>(weight + r * row_stride + k, n);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) sums[r][m] = sums[r][m] + w * read_part<T>(x + m * v.x_stride + k, n);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) Sum::template write<T>(sums[r][m], y + m * v.y_stride + r * Sum::count);
}

// `rows` rows of the weight with M vectors, R at once where there are as many.
template <class T, class S, class Sum, int R, int M>
void dots_by(const S* weight, int64_t row_stride, int64_t rows, const Vectors<T>& v, int64_t first_vector) {
  T* y = v.y + first_vector * v.y_stride;
  int64_t r = 0;
  for (; r + R <= rows; r += R) dots<T, S, Sum, R, M>(weight + r * row_stride, row_stride, v, first_vector, y + r * Sum::count);
  for (; r < rows; ++r) dots<T, S, Sum, 1, M>(weight + r * row_stride, row_stride, v, first_vector, y + r * Sum::count);
}

template <class T, class S, class Sum>
void matvec_of(const S* weight, int64_t row_stride, int64_t rows, const Vectors<T>& v) {
  // A few rows of the weight go through all vectors before the next ones are read.
  const int64_t taken = v.batch == 1 ? rows : 8;
  for (int64_t r = 0; r < rows; r += taken) {
    const int64_t some = rows - r < taken ? rows - r : taken;
    const S* w = weight + r * row_stride;
    Vectors<T> to = v;
    to.y += r * Sum::count;
    int64_t b = 0;
    for (; b + 4 <= v.batch; b += 4) dots_by<T, S, Sum, 4, 4>(w, row_stride, some, to, b);
    for (; b + 2 <= v.batch; b += 2) dots_by<T, S, Sum, 4, 2>(w, row_stride, some, to, b);
    if (b < v.batch) dots_by<T, S, Sum, 8, 1>(w, row_stride, some, to, b);
  }
}

// y[b] = weight[first .. first + rows) x[b]; in fp64 the weight may be fp32 or fp64, in fp32 not fp64.
template <class T, class Sum = OneSum>
inline void matvec(const nvsubq_tensor& weight, int64_t row_stride, int64_t first, int64_t rows, const Vectors<T>& v) {
  const int64_t offset = first * row_stride;
  if (weight.dtype == DtypeOf<T>::value)
    matvec_of<T, T, Sum>(static_cast<const T*>(weight.data) + offset, row_stride, rows, v);
  else if constexpr (sizeof(T) == 8)
    matvec_of<T, float, Sum>(static_cast<const float*>(weight.data) + offset, row_stride, rows, v);
  else if (weight.dtype == NVSUBQ_BF16)
    matvec_of<T, Bf16, Sum>(static_cast<const Bf16*>(weight.data) + offset, row_stride, rows, v);
  else
    matvec_of<T, F16, Sum>(static_cast<const F16*>(weight.data) + offset, row_stride, rows, v);
}

// Rows of any dtype as the compute dtype.
template <class T>
inline void read_row(const nvsubq_tensor& t, int64_t offset, int64_t count, T* to) {
  constexpr int W = Simd<T>::W;
  int64_t i = 0;
  if (t.dtype == DtypeOf<T>::value) {
    memcpy(to, static_cast<const T*>(t.data) + offset, count * sizeof(T));
    return;
  }
  if constexpr (sizeof(T) == 4)
    for (; i + W <= count; i += W) {
      const uint16_t* halves = static_cast<const uint16_t*>(t.data) + offset + i;
      const VecF v = t.dtype == NVSUBQ_BF16 ? Stored<float, Bf16>::lanes(reinterpret_cast<const Bf16*>(halves))
                                            : Stored<float, F16>::lanes(reinterpret_cast<const F16*>(halves));
      memcpy(to + i, &v, sizeof v);
    }
  for (; i < count; ++i) to[i] = read_one<T>(t, offset + i);
}

template <class T>
inline void write_row(const nvsubq_tensor& t, int64_t offset, int64_t count, const T* from) {
  if (t.dtype == DtypeOf<T>::value) {
    memcpy(static_cast<T*>(t.data) + offset, from, count * sizeof(T));
    return;
  }
  for (int64_t i = 0; i < count; ++i) write_one<T>(t, offset + i, from[i]);
}

}  // namespace
#endif
