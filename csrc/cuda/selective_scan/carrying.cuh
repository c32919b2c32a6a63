// `selective_scan`, fast: what a piece of a walk, alone, leaves to the next: a sum over its steps, each with the weight
// exp(A sum of delta) of the steps between it and the piece's end. A block goes away from that end, with 32 channels;
// where all that is further away has too little weight to show in fp32, it stops.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_CARRYING_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_CARRYING_CUH

#include "carry_inputs.cuh"

namespace nvsubq::selective {

// Steps with a weight under 2^-64 are left out: fp32 has 24 bits, and inputs of fp16 are at most 2^40 apart.
constexpr float kNoWeight = -64.0f, kNone = -1e30f;
constexpr int kQuarter = kWindow / kWarps;  // steps that a warp lays out
static_assert(kQuarter == 16);

// Memory: a window's steps in the order in which they are walked over; `in` is delta u or, for cotangents, that of y; x
// is B or C, states 0, 4, 8, 12, 1, 5 ... Rows are padded: what is read or written at once is in all banks.
//
// FORTH: the states at a piece's end; else the cotangents at its begin. A lane has states g, g + 4, g + 8, g + 12 of a
// channel when it adds; when it lays out, four channels of four steps, and four states of two steps.
template <class S, bool FORTH, bool PACKED>
struct Carrier {
  using Inputs = CarryInputs<S, FORTH ? 2 : 3, PACKED>;
  struct Memory {
    alignas(16) float d[kWide][kWindow + 4], in[kWide][kWindow + 4];
    float x[kMostFast][kWindow + 4];
    float bias[kWide];
    typename Inputs::Memory inputs;
  };
  enum : int { kDelta, kIn, kGate };  // of the inputs
  Memory& m;
  const Options& is;
  int warp, lane, states, four, fourth;
  Inputs inputs;
  float A[4], q[4] = {0, 0, 0, 0}, sum = 0;

  __device__ __forceinline__ Carrier(Memory& memory, const Selective& a, const Options& options, int64_t row,
                                     int64_t first, int there, int64_t group)
      : m(memory), is(options), warp(threadIdx.x / 32), lane(threadIdx.x % 32), states(int(a.states)), four(lane / 4),
        fourth(lane % 4), inputs(inputs_of(memory.inputs, a, options, row, first, there, group)) {
    if (threadIdx.x < kWide) m.bias[lane] = of_channel(a.delta_bias, first, lane, there);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      A[i] = channel() < there && state(i) < states
                 ? read_any<float>(a.A, at(a.A, first + channel(), state(i))) * kLog2e
                 : kNone;
  }
  static __device__ __forceinline__ Inputs inputs_of(typename Inputs::Memory& memory, const Selective& a,
                                                     const Options& is, int64_t row, int64_t first, int there,
                                                     int64_t group) {
    const int states = int(a.states);
    if constexpr (FORTH)
      return Inputs(memory, row, first, there, group, states, a.B, a.delta, a.u);
    else
      return Inputs(memory, row, first, there, group, states, a.C, a.delta, a.d_y, is.gated ? a.z : a.delta);
  }
  __device__ __forceinline__ int channel() const { return 8 * warp + four; }
  __device__ __forceinline__ int state(int i) const { return fourth + 4 * i; }

  // Lays the window out that has arrived, each warp a quarter. Bit i of `are_there`: whether the i-th step is.
  // USUAL: all are, delta is softplus, and a cotangent's y has a gate.
  template <bool USUAL>
  __device__ __forceinline__ void lay(uint64_t are_there) const {
    const int first = kQuarter * warp + 4 * fourth, to = FORTH ? kWindow - 4 - first : first;
    const uint32_t here = uint32_t(are_there >> first);
    alignas(16) float bias[4];
    *reinterpret_cast<float4*>(bias) = *reinterpret_cast<const float4*>(m.bias + 4 * four);
    float deltas[4][4], ins[4][4], gates[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      unpack(inputs.four_channels(kDelta, first + i, four), deltas[i]);
      unpack(inputs.four_channels(kIn, first + i, four), ins[i]);
      if constexpr (!FORTH) unpack(inputs.four_channels(kGate, first + i, four), gates[i]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      alignas(16) float d[4], in[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int k = FORTH ? 3 - i : i;
        const float raw = deltas[i][j] + bias[j];
        const float soft = fast_softplus(raw), known = USUAL || is.soft ? soft : raw;
        d[k] = USUAL || here >> i & 1 ? known : 0.0f;
        if constexpr (FORTH) {
          in[k] = d[k] * ins[i][j];
        } else {
          const float gate = USUAL || is.gated ? gates[i][j] * fast_sigmoid(gates[i][j]) : 1.0f;
          in[k] = USUAL || here >> i & 1 ? ins[i][j] * gate : 0.0f;
        }
      }
      *reinterpret_cast<float4*>(&m.d[4 * four + j][to]) = *reinterpret_cast<const float4*>(d);
      *reinterpret_cast<float4*>(&m.in[4 * four + j][to]) = *reinterpret_cast<const float4*>(in);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int step = lane + 32 * i;
      const Pack<S, 4> x = m.inputs.states[warp][step];
#pragma unroll
      for (int n = 0; n < 4; ++n)
        m.x[4 * warp + n][FORTH ? kWindow - 1 - step : step] = 4 * warp < states ? widen<float>(x.lane[n]) : 0.0f;
    }
  }

  // Adds what is laid out, with the first MANY of a lane's states.
  template <int MANY>
  __device__ __forceinline__ void add() {
#pragma unroll 2
    for (int k = 0; k < kWindow; k += 4) {
      alignas(16) float d[4], in[4], by[MANY][4];
      *reinterpret_cast<float4*>(d) = *reinterpret_cast<const float4*>(&m.d[channel()][k]);
      *reinterpret_cast<float4*>(in) = *reinterpret_cast<const float4*>(&m.in[channel()][k]);
#pragma unroll
      for (int i = 0; i < MANY; ++i)
        *reinterpret_cast<float4*>(by[i]) = *reinterpret_cast<const float4*>(&m.x[state(i)][k]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {  // d: from here on the sum of delta
        const float after = sum + d[j];
        d[j] = FORTH ? sum : after, sum = after;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int i = 0; i < MANY; ++i) q[i] = fmaf(exp2_of(d[j] * A[i]), by[i][j] * in[j], q[i]);
    }
  }

  // Leaves out what has no weight any more: of each channel by itself, so that its bits do not depend on others. How
  // many of the first states are left up to the last that some lane goes on with.
  __device__ __forceinline__ int leave_out() {
    int many = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool light = A[i] * sum <= kNoWeight;
      if (light) A[i] = kNone;
      if (__any_sync(~0u, !light)) many = i + 1;
    }
    return many;
  }

  // Steps begin .. begin + length of a walk. Whether a sequence starts in them, so that nothing passes.
  __device__ __forceinline__ bool run(const Steps& steps, int64_t begin, int length) {
    const int windows = (length + kWindow - 1) / kWindow;
    if (!windows) return false;
    const auto step_at = [&](int step) { return begin + (step < length ? step : length - 1); };
    const auto first_of = [&](int i) { return (FORTH ? windows - 1 - i : i) * kWindow; };
    int64_t found[2];  // cells of the steps that this thread moves, of the window that is asked for next
    const auto look_up = [&](int i) {
      if (i >= windows) return;
#pragma unroll
      for (int half = 0; half < 2; ++half) found[half] = steps.found(step_at(first_of(i) + inputs.step + 32 * half));
    };
    const auto ask = [&] {
      const int32_t cells[2] = {int32_t(steps.checked(found[0])), int32_t(steps.checked(found[1]))};
      inputs.ask(cells);
    };
    look_up(0), ask(), look_up(1);
    wait_for_copies(), __syncthreads();
    int alive = (states + 3) / 4;
    bool cut = false;
    for (int i = 0; i < windows && !cut; ++i) {
      const int first = first_of(i), left = length - first;
      uint64_t are_there = left < kWindow ? (uint64_t(1) << left) - 1 : ~uint64_t(0);
      if (steps.segment) {
        const auto starts_at = [&](int step) {
          return __ballot_sync(~0u, step < length && steps.starts(step_at(step)));
        };
        const uint64_t starts = starts_at(first + lane) | uint64_t(starts_at(first + 32 + lane)) << 32;
        if (starts) are_there &= FORTH ? ~uint64_t(0) << (63 - __clzll(starts)) : (starts & -starts) - 1;
        cut = starts;
      }
      if (is.soft && (FORTH || is.gated) && !~are_there)
        lay<true>(are_there);
      else
        lay<false>(are_there);
      __syncthreads();
      if (i + 1 < windows) ask(), look_up(i + 2);
      switch (alive) {
        case 4: add<4>(); break;
        case 3: add<3>(); break;
        case 2: add<2>(); break;
        case 1: add<1>(); break;
      }
      if (is.soft && alive) alive = leave_out();  // else delta may be below 0, and weights come back
      wait_for_copies();
      if (!__syncthreads_or(alive)) break;
    }
    return cut;
  }
};

}  // namespace nvsubq::selective

#endif
