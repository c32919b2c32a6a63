// Complex numbers as two vectors, and the functions that kernels for real and complex numbers share: such a kernel is
// a template on `Number<T, CX>` and calls `re`, `conj`, `part`, which a real vector has too.
#ifndef NVSUBQ_CPU_COMPLEX_H
#define NVSUBQ_CPU_COMPLEX_H

#include "simd.h"

namespace {

template <class T>
struct Cx {
  Vec<T> re, im;
};

template <class T, bool CX>
struct NumberOf {
  using type = Vec<T>;
};
template <class T>
struct NumberOf<T, true> {
  using type = Cx<T>;
};
template <class T, bool CX>
using Number = typename NumberOf<T, CX>::type;

inline VecF re(VecF x) { return x; }
inline VecD re(VecD x) { return x; }
inline VecF conj(VecF x) { return x; }
inline VecD conj(VecD x) { return x; }
inline VecF& part(VecF& x, int) { return x; }
inline VecD& part(VecD& x, int) { return x; }
inline VecF inverse(VecF x) { return 1.0f / x; }
inline VecD inverse(VecD x) { return 1.0 / x; }

template <class T>
inline Vec<T> re(Cx<T> x) {
  return x.re;
}
template <class T>
inline Cx<T> conj(Cx<T> x) {
  return {x.re, -x.im};
}
template <class T>
inline Vec<T>& part(Cx<T>& x, int i) {
  return i ? x.im : x.re;
}
template <class T>
inline Cx<T> operator+(Cx<T> x, Cx<T> y) {
  return {x.re + y.re, x.im + y.im};
}
template <class T>
inline Cx<T> operator-(Cx<T> x, Cx<T> y) {
  return {x.re - y.re, x.im - y.im};
}
template <class T>
inline Cx<T> operator*(Cx<T> x, Cx<T> y) {
  return {x.re * y.re - x.im * y.im, x.re * y.im + x.im * y.re};
}
template <class T>
inline Cx<T> operator*(Cx<T> x, Vec<T> y) {
  return {x.re * y, x.im * y};
}
template <class T>
inline Cx<T> inverse(Cx<T> x) {
  const Vec<T> over = T(1) / (x.re * x.re + x.im * x.im);
  return {x.re * over, -(x.im * over)};
}

template <class T, bool CX>
inline Number<T, CX> number(Vec<T> real) {
  Number<T, CX> x = {};
  part(x, 0) = real;
  return x;
}
// The same number in all lanes; parts of a complex one lie side by side.
template <class T, bool CX>
inline Number<T, CX> broadcast(const T* from) {
  Number<T, CX> x = {};
  for (int i = 0; i < (CX ? 2 : 1); ++i) part(x, i) = splat<T>(from[i]);
  return x;
}

// Whether a condition holds in every lane.
template <class I>
inline bool all(I condition) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)condition) == 0xffff;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8((__m256i)condition) == -1;
#else
  for (unsigned i = 0; i < sizeof condition / sizeof condition[0]; ++i)
    if (!condition[i]) return false;
  return true;
#endif
}

// x y + z, rounded once on every machine.
inline VecF fused(VecF x, VecF y, VecF z) {
#if defined(__AVX512F__)
  return (VecF)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z);
#elif defined(__AVX2__)
  return (VecF)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)z);
#else
  for (int i = 0; i < Simd<float>::W; ++i) z[i] = __builtin_fmaf(x[i], y[i], z[i]);
  return z;
#endif
}
inline VecD fused(VecD x, VecD y, VecD z) {
#if defined(__AVX512F__)
  return (VecD)_mm512_fmadd_pd((__m512d)x, (__m512d)y, (__m512d)z);
#elif defined(__AVX2__)
  return (VecD)_mm256_fmadd_pd((__m256d)x, (__m256d)y, (__m256d)z);
#else
  for (int i = 0; i < Simd<double>::W; ++i) z[i] = __builtin_fma(x[i], y[i], z[i]);
  return z;
#endif
}

// pi/2 in three pieces of the whole precision, and the largest phase that they reduce without loss.
template <class T>
struct HalfPi;
template <>
struct HalfPi<float> {
  static constexpr float high = 1.57079637f, middle = -4.37113883e-8f, low = -1.71512451e-15f, limit = 1e6f;
};
template <>
struct HalfPi<double> {
  static constexpr double high = 1.5707963267948966, middle = 6.123233995736766e-17, low = -1.4973849048591698e-33,
                          limit = 1e9;
};

template <class T, int FIRST, int TERMS>
inline Vec<T> alternating(Vec<T> z) {  // 1/FIRST! - z/(FIRST + 2)! + z^2/(FIRST + 4)! - ...
  T c[TERMS], factorial = 1;
  for (int k = 2; k <= FIRST; ++k) factorial *= T(k);
  for (int i = 0; i < TERMS; ++i) {
    c[i] = (i % 2 ? T(-1) : T(1)) / factorial;
    factorial *= T(FIRST + 2 * i + 1) * T(FIRST + 2 * i + 2);
  }
  Vec<T> sum = splat<T>(c[TERMS - 1]);
#pragma GCC unroll 16
  for (int i = TERMS - 2; i >= 0; --i) sum = sum * z + c[i];
  return sum;
}

// exp(i x y). The product is reduced with both its halves: a phase of hundreds of radians loses no digit.
template <class T>
inline Cx<T> unit_phase(Vec<T> x, Vec<T> y) {
  using V = Vec<T>;
  using I = typename Simd<T>::I;
  using P = HalfPi<T>;
  const V phase = x * y, rest = fused(x, y, -phase);
  if (__builtin_expect(!all((I)((phase <= P::limit) & (phase >= -P::limit))), 0)) {
    Cx<T> z = {};
    for (int i = 0; i < Simd<T>::W; ++i) {
      const double exact = double(x[i]) * double(y[i]);
      z.re[i] = T(__builtin_cos(exact)), z.im[i] = T(__builtin_sin(exact));
    }
    return z;
  }
  const V t = phase * T(0.63661977236758134308) + Simd<T>::magic;  // the nearest integer stands in its low bits
  const V k = Simd<T>::magic - t;
  const V r = fused(k, splat<T>(P::low), fused(k, splat<T>(P::middle), fused(k, splat<T>(P::high), phase))) + rest;
  const V z = r * r;
  constexpr bool single = sizeof(T) == 4;
  const V sine = r - r * z * alternating<T, 3, single ? 4 : 8>(z);
  const V cosine = T(1) - z * (T(0.5) - z * alternating<T, 4, single ? 4 : 8>(z));
  const I quadrant = (I)t;
  constexpr int to_sign = sizeof(T) * 8 - 2;
  const auto odd = (quadrant & 1) != 0;
  return {(V)((I)(odd ? sine : cosine) ^ (((quadrant + 1) & 2) << to_sign)),
          (V)((I)(odd ? cosine : sine) ^ ((quadrant & 2) << to_sign))};
}

// exp(x y) for real x.
inline VecF exp_of(VecF x, VecF y) { return expv<float>(x * y); }
inline VecD exp_of(VecD x, VecD y) { return expv<double>(x * y); }
template <class T>
inline Cx<T> exp_of(Vec<T> x, Cx<T> y) {
  return unit_phase<T>(x, y.im) * expv<T>(x * y.re);
}

// As for real numbers.
template <class T>
inline void expm1_over(Cx<T> z, Cx<T> e, Cx<T>* value, Cx<T>* slope) {
  using V = Vec<T>;
  const auto near = z.re * z.re + z.im * z.im < T(0.25);
  const V zero = {}, one = splat<T>(T(1));
  const Cx<T> over = inverse(Cx<T>{near ? one : z.re, near ? zero : z.im});
  const Cx<T> small = {near ? z.re : zero, near ? z.im : zero};
  Cx<T> series = {}, series_slope = {};
  T factorial = 1;
  T inverses[Simd<T>::terms];
  for (int k = 0; k < Simd<T>::terms; ++k) inverses[k] = (factorial /= T(k + 1));  // 1/(k+1)!
  for (int k = Simd<T>::terms - 1; k >= 0; --k) {
    series_slope = series_slope * small + series;
    series = series * small;
    series.re = series.re + inverses[k];
  }
  const Cx<T> far = Cx<T>{e.re - T(1), e.im} * over, far_slope = (e - far) * over;
  *value = {near ? series.re : far.re, near ? series.im : far.im};
  *slope = {near ? series_slope.re : far_slope.re, near ? series_slope.im : far_slope.im};
}

}  // namespace
#endif
