// One token of Mamba between x_proj and the projection out: dt_proj, the states, the gate.
//
// kShared lanes share a channel. What lies in weights and states is fetched before the kernel waits for x_proj.
#ifndef NVSUBQ_CUDA_MAMBA_STEP_SCAN_CUH
#define NVSUBQ_CUDA_MAMBA_STEP_SCAN_CUH

#include "../step/functions.cuh"
#include "../step/launch.cuh"

namespace nvsubq::mamba {

constexpr int kShared = 16;
constexpr int kRanks = 4;  // weights of dt_proj that a lane fetches ahead

template <class T>
struct Scan {
  nvsubq_tensor dt_weight, dt_bias, A_log, D, timesteps, state;
  int64_t width, states, rank, discretization;
  const T *low, *u, *xz;  // [B][R + 2N], [B][D], [B][2D], whose second half is z
  T* y;                   // [B][D]
};

template <class T>
struct Rates {
  T delta, delta_a, x;
};

// The next state, from the one before, A, and B.
template <class T>
__device__ __forceinline__ T advance(T old, T A, T B, Rates<T> r, int64_t discretization) {
  T decay, factor;
  if (discretization == NVSUBQ_BILINEAR) {
    const T half = r.delta_a * T(0.5) * A;
    decay = (T(1) + half) / (T(1) - half);
    factor = r.delta / (T(1) - r.delta * T(0.5) * A);
  } else {
    decay = exp(r.delta_a * A);
    factor = discretization == NVSUBQ_DIRAC ? T(1) : r.delta;
    if (discretization == NVSUBQ_ZOH) {
      const T exponent = r.delta * A;
      factor *= expm1_over<T, T>(exponent, exp(exponent)).value;
    }
  }
  return fused(decay, old, factor * (r.x * B));
}

template <class T, class S>
__global__ void __launch_bounds__(kStepThreads) scan_kernel(Scan<T> a) {
  let_the_next_start();
  const int lane = threadIdx.x % kShared;
  const int64_t b = blockIdx.y, group = (int64_t(blockIdx.x) * kStepThreads + threadIdx.x) / kShared;
  const bool valid = group < a.width;
  const int64_t channel = valid ? group : a.width - 1;  // its lanes take part in sums, and write nothing
  const S* weight = static_cast<const S*>(a.dt_weight.data) + channel * a.rank;
  T* state = static_cast<T*>(a.state.data) + (b * a.width + channel) * a.states;
  const bool holds = lane < a.states;
  S weights[kRanks];
#pragma unroll
  for (int i = 0; i < kRanks; ++i)
    if (lane + i * kShared < a.rank) weights[i] = weight[lane + i * kShared];
  const T first = holds ? state[lane] : T(0);
  const T first_log = holds ? read_any<T>(a.A_log, channel * a.states + lane) : T(0);
  const T bias = read_any<T>(a.dt_bias, channel), skip = read_any<T>(a.D, channel);
  wait_for_the_last();

  const T* low = a.low + b * (a.rank + 2 * a.states);
  const T x = a.u[b * a.width + channel], z = a.xz[(2 * b + 1) * a.width + channel];
  T sum = T(0);
#pragma unroll
  for (int i = 0; i < kRanks; ++i)
    if (lane + i * kShared < a.rank) sum = fused(widen<T>(weights[i]), low[lane + i * kShared], sum);
  for (int64_t r = lane + kRanks * kShared; r < a.rank; r += kShared) sum = fused(widen<T>(weight[r]), low[r], sum);
  Rates<T> rates;
  rates.x = x;
  rates.delta = rates.delta_a = softplus(sum_over<kShared>(sum) + bias);
  if (present(a.timesteps)) rates.delta_a = read_any<T>(a.timesteps, b * a.timesteps.stride[0]) * softplus(bias);

  const T *B = low + a.rank, *C = B + a.states;
  T y = T(0);
  for (int64_t n = lane; n < a.states; n += kShared) {
    const bool fetched = n == lane;
    const T old = fetched ? first : state[n];
    const T A = -exp(fetched ? first_log : read_any<T>(a.A_log, channel * a.states + n));
    const T now = advance(old, A, B[n], rates, a.discretization);
    if (valid) state[n] = now;
    y = fused(C[n], now, y);
  }
  y = sum_over<kShared>(y);
  if (valid && lane == 0) a.y[b * a.width + channel] = fused(skip, x, y) * silu_exact(z);
}

}  // namespace nvsubq::mamba

#endif
