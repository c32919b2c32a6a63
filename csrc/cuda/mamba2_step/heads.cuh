// One token of Mamba2 between the projections: the states of all heads, the gate, the MLP beside them, the norm.
//
// A warp has a channel of a head; the blocks after those of channels have the MLP. States are fetched before the kernel
// waits for the projection in. A norm over all channels needs no kernel of its own: each block leaves its sum of
// squares, and the projection out, which is linear, divides what it gives.
#ifndef NVSUBQ_CUDA_MAMBA2_STEP_HEADS_CUH
#define NVSUBQ_CUDA_MAMBA2_STEP_HEADS_CUH

#include "../step/functions.cuh"
#include "../step/launch.cuh"

namespace nvsubq::mamba2 {

template <class T>
struct Heads {
  nvsubq_tensor dt_bias, A_log, D, norm_weight, state;
  int64_t width, head_width, heads, states, groups, mlp;
  int64_t in_width, conv_width;  // of a row of `in` and of `u`
  bool by_channel, gate_here;    // D, and SiLU(z) before a norm or without one
  T dt_low, dt_high, norm_eps;
  const T *in, *u;  // [B][z0, x0, z, (x, B, C), dt], [B][x, B, C]
  T* out;           // [B][mlp + D]
  T* squares;       // [B][blocks of channels], the sums of squares that the projection out divides by, or null
};

// SiLU(z0) x0 for one channel of the MLP.
template <class T>
__device__ __forceinline__ void mlp_channel(const Heads<T>& a, int64_t b, int64_t c) {
  const T* in = a.in + b * a.in_width;
  if (c < a.mlp) a.out[b * (a.mlp + a.width) + c] = silu_exact(in[c]) * in[a.mlp + c];
}

template <class T, int V>
__global__ void __launch_bounds__(kStepThreads) heads_kernel(Heads<T> a, unsigned channel_blocks) {
  let_the_next_start();
  const int64_t b = blockIdx.y;
  if (blockIdx.x >= channel_blocks) {
    wait_for_the_last();
    return mlp_channel(a, b, int64_t(blockIdx.x - channel_blocks) * kStepThreads + threadIdx.x);
  }
  const int64_t mine = int64_t(blockIdx.x) * kStepWarps + threadIdx.x / 32;
  const bool valid = mine < a.width;
  const int64_t channel = valid ? mine : a.width - 1, head = channel / a.head_width;
  const int64_t first = int64_t(threadIdx.x % 32) * V, apart = 32 * V;
  T* state = static_cast<T*>(a.state.data) + (b * a.width + channel) * a.states;
  Pack<T, V> held = {};
  if (valid && first < a.states) held = load_pack<T, V>(state + first);
  const T bias = read_any<T>(a.dt_bias, head), rate = -exp(read_any<T>(a.A_log, head));
  const T skip = read_any<T>(a.D, a.by_channel ? channel : head);
  const T weight = a.squares ? read_any<T>(a.norm_weight, channel) : T(1);
  wait_for_the_last();

  const T *in = a.in + b * a.in_width, *u = a.u + b * a.conv_width;
  const T x = u[channel], z = in[2 * a.mlp + channel];
  T delta = softplus(in[a.in_width - a.heads + head] + bias);
  delta = delta < a.dt_low ? a.dt_low : delta > a.dt_high ? a.dt_high : delta;
  const T keep = exp(delta * rate), scaled = delta * x;
  const T *B = u + a.width + head / (a.heads / a.groups) * a.states, *C = B + a.groups * a.states;
  T y = T(0);
  for (int64_t n = first; valid && n < a.states; n += apart) {
    if (n != first) held = load_pack<T, V>(state + n);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      held.lane[j] = fused(keep, held.lane[j], scaled * B[n + j]);
      y = fused(C[n + j], held.lane[j], y);
    }
    store_pack<T, V>(state + n, held);
  }
  y = fused(skip, x, sum_over<32>(y));
  if (a.gate_here) y *= silu_exact(z);
  if (valid && first == 0) a.out[b * (a.mlp + a.width) + a.mlp + channel] = y * weight;
  if (!a.squares) return;
  __shared__ T parts[kStepWarps];
  if (first == 0) parts[threadIdx.x / 32] = valid ? y * y : T(0);
  __syncthreads();
  if (threadIdx.x == 0) {
    T sum = parts[0];
    for (int w = 1; w < kStepWarps; ++w) sum += parts[w];
    a.squares[b * channel_blocks + blockIdx.x] = sum;
  }
}

constexpr int kNormThreads = 512;

// Normalises the channels of a group, and gates them where that comes after.
template <class T>
__global__ void __launch_bounds__(kNormThreads) norm_kernel(Heads<T> a) {
  let_the_next_start();
  __shared__ T sums[kNormThreads / 32];
  const int64_t b = blockIdx.y, count = a.width / a.groups, first = int64_t(blockIdx.x) * count;
  wait_for_the_last();
  T* out = a.out + b * (a.mlp + a.width) + a.mlp + first;
  T squares = T(0);
  for (int64_t c = threadIdx.x; c < count; c += kNormThreads) squares = fused(out[c], out[c], squares);
  squares = sum_over<32>(squares);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = squares;
  __syncthreads();
  squares = sum_over<kNormThreads / 32>(sums[threadIdx.x % (kNormThreads / 32)]);
  const T scale = T(1) / sqrt(squares / T(count) + a.norm_eps);
  for (int64_t c = threadIdx.x; c < count; c += kNormThreads) {
    T v = out[c] * scale * read_any<T>(a.norm_weight, first + c);
    if (!a.gate_here) v *= silu_exact(a.in[b * a.in_width + 2 * a.mlp + first + c]);
    out[c] = v;
  }
}

}  // namespace nvsubq::mamba2

#endif
