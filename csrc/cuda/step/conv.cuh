// The convolution of a step, one channel of one vector at a time.
#ifndef NVSUBQ_CUDA_STEP_CONV_CUH
#define NVSUBQ_CUDA_STEP_CONV_CUH

#include "functions.cuh"
#include "later.cuh"
#include "launch.cuh"
#include "step.h"

namespace nvsubq {

constexpr int kTaps = 4;  // so many are read while the row's weights are under way

// One channel of the convolution.
template <class T>
struct Taps {
  Later<T> weight[kTaps], seen[kTaps], bias;

  static __device__ __forceinline__ bool are_few(const ConvStep<T>& conv) { return conv.taps <= kTaps; }
  static __device__ __forceinline__ int64_t state_at(const ConvStep<T>& conv, int64_t b, int64_t channel) {
    return (b * conv.width + channel) * conv.taps;
  }

  __device__ __forceinline__ void read_weights(const ConvStep<T>& conv, int64_t channel) {
    if (present(conv.bias)) bias.ask(conv.bias, channel);
#pragma unroll
    for (int j = 0; j < kTaps; ++j)
      if (are_few(conv) && j < conv.taps) weight[j].ask(conv.weight, channel * conv.taps + j);
  }

  __device__ __forceinline__ void read_state(const ConvStep<T>& conv, int64_t b, int64_t channel) {
    const int64_t state = state_at(conv, b, channel);
#pragma unroll
    for (int j = 1; j < kTaps; ++j)
      if (are_few(conv) && j < conv.taps) seen[j - 1].ask(conv.state, state + j);
  }

  // Moves the state on by x, and writes the output.
  __device__ __forceinline__ void push(const ConvStep<T>& conv, int64_t b, int64_t channel, T x) const {
    const int64_t state = state_at(conv, b, channel), last = conv.taps - 1;
    T y = present(conv.bias) ? bias.get(conv.bias) : T(0);
    if (are_few(conv)) {
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        if (j > last) continue;
        const T now = j == last ? x : seen[j].get(conv.state);
        y = fused(weight[j].get(conv.weight), now, y);
        write_any<T>(conv.state, state + j, now);
      }
    } else {
      for (int64_t j = 0; j <= last; ++j) {
        const T now = j == last ? x : read_any<T>(conv.state, state + j + 1);
        y = fused(read_any<T>(conv.weight, channel * conv.taps + j), now, y);
        write_any<T>(conv.state, state + j, now);
      }
    }
    conv.u[b * conv.width + channel] = conv.silu ? silu_exact(y) : y;
  }
};

}  // namespace nvsubq

#endif
