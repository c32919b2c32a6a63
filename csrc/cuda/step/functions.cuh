// Functions of one number in a step, which has few enough of them that none needs to be approximate.
#ifndef NVSUBQ_CUDA_STEP_FUNCTIONS_CUH
#define NVSUBQ_CUDA_STEP_FUNCTIONS_CUH

#include "../number.cuh"

namespace nvsubq {

template <class T>
__device__ __forceinline__ T softplus(T x) {
  return x > T(20) ? x : log1p(exp(x));
}
template <class T>
__device__ __forceinline__ T sigmoid_exact(T x) {
  return T(1) / (T(1) + exp(-x));
}
template <class T>
__device__ __forceinline__ T silu_exact(T x) {
  return x * sigmoid_exact(x);
}

// The sum over `lanes` lanes, a power of two, in each of them; the same bits in all.
template <int lanes, class T>
__device__ __forceinline__ T sum_over(T x) {
#pragma unroll
  for (int apart = lanes / 2; apart; apart /= 2) x += __shfl_xor_sync(0xffffffffu, x, apart);
  return x;
}

}  // namespace nvsubq

#endif
