// `ssd_scan`, backward: the gradients of A, dt_bias and D, from parts of each row and chunk in a fixed order.
#ifndef NVSUBQ_CUDA_SSD_SCAN_SUMS_CUH
#define NVSUBQ_CUDA_SSD_SCAN_SUMS_CUH

#include "../launch.h"
#include "common.cuh"

namespace nvsubq::ssd {

constexpr int kSumThreads = 512, kSumLanes = 32;

// The sum of what a block's threads have, of those whose numbers are alike modulo `step`; in the first `step` threads.
__device__ inline double sum_threads(double* shared, double x, int step) {
  shared[threadIdx.x] = x;
  __syncthreads();
  for (int half = kSumThreads / 2; half >= step; half /= 2) {
    if (int(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  const double sum = shared[threadIdx.x % step];
  __syncthreads();
  return sum;
}

// A block per head.
template <class Math>
__global__ void __launch_bounds__(kSumThreads) sums(const __grid_constant__ Call<Math> call) {
  __shared__ double shared[kSumThreads];
  const Ssd& a = call.a;
  const int64_t head = blockIdx.x, parts = a.batch * call.plan.chunks;
  double by_rate = 0, by_bias = 0;
  for (int64_t i = threadIdx.x; i < parts; i += kSumThreads)
    by_rate += call.by_rate[i * a.heads + head], by_bias += call.by_bias[i * a.heads + head];
  by_rate = sum_threads(shared, by_rate, 1);
  by_bias = sum_threads(shared, by_bias, 1);
  if (!threadIdx.x) {
    write_any<double>(a.d_A, head * a.d_A.stride[0], by_rate);
    if (present(a.d_dt_bias)) write_any<double>(a.d_dt_bias, head * a.d_dt_bias.stride[0], by_bias);
  }
  if (!present(a.d_D)) return;
  const bool by_lane = a.d_D.stride[1] != 0;
  const int lane = threadIdx.x % kSumLanes;
  double all = 0;
  for (int64_t first = 0; first < a.head_width; first += kSumLanes) {
    double sum = 0;
    if (first + lane < a.head_width)
#pragma unroll 8
      for (int64_t i = threadIdx.x / kSumLanes; i < parts; i += kSumThreads / kSumLanes)
        sum += call.by_skip[(i * a.heads + head) * a.head_width + first + lane];
    sum = sum_threads(shared, sum, kSumLanes);
    all += sum;
    if (by_lane && int(threadIdx.x) < kSumLanes && first + lane < a.head_width)
      write_any<double>(a.d_D, at(a.d_D, head, first + lane), sum);
  }
  if (by_lane) return;
  all = sum_threads(shared, int(threadIdx.x) < kSumLanes ? all : 0.0, 1);
  if (!threadIdx.x) write_any<double>(a.d_D, at(a.d_D, head, 0), all);
}

template <class Math>
int sums_of(const Call<Math>& call, cudaStream_t stream) {
  return launch("ssd_scan's sums", sums<Math>, dim3(unsigned(call.a.heads)), dim3(kSumThreads), 0, stream, call);
}

}  // namespace nvsubq::ssd

#endif
