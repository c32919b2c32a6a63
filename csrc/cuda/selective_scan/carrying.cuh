// `selective_scan`, fast: what a piece of a walk, alone, leaves to the next: a sum over its steps, each with the weight
// exp(A sum of delta) of the steps between it and the piece's end. A block goes away from that end, with 32 channels;
// where all that is further away has too little weight to show in fp32, it stops.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_CARRYING_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_CARRYING_CUH

#include "carry_inputs.cuh"

namespace nvsubq::selective {

// Steps with a weight under 2^-64 are left out: fp32 has 24 bits, and inputs of fp16 are at most 2^40 apart.
constexpr float kNoWeight = -64.0f, kNone = -1e30f;

// FORTH: the states at a piece's end; else the cotangents at its begin. Of a window each warp has a quarter, of which a
// lane has a channel: it goes over the steps once for each state. Warps tell each other how much delta their steps have.
template <class S, bool FORTH, bool PACKED>
struct Carrier {
  using Inputs = CarryInputs<S, FORTH ? 2 : 3, PACKED>;
  struct Own {                                 // a warp's
    alignas(16) float x[kMostFast][kQuarter];  // B or C; steps in the order in which they are walked over
    float q[kMostFast][32];                    // what its steps make of the channels' states
    typename Inputs::Memory inputs;
  };
  struct Memory {
    Own own[kWarps];
    float A[kMostFast][32];
    float sums[2][kWarps][32];  // of delta, over quarters of a window
  };
  enum : int { kDelta, kIn, kGate };  // of the inputs
  Memory& m;
  Own& own;
  const Options& is;
  int warp, lane, states;
  Inputs inputs;
  float bias, sum = 0;

  __device__ __forceinline__ Carrier(Memory& memory, const Selective& a, const Options& options, int64_t row,
                                     int64_t first, int there, int64_t group)
      : m(memory), own(memory.own[threadIdx.x / 32]), is(options), warp(threadIdx.x / 32), lane(threadIdx.x % 32),
        states(int(a.states)), inputs(inputs_of(own.inputs, a, options, row, first, there, group)),
        bias(of_channel(a.delta_bias, first, lane, there)) {
    for (int n = 0; n < states; ++n) {
      own.q[n][lane] = 0;
      if (n % kWarps == warp)
        m.A[n][lane] = lane < there ? read_any<float>(a.A, at(a.A, first + lane, n)) * kLog2e : kNone;
    }
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

  // Of the steps that have arrived, in the order in which they are walked over.
  struct Quarter {
    float d[kQuarter], in[kQuarter];  // delta, and delta u or the cotangent of y
  };
  // Returns the sum of delta. Bit i of `are_there`: whether the i-th step is. USUAL: all are, delta is softplus, and a
  // cotangent's y has a gate.
  template <bool USUAL>
  __device__ __forceinline__ float take(Quarter& to, uint32_t are_there) const {
    float total = 0;
#pragma unroll
    for (int k = 0; k < kQuarter; ++k) {
      const int step = FORTH ? kQuarter - 1 - k : k;
      const auto of = [&](int tensor) { return widen<float>(inputs.m.channels[tensor][step][lane]); };
      const bool here = USUAL || are_there >> step & 1;
      const float raw = of(kDelta) + bias, soft = fast_softplus(raw), known = USUAL || is.soft ? soft : raw;
      to.d[k] = here ? known : 0.0f, total += to.d[k];
      if constexpr (FORTH) {
        to.in[k] = to.d[k] * of(kIn);
      } else {
        const float z = of(kGate), gate = USUAL || is.gated ? z * fast_sigmoid(z) : 1.0f;
        to.in[k] = here ? of(kIn) * gate : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int step = lane % kQuarter, four = lane / kQuarter + 2 * i;
      const Pack<S, 4> x = inputs.m.states[four][step];
#pragma unroll
      for (int n = 0; n < 4; ++n)
        own.x[4 * four + n][FORTH ? kQuarter - 1 - step : step] = widen<float>(x.lane[n]);
    }
    return total;
  }

  // Adds a quarter to the first `alive` states. One that has no weight from where a channel's sum of delta is `begin` is
  // left out: of each channel by itself, so that its bits do not depend on others.
  __device__ __forceinline__ void add(const Quarter& from, int alive, float begin) {
    const float* rate = &m.A[0][lane];
    const float* x = own.x[0];
    float* sums = &own.q[0][lane];
#pragma unroll 1
    for (; alive; --alive, rate += 32, x += kQuarter, sums += 32) {
      const float A = *rate * begin <= kNoWeight ? kNone : *rate;
      float q = *sums;
#pragma unroll
      for (int k = 0; k < kQuarter; k += 4) {
        alignas(16) float by[4];
        *reinterpret_cast<float4*>(by) = *reinterpret_cast<const float4*>(x + k);
#pragma unroll
        for (int j = 0; j < 4; ++j) q = fmaf(exp2_of(from.d[k + j] * A), by[j] * from.in[k + j], q);
      }
      *sums = q;
    }
  }
  // How many of the first `alive` states go on, up to the last that has a weight in some channel.
  __device__ __forceinline__ int go_on(int alive) const {
    while (alive && __all_sync(~0u, m.A[alive - 1][lane] * sum <= kNoWeight)) --alive;
    return alive;
  }

  // Steps begin .. begin + length of a walk. Whether a sequence starts in them, so that nothing passes.
  __device__ __forceinline__ bool run(const Steps& steps, int64_t begin, int length) {
    const int windows = (length + kWindow - 1) / kWindow;
    const auto step_at = [&](int step) { return begin + (step < length ? step : length - 1); };
    const auto first_of = [&](int i) { return (FORTH ? windows - 1 - i : i) * kWindow; };
    const int quarter = kQuarter * (FORTH ? kWarps - 1 - warp : warp);  // this warp's, in a window
    int64_t found[2];  // cells of the steps that this lane moves, of the window that is asked for next
    const auto look_up = [&](int i) {
      if (i >= windows) return;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        found[half] = steps.found(step_at(first_of(i) + quarter + inputs.step + 8 * half));
    };
    const auto ask = [&] {
      const int32_t cells[2] = {int32_t(steps.checked(found[0])), int32_t(steps.checked(found[1]))};
      inputs.ask(cells);
    };
    if (windows) look_up(0), ask(), look_up(1);
    int alive = states;
    bool cut = false;
    for (int i = 0; i < windows && alive && !cut; ++i) {
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
      wait_for_copies(), __syncwarp();
      const bool usual = is.soft && (FORTH || is.gated) && !~are_there;
      float(&sums)[kWarps][32] = m.sums[i & 1];
      Quarter here;
      sums[warp][lane] = usual ? take<true>(here, 0) : take<false>(here, uint32_t(are_there >> quarter));
      __syncthreads();
      if (i + 1 < windows) ask(), look_up(i + 2);
      const float start = sum;
      float before = sum;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        if (w == warp) before = sum;
        sum += sums[w][lane];
      }
#pragma unroll
      for (int k = 0; k < kQuarter; ++k) {  // d: from here on the sum of delta
        const float after = before + here.d[k];
        here.d[k] = FORTH ? before : after, before = after;
      }
      add(here, alive, is.soft ? start : 0.0f);  // else delta may be below 0, and weights come back
      if (is.soft) alive = go_on(alive);
      __syncwarp();
    }
    wait_for_copies(), __syncthreads();
    return cut;
  }
  // What `run` has made of a channel's state.
  __device__ __forceinline__ float made(int channel, int n) const {
    float all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) all += m.own[w].q[n][channel];
    return all;
  }
};

}  // namespace nvsubq::selective

#endif
