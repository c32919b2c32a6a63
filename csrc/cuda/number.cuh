// Real and complex numbers under one set of names: a kernel for both is a template on `Number<T, CX>` and calls `re`,
// `conj`, `number`, which a real number has too.
#ifndef NVSUBQ_CUDA_NUMBER_CUH
#define NVSUBQ_CUDA_NUMBER_CUH

#include "math.cuh"
#include "storage.cuh"

namespace nvsubq {

template <class T>
struct Cx {
  T re, im;
};

template <class T, bool CX>
struct NumberOf {
  using type = T;
};
template <class T>
struct NumberOf<T, true> {
  using type = Cx<T>;
};
template <class T, bool CX>
using Number = typename NumberOf<T, CX>::type;

#define NVSUBQ_BOTH __device__ __forceinline__

NVSUBQ_BOTH float re(float x) { return x; }
NVSUBQ_BOTH double re(double x) { return x; }
NVSUBQ_BOTH float conj(float x) { return x; }
NVSUBQ_BOTH double conj(double x) { return x; }
NVSUBQ_BOTH float inverse(float x) { return 1.0f / x; }
NVSUBQ_BOTH double inverse(double x) { return 1.0 / x; }
NVSUBQ_BOTH bool is_zero(float x) { return x == 0.0f; }
NVSUBQ_BOTH bool is_zero(double x) { return x == 0.0; }
NVSUBQ_BOTH float square_of(float x) { return x * x; }
NVSUBQ_BOTH double square_of(double x) { return x * x; }
NVSUBQ_BOTH float fused(float x, float y, float z) { return fmaf(x, y, z); }
NVSUBQ_BOTH double fused(double x, double y, double z) { return fma(x, y, z); }

template <class T>
NVSUBQ_BOTH T re(Cx<T> x) {
  return x.re;
}
template <class T>
NVSUBQ_BOTH Cx<T> conj(Cx<T> x) {
  return {x.re, -x.im};
}
template <class T>
NVSUBQ_BOTH bool is_zero(Cx<T> x) {
  return x.re == T(0) && x.im == T(0);
}
template <class T>
NVSUBQ_BOTH T square_of(Cx<T> x) {
  return fused(x.re, x.re, x.im * x.im);
}
template <class T>
NVSUBQ_BOTH Cx<T> operator+(Cx<T> x, Cx<T> y) {
  return {x.re + y.re, x.im + y.im};
}
template <class T>
NVSUBQ_BOTH Cx<T> operator-(Cx<T> x, Cx<T> y) {
  return {x.re - y.re, x.im - y.im};
}
template <class T>
NVSUBQ_BOTH Cx<T> operator*(Cx<T> x, Cx<T> y) {
  return {fused(x.re, y.re, -(x.im * y.im)), fused(x.re, y.im, x.im * y.re)};
}
template <class T>
NVSUBQ_BOTH Cx<T> operator*(Cx<T> x, T y) {
  return {x.re * y, x.im * y};
}
// x y + z
template <class T>
NVSUBQ_BOTH Cx<T> fused(Cx<T> x, Cx<T> y, Cx<T> z) {
  return {fused(x.re, y.re, fused(-x.im, y.im, z.re)), fused(x.re, y.im, fused(x.im, y.re, z.im))};
}
template <class T>
NVSUBQ_BOTH Cx<T> inverse(Cx<T> x) {
  const T over = T(1) / square_of(x);
  return {x.re * over, -(x.im * over)};
}

template <class N>
struct PartsOf {
  using type = N;
  static constexpr int count = 1;
  static NVSUBQ_BOTH N of(N real) { return real; }
};
template <class T>
struct PartsOf<Cx<T>> {
  using type = T;
  static constexpr int count = 2;
  static NVSUBQ_BOTH Cx<T> of(T real) { return {real, T(0)}; }
};
// A number of the kind N that is real.
template <class N>
NVSUBQ_BOTH N number(typename PartsOf<N>::type real) {
  return PartsOf<N>::of(real);
}

// Elements at `offset`, which counts numbers, of a tensor of any dtype. It may be real where numbers are complex: then
// it has, and takes, the real parts.
template <class T>
NVSUBQ_BOTH void read_number(const nvsubq_tensor& t, int64_t offset, T* x) {
  *x = read_any<T>(t, offset);
}
template <class T>
NVSUBQ_BOTH void read_number(const nvsubq_tensor& t, int64_t offset, Cx<T>* x) {
  const bool pairs = t.flags & NVSUBQ_COMPLEX;
  x->re = read_any<T>(t, pairs ? 2 * offset : offset);
  x->im = pairs ? read_any<T>(t, 2 * offset + 1) : T(0);
}
template <class T>
NVSUBQ_BOTH void write_number(const nvsubq_tensor& t, int64_t offset, T x) {
  write_any<T>(t, offset, x);
}
template <class T>
NVSUBQ_BOTH void write_number(const nvsubq_tensor& t, int64_t offset, Cx<T> x) {
  const bool pairs = t.flags & NVSUBQ_COMPLEX;
  write_any<T>(t, pairs ? 2 * offset : offset, x.re);
  if (pairs) write_any<T>(t, 2 * offset + 1, x.im);
}
// One number of a state [B, D], or zero where it is absent.
template <class N>
NVSUBQ_BOTH N read_state(const nvsubq_tensor& t, int64_t row, int64_t channel) {
  N x = {};
  if (present(t)) read_number(t, at(t, row, channel), &x);
  return x;
}
template <class N>
NVSUBQ_BOTH void write_state(const nvsubq_tensor& t, int64_t row, int64_t channel, N x) {
  if (present(t)) write_number(t, at(t, row, channel), x);
}

// exp(i x y). The product is reduced in fp64, where that of two floats is exact: a phase of hundreds of radians loses
// no digit.
NVSUBQ_BOTH Cx<float> unit_phase(float x, float y) {
  const double halves = double(x) * double(y) * 0.31830988618379067154;
  Cx<float> z;
  sincospif(float(halves - 2.0 * rint(0.5 * halves)), &z.im, &z.re);
  return z;
}
NVSUBQ_BOTH Cx<double> unit_phase(double x, double y) {
  const double phase = x * y, rest = fma(x, y, -phase);
  Cx<double> z;
  sincos(phase, &z.im, &z.re);
  return {z.re - rest * z.im, z.im + rest * z.re};
}
// exp(x y) for real x.
NVSUBQ_BOTH float power_of(float x, float y) { return expf(x * y); }
NVSUBQ_BOTH double power_of(double x, double y) { return exp(x * y); }
template <class T>
NVSUBQ_BOTH Cx<T> power_of(T x, Cx<T> y) {
  return unit_phase(x, y.im) * power_of(x, y.re);
}

// A function and its derivative.
template <class N>
struct Slope {
  N value, slope;
};

// (e^z - 1)/z and its derivative, by their series near 0; e is e^z.
template <class T, class N>
NVSUBQ_BOTH Slope<N> expm1_over(N z, N e) {
  constexpr int kTerms = sizeof(T) == 4 ? 9 : 15;
  if (square_of(z) >= T(0.25)) {
    const N over = inverse(z), value = (e - number<N>(T(1))) * over;
    return {value, (e - value) * over};
  }
  T inverses[kTerms];  // 1/(k + 1)!
  T factorial = 1;
  for (int k = 0; k < kTerms; ++k) inverses[k] = (factorial /= T(k + 1));
  N series = number<N>(inverses[kTerms - 1]), slope = {};
#pragma unroll
  for (int k = kTerms - 2; k >= 0; --k) {
    slope = fused(slope, z, series);
    series = fused(series, z, number<N>(inverses[k]));
  }
  return {series, slope};
}

// 1 - |a|^2 without cancellation.
template <class T>
NVSUBQ_BOTH T one_minus_square(T a) {
  return (T(1) - a) * (T(1) + a);
}
template <class T>
NVSUBQ_BOTH T one_minus_square(Cx<T> a) {
  const T x = fabs(a.re), y = fabs(a.im), p = x > y ? x : y, q = x > y ? y : x;
  const T less = T(1) - p, more = T(1) + p, product = less * more;
  const T rest = fused(less, more, -product) + less * (p - (more - T(1)));
  return fused(-q, q, product) + rest;
}

// The square root of what is not negative, and its derivative, at most 1000: it is infinite where the decay is 1.
template <class T>
NVSUBQ_BOTH Slope<T> bounded_root(T x) {
  if (!(x >= T(0))) return {x != x ? x : T(0), T(0)};
  const T root = sqrt(x), twice = T(2) * root, low = T(1e-3);
  return {root, T(1) / (twice < low ? low : twice)};
}

}  // namespace nvsubq

#endif
