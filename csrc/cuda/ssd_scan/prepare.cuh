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

constexpr int kPreparedHeads = 4;

// A block per row, chunk and some heads, a thread per step.
template <class Math>
__global__ void __launch_bounds__(kPreparedHeads* Math::kSide) prepare(const __grid_constant__ Call<Math> call) {
  using T = typename Math::T;
  constexpr int S = Math::kSide;
  __shared__ double sums[2][S][kPreparedHeads];
  const Ssd& a = call.a;
  const int64_t groups = ceil_div(a.heads, kPreparedHeads);
  const int which = threadIdx.x % kPreparedHeads, i = threadIdx.x / kPreparedHeads;
  const int64_t head = blockIdx.x % groups * kPreparedHeads + which, task = blockIdx.x / groups;
  const int64_t chunk = task % call.plan.chunks, row = task / call.plan.chunks, step = chunk * S + i;
  const bool there = head < a.heads;
  T delta = 0;
  double sum = 0;
  if (there) {
    const Steps steps = call.walk.steps(row, call.block(head));
    if (step < steps.count) delta = Step<T>(a, raw_step<T>(a, row, steps.cell(step), head)).value;
    sum = double(delta) * read_any<double>(a.A, head * a.A.stride[0]);
  }
  // A running sum, doubling its reach each time.
#pragma unroll
  for (int reach = 1, turn = 0; reach < S; reach *= 2, turn ^= 1) {
    sums[turn][i][which] = sum;
    __syncthreads();
    if (i >= reach) sum += sums[turn][i - reach][which];
  }
  if (!there) return;
  const int64_t place = (row * a.heads + head) * call.plan.steps + step;
  const T hi = T(sum);
  call.delta[place] = delta, call.hi[place] = hi, call.lo[place] = T(sum - double(hi));
}

template <class Math>
int prepare_all(const Call<Math>& call, cudaStream_t stream) {
  const int64_t blocks = call.a.batch * call.plan.chunks * ceil_div(call.a.heads, kPreparedHeads);
  return launch("ssd_scan's steps", prepare<Math>, dim3(unsigned(blocks)), dim3(kPreparedHeads * Math::kSide), 0,
                stream, call);
}

}  // namespace nvsubq::ssd

#endif
