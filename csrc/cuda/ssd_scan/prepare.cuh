// `ssd_scan`: Δ of every step, and the running sums of Δ A within each chunk.
#ifndef NVSUBQ_CUDA_SSD_SCAN_PREPARE_CUH
#define NVSUBQ_CUDA_SSD_SCAN_PREPARE_CUH

#include "../launch.h"
#include "common.cuh"

namespace nvsubq::ssd {

__device__ __forceinline__ float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }
__device__ __forceinline__ double softplus(double x) { return x > 20.0 ? x : log1p(exp(x)); }

// A step from what the op is given, and its derivative by that.
template <class T>
struct Step {
  T value, slope;

  __device__ __forceinline__ Step(const Ssd& a, T raw) : value(raw), slope(1) {
    if (a.flags & NVSUBQ_SOFTPLUS) value = softplus(raw), slope = raw > T(20) ? T(1) : sigmoid(raw);
    const T lowest = T(limit(a.lowest)), highest = T(limit(a.highest));
    if (value < lowest) value = lowest, slope = 0;
    if (value > highest) value = highest, slope = 0;
  }
  static __device__ __forceinline__ double limit(int64_t bits) { return __longlong_as_double(bits); }
};

template <class T>
__device__ __forceinline__ T raw_step(const Ssd& a, int64_t row, int64_t cell, int64_t head) {
  const T raw = read_any<T>(a.dt, at(a.dt, row, cell, head));
  return present(a.dt_bias) ? raw + read_any<T>(a.dt_bias, head * a.dt_bias.stride[0]) : raw;
}

constexpr int kPrepareThreads = 128;

// A thread per row, chunk and head.
template <class Math>
__global__ void __launch_bounds__(kPrepareThreads) prepare(const __grid_constant__ Call<Math> call) {
  using T = typename Math::T;
  const Ssd& a = call.a;
  const int64_t task = int64_t(blockIdx.x) * kPrepareThreads + threadIdx.x;
  if (task >= a.batch * call.plan.chunks * a.heads) return;
  const int64_t head = task % a.heads, chunk = task / a.heads % call.plan.chunks;
  const int64_t row = task / a.heads / call.plan.chunks;
  const Steps steps = call.walk.steps(row, call.block(head));
  const double rate = read_any<double>(a.A, head * a.A.stride[0]);
  int64_t place = (row * a.heads + head) * call.plan.steps + chunk * Math::kSide;
  double sum = 0;
#pragma unroll 8
  for (int i = 0; i < Math::kSide; ++i, ++place) {
    const int64_t step = chunk * Math::kSide + i;
    T delta = 0;
    if (step < steps.count) delta = Step<T>(a, raw_step<T>(a, row, steps.cell(step), head)).value;
    sum += double(delta) * rate;
    const T hi = T(sum);
    call.delta[place] = delta, call.hi[place] = hi, call.lo[place] = T(sum - double(hi));
  }
}

template <class Math>
int prepare_all(const Call<Math>& call, cudaStream_t stream) {
  const int64_t tasks = call.a.batch * call.plan.chunks * call.a.heads;
  return launch("ssd_scan's steps", prepare<Math>, dim3(unsigned(ceil_div(tasks, kPrepareThreads))),
                dim3(kPrepareThreads), 0, stream, call);
}

}  // namespace nvsubq::ssd

#endif
