// What the kernels of `causal_conv1d` share: inputs before the walk, and the window that a walk leaves behind.
#ifndef NVSUBQ_CUDA_CONV1D_COMMON_CUH
#define NVSUBQ_CUDA_CONV1D_COMMON_CUH

#include <initializer_list>

#include "../launch.h"
#include "../math.cuh"
#include "../storage.cuh"
#include "../walk.cuh"

namespace nvsubq {

using Conv = nvsubq_conv1d_args;

template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};

// The input of a step before the walk, from the initial state.
template <class T>
__device__ __forceinline__ T before(const Conv& a, int64_t row, int64_t channel, int64_t step) {
  const int64_t i = a.state_width + step;
  if (!present(a.initial_state) || i < 0) return T(0);
  return read_any<T>(a.initial_state, at(a.initial_state, row, channel, i));
}

template <class T>
__device__ __forceinline__ T input(const Conv& a, const Steps& steps, int64_t row, int64_t channel, int64_t step) {
  if (step < 0) return before<T>(a, row, channel, step);
  return read_any<T>(a.x, at(a.x, row, steps.cell(step), channel));
}

// Whether a step of the final window was seen by the sequence that the walk ends in.
__device__ __forceinline__ bool in_final(const Steps& steps, int64_t step) {
  return !steps.count || steps.together(step, steps.count - 1);
}

// What the cotangent of the final state adds to the gradient of a step's input.
template <class T>
__device__ __forceinline__ T from_final(const Conv& a, const Steps& steps, int64_t row, int64_t channel, int64_t step) {
  const int64_t i = step - (steps.count - a.state_width);
  if (!present(a.d_final_state) || i < 0 || i >= a.state_width || !in_final(steps, step)) return T(0);
  return read_any<T>(a.d_final_state, at(a.d_final_state, row, channel, i));
}

__device__ __forceinline__ int64_t block_of(const Conv& a, int64_t channel) {
  return a.blocks == 1 ? 0 : channel / (a.width / a.blocks);
}

// A kernel of four taps side by side, for one storage dtype and sizes of 32 bits; `general.cu` has the others.
inline bool is_fast(const Conv& a) {
  constexpr int64_t most = int64_t(1) << 30;
  for (const nvsubq_tensor* t : {&a.x, &a.y, &a.d_y, &a.d_x, &a.index, &a.segment})
    if (present(*t) && (t->stride[1] > most || t->stride[1] < -most)) return false;
  const bool one_dtype = bool(a.flags & NVSUBQ_DOUBLE) == (a.x.dtype == NVSUBQ_F64);
  return a.taps == 4 && a.dilation == 1 && a.length < most && one_dtype;
}

// The partial sums of d_weight and d_bias, [parts][K + 1][D] in the compute dtype.
struct Partials {
  int64_t steps, chunks, parts;  // of the walk in one part; parts in a row; in all
};
Partials partials_of(const Conv& a);

int forward_fast(const Conv& a, cudaStream_t stream);
int backward_fast(const Conv& a, const Partials& partials, void* sums, cudaStream_t stream);
int forward_general(const Conv& a, cudaStream_t stream);
// `kept` holds [B, L, D] numbers of the compute dtype.
int backward_general(const Conv& a, const Partials& partials, void* sums, void* kept, cudaStream_t stream);

}  // namespace nvsubq

#endif
