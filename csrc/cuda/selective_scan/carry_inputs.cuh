// `selective_scan`, fast: how a warp that carries gets its steps' inputs into its memory: past the registers, while it
// adds up those before.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_CARRY_INPUTS_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_CARRY_INPUTS_CUH

#include "../copy.cuh"
#include "pieces.cuh"

namespace nvsubq::selective {

constexpr int kStretch = 16;  // steps that a warp has at once

// A warp's steps as they are in global memory: 32 channels of each of some tensors, and the states of B or C.
template <class S, int TENSORS>
struct Fetched {
  static constexpr int kTensors = TENSORS;
  alignas(16) S channels[TENSORS][kStretch][kWide];
  Pack<S, 4> states[kMostFast / 4][kStretch];
};

// A lane moves a pack of 16 bytes, or two, of steps `step` and `step` + 8. PACKED: 16 bytes of channels lie on
// multiples of their size, and so do four states.
template <class S, int TENSORS, bool PACKED>
struct CarryInputs {
  static constexpr int kRounds = kWide / kLanes<S> / 4;
  Fetched<S, TENSORS>& m;
  Row<const S> rows[TENSORS], x;
  int pack, step, valid[kRounds], states_left;

  template <class... Tensor>
  __device__ __forceinline__ CarryInputs(Fetched<S, TENSORS>& memory, int64_t row, int64_t first, int there,
                                         int64_t group, int states, const nvsubq_tensor& of_states,
                                         const Tensor&... tensors)
      : m(memory), rows{Row<const S>(tensors, row, first)...}, x(of_states, row, group * of_states.stride[2]),
        pack(threadIdx.x % 4), step(threadIdx.x % 32 / 4), states_left(states - 4 * pack) {
    static_assert(sizeof...(tensors) == TENSORS);
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int left = there - channel(r);
      valid[r] = left < 0 ? 0 : left < kLanes<S> ? left : kLanes<S>;
    }
#pragma unroll
    for (int t = 0; t < TENSORS; ++t) rows[t].data += valid[0] ? channel(0) * int(sizeof(S)) : 0;
    if (states_left > 0) x.data += 4 * pack * int(sizeof(S));
    asm volatile("" : "+l"(x.data));  // else each access adds a pointer from the constant bank to its offset again
#pragma unroll
    for (int t = 0; t < TENSORS; ++t) asm volatile("" : "+l"(rows[t].data));
  }
  __device__ __forceinline__ int channel(int round) const { return (pack + 4 * round) * kLanes<S>; }

  // Asks for the steps of which this lane's visit these cells.
  __device__ __forceinline__ void ask(const int32_t (&cells)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int here = step + 8 * half;
#pragma unroll
      for (int t = 0; t < TENSORS; ++t)
#pragma unroll
        for (int r = 0; r < kRounds; ++r)
          move<kLanes<S>>(&m.channels[t][here][channel(r)],
                          rows[t].at(cells[half]) + (valid[r] ? 4 * r * kLanes<S> : 0), valid[r]);
      move<4>(m.states[pack][here].lane, x.at(cells[half]), states_left);
    }
  }

 private:
  template <int V>
  static __device__ __forceinline__ void move(S* to, const S* from, int there) {
    if constexpr (PACKED) {
      copy_later<V * int(sizeof(S))>(to, from, there > 0);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) to[j] = j < there ? from[j] : narrow<S>(0.0f);
    }
  }
};

}  // namespace nvsubq::selective

#endif
