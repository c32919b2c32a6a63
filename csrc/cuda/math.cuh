// Functions of one number in either compute dtype. fp32 is good to a few 1e-7 over all arguments.
#ifndef NVSUBQ_CUDA_MATH_CUH
#define NVSUBQ_CUDA_MATH_CUH

namespace nvsubq {

__device__ __forceinline__ float exp_of(float x) { return __expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
__device__ __forceinline__ double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

template <class T>
__device__ __forceinline__ T silu(T x) {
  return x * sigmoid(x);
}
// d silu(x) / dx
template <class T>
__device__ __forceinline__ T silu_slope(T x) {
  const T gate = sigmoid(x);
  return gate * (T(1) + x * (T(1) - gate));
}

// Single instructions of the special function unit, good to a few units of the last place.
__device__ __forceinline__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// The same, always evaluated: no branch is made around it where an option or a comparison selects its result.
__device__ __forceinline__ float exp2_always(float x) {
  float y;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ double reciprocal(double x) { return 1.0 / x; }
__device__ __forceinline__ float root_of(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ double root_of(double x) { return sqrt(x); }

// log(1 + e) for e in 0 .. 1, with a relative error of 3e-7.
__device__ __forceinline__ float log1p_of(float e) {
  float sum = -0.00853918027f;
  sum = fmaf(sum, e, 0.0440895334f), sum = fmaf(sum, e, -0.10768158f), sum = fmaf(sum, e, 0.177452326f);
  sum = fmaf(sum, e, -0.244954601f), sum = fmaf(sum, e, 0.332754791f), sum = fmaf(sum, e, -0.499974042f);
  return e * fmaf(sum, e, 0.999999821f);
}
__device__ __forceinline__ double log1p_of(double e) { return log1p(e); }

}  // namespace nvsubq

#endif
