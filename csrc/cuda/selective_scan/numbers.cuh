// Real and complex numbers of the general kernels, and the functions of a discretization.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_NUMBERS_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_NUMBERS_CUH

#include <type_traits>

#include "../storage.cuh"

namespace nvsubq::selective {

template <class T>
struct Cx {
  T re, im;
};

template <class T, bool CX>
using Number = std::conditional_t<CX, Cx<T>, T>;

template <class T>
__device__ __forceinline__ Cx<T> operator+(Cx<T> a, Cx<T> b) {
  return {a.re + b.re, a.im + b.im};
}
template <class T>
__device__ __forceinline__ Cx<T> operator-(Cx<T> a, Cx<T> b) {
  return {a.re - b.re, a.im - b.im};
}
template <class T>
__device__ __forceinline__ Cx<T> operator*(Cx<T> a, Cx<T> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
template <class T>
__device__ __forceinline__ Cx<T> operator*(Cx<T> a, T b) {
  return {a.re * b, a.im * b};
}

__device__ __forceinline__ float conj(float x) { return x; }
__device__ __forceinline__ double conj(double x) { return x; }
template <class T>
__device__ __forceinline__ Cx<T> conj(Cx<T> x) {
  return {x.re, -x.im};
}
__device__ __forceinline__ float re(float x) { return x; }
__device__ __forceinline__ double re(double x) { return x; }
template <class T>
__device__ __forceinline__ T re(Cx<T> x) {
  return x.re;
}
__device__ __forceinline__ float part(float x, int) { return x; }
__device__ __forceinline__ double part(double x, int) { return x; }
template <class T>
__device__ __forceinline__ T part(Cx<T> x, int i) {
  return i ? x.im : x.re;
}

__device__ __forceinline__ float inverse(float x) { return 1.0f / x; }
__device__ __forceinline__ double inverse(double x) { return 1.0 / x; }
template <class T>
__device__ __forceinline__ Cx<T> inverse(Cx<T> x) {
  // Scaled by the larger part, whose square may leave the range.
  const T size = fmax(fabs(x.re), fabs(x.im)), over = T(1) / size;
  const T a = x.re * over, b = x.im * over, norm = over / (a * a + b * b);
  return {a * norm, -b * norm};
}

template <class T, bool CX>
__device__ __forceinline__ Number<T, CX> real_number(T x) {
  if constexpr (CX)
    return {x, T(0)};
  else
    return x;
}

// exp(i x y): the product is taken exactly, as a phase of many turns needs.
__device__ __forceinline__ Cx<float> unit_phase(float x, float y) {
  const float p = x * y;
  Cx<float> unit;
  if (fabsf(p) < 512.0f) {
    const float rest = fmaf(x, y, -p);
    float sine, cosine;
    sincosf(p, &sine, &cosine);
    return {fmaf(-rest, sine, cosine), fmaf(rest, cosine, sine)};
  }
  double sine, cosine;
  sincos(double(x) * double(y), &sine, &cosine);
  unit.re = float(cosine), unit.im = float(sine);
  return unit;
}
__device__ __forceinline__ Cx<double> unit_phase(double x, double y) {
  Cx<double> unit;
  sincos(x * y, &unit.im, &unit.re);
  return unit;
}

// exp(x y) with a real x.
__device__ __forceinline__ float exp_of(float x, float y) { return expf(x * y); }
__device__ __forceinline__ double exp_of(double x, double y) { return exp(x * y); }
template <class T>
__device__ __forceinline__ Cx<T> exp_of(T x, Cx<T> y) {
  return unit_phase(x, y.im) * T(exp(x * y.re));
}

// (exp(z) - 1)/z and its derivative, from z and e = exp(z): a series where the quotients would lose digits.
template <class T>
__device__ __forceinline__ bool is_near(T z) {
  return fabs(z) < T(0.5);
}
template <class T>
__device__ __forceinline__ bool is_near(Cx<T> z) {
  return z.re * z.re + z.im * z.im < T(0.25);
}
template <class T, bool CX>
__device__ __forceinline__ void expm1_over(Number<T, CX> z, Number<T, CX> e, Number<T, CX>* value,
                                           Number<T, CX>* slope) {
  using Num = Number<T, CX>;
  if (!is_near(z)) {
    const Num over = inverse(z);
    *value = (e - real_number<T, CX>(T(1))) * over;
    *slope = (e - *value) * over;
    return;
  }
  constexpr int terms = sizeof(T) == 8 ? 17 : 10;
  Num series = real_number<T, CX>(T(0)), series_slope = series;
  // 1/(k+1)! from the last term on: Horner's scheme with each coefficient the next one times k + 2.
  double last = 1;
#pragma unroll
  for (int k = 2; k <= terms; ++k) last /= k;
#pragma unroll
  for (int k = terms - 1; k >= 0; --k) {
    series_slope = series_slope * z + series;
    series = series * z + real_number<T, CX>(T(last));
    last *= k + 1;
  }
  *value = series, *slope = series_slope;
}

}  // namespace nvsubq::selective

#endif
