// Functions of vectors beyond those of simd.h: accurate where plain formulas cancel, at the ends of their range too.
#ifndef NVSUBQ_CPU_SIMD_MATH_H
#define NVSUBQ_CPU_SIMD_MATH_H

#include "simd.h"

namespace {

// The coefficients of (2^f - 1)/f: ln2^(n + 1)/(n + 1)!, made by the compiler.
template <class T, int COUNT>
struct PowerSeries {
  T at[COUNT];
  constexpr PowerSeries() : at() {
    double term = 1.0;
    for (int n = 0; n < COUNT; ++n) at[n] = T(term *= kLn2 / (n + 1));
  }
};

// sum_n c_n x^n
template <class T, int COUNT>
inline Vec<T> polynomial(const T (&c)[COUNT], Vec<T> x) {
  Vec<T> sum = splat<T>(c[COUNT - 1]);
#pragma GCC unroll 32
  for (int n = COUNT - 2; n >= 0; --n) sum = sum * x + c[n];
  return sum;
}

template <class T>
inline Vec<T> absolute(Vec<T> x) {
  return x < T(0) ? -x : x;
}

inline VecF sqrtv(VecF x) {
#if defined(__AVX512F__)
  return (VecF)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (VecF)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < Simd<float>::W; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}
inline VecD sqrtv(VecD x) {
#if defined(__AVX512F__)
  return (VecD)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX2__)
  return (VecD)_mm256_sqrt_pd((__m256d)x);
#else
  for (int i = 0; i < Simd<double>::W; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
#endif
}

// exp(x) - 1; at most 2^127 (2^1023 in fp64).
template <class T>
inline Vec<T> expm1v(Vec<T> x) {
  using V = Vec<T>;
  using I = typename Simd<T>::I;
  constexpr PowerSeries<T, sizeof(T) == 4 ? 7 : 13> series;
  constexpr T lowest = Simd<T>::lowest + 1, highest = Simd<T>::highest - 1;  // where 2^n is a normal number
  V y = x * T(kLog2E);
  y = y < lowest ? splat<T>(lowest) : y;
  y = y > highest ? splat<T>(highest) : y;
  const V t = y + Simd<T>::magic, f = y - (t - Simd<T>::magic);  // the nearest integer stands in the low bits of t
  const V power = (V)((I)splat<T>(T(1)) + ((I)t << Simd<T>::mantissa));
  return power * (f * polynomial<T>(series.at, f)) + (power - T(1));
}

// A sigmoid and 1 minus it, both to full relative accuracy.
template <class T>
struct Gate {
  Vec<T> open, shut;
};

template <class T>
inline Gate<T> gate_of(Vec<T> x) {
  constexpr T huge = sizeof(T) == 4 ? T(8e37) : T(8e307);  // infinity times 0 is no number
  Vec<T> e = expv<T>(-x);
  e = e > huge ? splat<T>(huge) : e;
  const Vec<T> open = T(1) / (T(1) + e);
  return {open, e * open};
}

// log of the sigmoid of x.
template <class T>
inline Vec<T> log_sigmoid(Vec<T> x) {
  return (x < T(0) ? x : Vec<T>{}) - log1p_of_unit(expv<T>(x < T(0) ? x : -x));
}

// A function and its derivative.
template <class T>
struct Slope {
  Vec<T> value, slope;
};

// exp(t^2/2) times the normal distribution's tail above t >= 0, over u = 1/(1 + t/K), is close to a polynomial of u
// (fitted at Chebyshev nodes, to 2e-8 and 1e-18), here of w = u scale + shift in [-1, 1].
template <class T>
struct Tail;
template <>
struct Tail<float> {
  static constexpr float scale = 2.46666667f, shift = -1.46666667f, inverse_k = 0.285714286f;
  static constexpr float at[] = {0.2467173f,       0.161652203f,     0.0722279481f,   0.0192654974f,   0.00119903328f,
                                 -0.000960028205f, -0.000175105814f, 6.59310023e-05f, 1.23321594e-05f, -5.10994543e-06f};
};
template <>
struct Tail<double> {
  static constexpr double scale = 2.225, shift = -1.225, inverse_k = 1.0 / 4.5;
  static constexpr double at[] = {
      0.185069975933156297,     0.147574747437588535,     0.0952407317014010999,    0.0486989525719032522,
      0.0187269880165465271,    0.00469522176767266611,   0.000319398766361069779,  -0.000261225732555393878,
      -0.0000824008206021758309, 9.57315274554656686e-6,  9.14066244656710576e-6,   -2.08213367123602499e-7,
      -1.00622836342608187e-6,  8.53321027985806434e-9,   1.20602243469722057e-7,   -6.45382631505017673e-9,
      -1.51989467599602489e-8,  2.30999578012379504e-9,   1.8349642143633597e-9,    -5.56319342953023537e-10,
      -1.82310502144666714e-10, 9.37218263604591429e-11,  1.08382745470073669e-11,  -8.48174303328288618e-12,
      -2.26230969215343794e-14};
};

// x Phi(x): GELU by the error function, with its small values below 0 to full relative accuracy.
template <class T>
inline Slope<T> gelu_erf(Vec<T> x) {
  using V = Vec<T>;
  const V t = absolute<T>(x), e = expv<T>(t * t * T(-0.5)), u = T(1) / (T(1) + t * Tail<T>::inverse_k);
  const V tail = e * u * polynomial<T>(Tail<T>::at, u * Tail<T>::scale + Tail<T>::shift);
  const V below = x < T(0) ? tail : T(1) - tail;
  return {x * below, below + x * e * T(0.39894228040143267794)};
}

// x (1 + tanh(q))/2 = x sigmoid(2 q), q = sqrt(2/pi) (x + 0.044715 x^3).
template <class T>
inline Slope<T> gelu_tanh(Vec<T> x) {
  constexpr T twice = T(1.5957691216057307118), cubic = T(0.044715);
  const Vec<T> square = x * x;
  const Gate<T> g = gate_of<T>(twice * x * (T(1) + cubic * square));
  return {x * g.open, g.open + x * g.open * g.shut * twice * (T(1) + 3 * cubic * square)};
}

}  // namespace
#endif
