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

}  // namespace nvsubq

#endif
