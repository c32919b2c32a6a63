// Vectors of this instruction set, and the functions of them that the kernels need. Everything here has internal
// linkage: were one copy shared between files, a machine without AVX-512 could meet the AVX-512 one.
#ifndef NVSUBQ_CPU_SIMD_H
#define NVSUBQ_CPU_SIMD_H

#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define NVSUBQ_BYTES 64
#elif defined(__AVX2__)
#define NVSUBQ_BYTES 32
#else
#define NVSUBQ_BYTES 16
#endif

namespace {

typedef float VecF __attribute__((vector_size(NVSUBQ_BYTES)));
typedef double VecD __attribute__((vector_size(NVSUBQ_BYTES)));
typedef int32_t VecI __attribute__((vector_size(NVSUBQ_BYTES)));
typedef int64_t VecL __attribute__((vector_size(NVSUBQ_BYTES)));

template <class T>
struct Simd;
template <>
struct Simd<float> {
  using V = VecF;
  using I = VecI;
  static constexpr int W = NVSUBQ_BYTES / 4, mantissa = 23, terms = 9;
  static constexpr float magic = 12582912.0f, lowest = -127.0f, highest = 128.0f;
};
template <>
struct Simd<double> {
  using V = VecD;
  using I = VecL;
  static constexpr int W = NVSUBQ_BYTES / 8, mantissa = 52, terms = 16;
  static constexpr double magic = 6755399441055744.0, lowest = -1023.0, highest = 1024.0;
};
template <class T>
using Vec = typename Simd<T>::V;

template <class T>
inline Vec<T> splat(T x) {
  return x - Vec<T>{};  // x + 0 would turn -0 into 0
}

constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.69314718055994530942;

// 2^f on [-1/2, 1/2] as 1 + f q(f): exactly 1 at 0, since a decay close to 1 acts over many cells.
inline VecF exp2_core(VecF f) {
  VecF q = f * 0.000154531629f + 0.00133908634f;
  q = q * f + 0.00961808256f;
  q = q * f + 0.0555035711f;
  q = q * f + 0.240226508f;
  q = q * f + 0.693147188f;
  return q * f + 1.0f;
}
inline VecD exp2_core(VecD f) {
  VecD q = f * 4.45496059818651839e-10 + 7.0725859492692237e-9;
  q = q * f + 1.01780624458457735e-7;
  q = q * f + 1.32154425879216897e-6;
  q = q * f + 0.0000152527338298361184;
  q = q * f + 0.000154035304417360502;
  q = q * f + 0.00133335581464169353;
  q = q * f + 0.00961812910760688853;
  q = q * f + 0.0555041086648215943;
  q = q * f + 0.240226506959100982;
  q = q * f + 0.693147180559945309;
  return q * f + 1.0;
}
#if defined(__AVX512F__)
inline VecF exp2v(VecF x) {
  const __m512 f = _mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);  // 0 at infinity
  return (VecF)_mm512_scalef_ps((__m512)exp2_core((VecF)f), (__m512)(x - (VecF)f));
}
inline VecD exp2v(VecD x) {
  const __m512d f = _mm512_reduce_pd((__m512d)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return (VecD)_mm512_scalef_pd((__m512d)exp2_core((VecD)f), (__m512d)(x - (VecD)f));
}
#else
#if defined(__AVX2__)
// The second operand comes through where one is NaN.
inline VecF clamp(VecF x, float low, float high) {
  return (VecF)_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), (__m256)x));
}
inline VecD clamp(VecD x, double low, double high) {
  return (VecD)_mm256_min_pd(_mm256_set1_pd(high), _mm256_max_pd(_mm256_set1_pd(low), (__m256d)x));
}
#else
template <class V, class T>
inline V clamp(V x, T low, T high) {
  const V lows = low - V{}, highs = high - V{};
  x = x < lows ? lows : x;
  return x > highs ? highs : x;
}
#endif
template <class V, class S>
inline V exp2_by_bits(V x) {
  using I = typename S::I;
  x = clamp(x, S::lowest, S::highest);
  const V t = x + S::magic;  // the nearest integer stands in the low bits of t
  const V p = exp2_core(x - (t - S::magic));
  return (V)((I)p + ((I)t << S::mantissa));
}
inline VecF exp2v(VecF x) { return exp2_by_bits<VecF, Simd<float>>(x); }
inline VecD exp2v(VecD x) { return exp2_by_bits<VecD, Simd<double>>(x); }
#endif

template <class T>
inline Vec<T> expv(Vec<T> x) {
  return exp2v(x * T(kLog2E));
}

template <class T>
inline Vec<T> sigmoid(Vec<T> x) {
  return T(1) / (T(1) + expv<T>(-x));
}

// log(1 + e) on [0, 1], as exact as its rounding also where e is small.
inline VecF log1p_of_unit(VecF e) {
  VecF q = e * 0.0053648227f - 0.030065786f;
  q = q * e + 0.079204522f;
  q = q * e - 0.13753802f;
  q = q * e + 0.19153655f;
  q = q * e - 0.24857163f;
  q = q * e + 0.33321324f;
  q = q * e - 0.49999648f;
  return e * e * q + e;
}
inline VecD log1p_of_unit(VecD e) {
  const VecD s = e / (2.0 + e), s2 = s * s;  // 2 artanh(s), s <= 1/3
  constexpr int terms = 17;
  VecD sum = splat<double>(1.0 / (2 * terms + 1));
#pragma GCC unroll 32
  for (int k = terms - 1; k >= 0; --k) sum = sum * s2 + 1.0 / (2 * k + 1);
  return 2.0 * s * sum;
}

// log(1 + exp(x)), and x itself above 20, as torch has it.
template <class T>
inline Vec<T> softplus(Vec<T> x) {
  const Vec<T> y = log1p_of_unit(expv<T>(x < T(0) ? x : -x)) + (x > T(0) ? x : Vec<T>{});
  return x > T(20) ? x : y;
}

// (exp(z) - 1)/z and its derivative, from z and exp(z); by series near 0, where the difference cancels.
template <class T>
inline void expm1_over(Vec<T> z, Vec<T> e, Vec<T>* value, Vec<T>* slope) {
  using V = Vec<T>;
  const auto near = (z < T(0.5)) & (z > T(-0.5));
  const V safe = near ? splat<T>(T(1)) : z, small = near ? z : V{};
  V series = V{}, series_slope = V{};
  T factorial = 1;
  T inverse[Simd<T>::terms];
  for (int k = 0; k < Simd<T>::terms; ++k) inverse[k] = (factorial /= T(k + 1));  // 1/(k+1)!
#pragma GCC unroll 32
  for (int k = Simd<T>::terms - 1; k >= 0; --k) {
    series_slope = series_slope * small + series;
    series = series * small + inverse[k];
  }
  const V far = (e - T(1)) / safe;
  *value = near ? series : far;
  *slope = near ? series_slope : (e - far) / safe;
}

template <class T>
inline T sum_lanes(Vec<T> x) {
  constexpr int W = Simd<T>::W;
  T a[W];
  memcpy(a, &x, sizeof x);
#pragma GCC unroll 8
  for (int half = W / 2; half > 0; half /= 2)
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i) a[i] += a[i + half];
  return a[0];
}

#if defined(__AVX512F__)
template <>
inline float sum_lanes<float>(VecF x) {
  return _mm512_reduce_add_ps((__m512)x);
}
template <>
inline double sum_lanes<double>(VecD x) {
  return _mm512_reduce_add_pd((__m512d)x);
}
#endif

// The sums of the lanes of four vectors.
#if defined(__AVX2__)
inline void sum_lanes_of_4(VecF a, VecF b, VecF c, VecF d, float* to) {
#if defined(__AVX512F__)
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b), _mm512_unpackhi_ps((__m512)a, (__m512)b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps((__m512)c, (__m512)d), _mm512_unpackhi_ps((__m512)c, (__m512)d));
  const __m512 sums = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));  // by quarter
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1));
#else
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps((__m256)a, (__m256)b), _mm256_unpackhi_ps((__m256)a, (__m256)b));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps((__m256)c, (__m256)d), _mm256_unpackhi_ps((__m256)c, (__m256)d));
  const __m256 half = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
#endif
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
#else
inline void sum_lanes_of_4(VecF a, VecF b, VecF c, VecF d, float* to) {
  to[0] = sum_lanes<float>(a), to[1] = sum_lanes<float>(b), to[2] = sum_lanes<float>(c), to[3] = sum_lanes<float>(d);
}
#endif

}  // namespace
#endif
