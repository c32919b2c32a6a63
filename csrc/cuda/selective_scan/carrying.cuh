// `selective_scan`, fast: what a piece of a walk, alone, leaves to the next: a sum over its steps, each with the weight
// exp(A sum of delta) of the steps between it and the piece's end. A block goes away from that end, with 32 channels;
// where all that is further away has too little weight to show in fp32, it stops.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_CARRYING_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_CARRYING_CUH

#include "carry_inputs.cuh"

namespace nvsubq::selective {

// Steps with a weight under 2^-64 are left out: fp32 has 24 bits, and inputs of fp16 are at most 2^40 apart.
constexpr float kNoWeight = -64.0f, kNone = -1e30f;
static_assert(kWide == 32 && kStretch * kWarps == kWindow);

// What a block shares. FORTH: it makes the states at a piece's end; else the cotangents at its begin.
template <class S, bool FORTH>
struct CarryMemory {
  // Of delta and u or, for cotangents, of delta, the cotangent of y and its gate.
  using Inputs = Fetched<S, FORTH ? 2 : 3>;
  struct Own {                                 // a warp's
    alignas(16) float x[kMostFast][kStretch];  // B or C; steps in the order in which they are walked over
    float q[kMostFast][kWide];                 // what its steps make of the channels' states
    Inputs inputs;
  } own[kWarps];
  float A[kMostFast][kWide];
  float sums[2][kWarps][kWide];  // of delta, over quarters of a window
};

// Each warp has a quarter of a window, and each lane a channel, whose steps it goes over for one state after another.
// Warps tell each other how much delta their steps have.
template <class S, bool FORTH, bool PACKED>
struct Carrier {
  using Memory = CarryMemory<S, FORTH>;
  using Inputs = CarryInputs<S, Memory::Inputs::kTensors, PACKED>;
  enum : int { kDelta, kIn, kGate };  // of the inputs
  Memory& m;
  typename Memory::Own& own;
  const Options& is;
  int warp, lane, states;
  Inputs inputs;
  float bias, sum = 0;

  __device__ __forceinline__ Carrier(Memory& memory, const Selective& a, const Options& options, int64_t row,
                                     int64_t first, int there, int64_t group)
      : m(memory), own(memory.own[threadIdx.x / 32]), is(options), warp(threadIdx.x / 32), lane(threadIdx.x % 32),
        states(int(a.states)), inputs(inputs_of(own.inputs, a, options, row, first, there, group)),
        bias(of_channel(a.delta_bias, first, lane, there)) {
#pragma unroll 1
    for (int n = 0; n < kMostFast; ++n) {
      own.q[n][lane] = 0;
      if (n % kWarps == warp)
        m.A[n][lane] = lane < there && n < states ? read_any<float>(a.A, at(a.A, first + lane, n)) * kLog2e : kNone;
    }
  }
  static __device__ __forceinline__ Inputs inputs_of(typename Memory::Inputs& memory, const Selective& a,
                                                     const Options& is, int64_t row, int64_t first, int there,
                                                     int64_t group) {
    const int states = int(a.states);
    if constexpr (FORTH)
      return Inputs(memory, row, first, there, group, states, a.B, a.delta, a.u);
    else
      return Inputs(memory, row, first, there, group, states, a.C, a.delta, a.d_y, is.gated ? a.z : a.delta);
  }

  // Of the steps that have arrived, in the order in which they are walked over.
  struct Stretch {
    alignas(16) float d[kStretch], in[kStretch];  // delta, and delta u or the cotangent of y
  };
  // Steps begin .. end count; returns the sum of delta. USUAL: all do, delta is softplus, and a cotangent's y has a
  // gate.
  template <bool USUAL>
  __device__ __forceinline__ float take(Stretch& to, int begin, int end) const {
    float total = 0;
#pragma unroll
    for (int k = 0; k < kStretch; ++k) {
      const int step = FORTH ? kStretch - 1 - k : k;
      const auto of = [&](int tensor) { return widen<float>(inputs.m.channels[tensor][step][lane]); };
      const bool here = USUAL || (begin <= step && step < end);
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
      const int step = lane % kStretch, four = lane / kStretch + 2 * i;
      const Pack<S, 4> x = inputs.m.states[four][step];
#pragma unroll
      for (int n = 0; n < 4; ++n)
        own.x[4 * four + n][FORTH ? kStretch - 1 - step : step] = widen<float>(x.lane[n]);
    }
    return total;
  }

  // Adds a stretch to the first `alive` states. What has no weight where a channel's sum of delta is `begin` is left
  // out: of each channel by itself, so that its bits do not depend on others.
  __device__ __forceinline__ void add(const Stretch& from, int alive, float begin) {
    constexpr int kAtOnce = FORTH ? 1 : 2;
#pragma unroll 1
    for (int first = 0; first < alive; first += kAtOnce) {
      float A[kAtOnce], q[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float rate = m.A[first + i][lane];
        A[i] = rate * begin <= kNoWeight ? kNone : rate, q[i] = own.q[first + i][lane];
      }
#pragma unroll
      for (int k = 0; k < kStretch; k += 4) {
        alignas(16) float by[kAtOnce][4];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i)
          *reinterpret_cast<float4*>(by[i]) = *reinterpret_cast<const float4*>(&own.x[first + i][k]);
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i)
            q[i] = fmaf(exp2_of(from.d[k + j] * A[i]), by[i][j] * from.in[k + j], q[i]);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) own.q[first + i][lane] = q[i];
    }
  }
  // How many of the first `alive` states go on, up to the last that has a weight in some channel.
  __device__ __forceinline__ int go_on(int alive) const {
    while (alive && __all_sync(~0u, m.A[alive - 1][lane] * sum <= kNoWeight)) --alive;
    return alive;
  }

  // The steps of a window that count: not those behind the start of a sequence, as the block goes.
  struct Counted {
    int begin, end;
    bool cut;
  };
  __device__ __forceinline__ Counted count(const Steps& steps, int begin, int length, int first) const {
    Counted found = {first, length < first + kWindow ? length : first + kWindow, false};
#pragma unroll
    for (int k = first; steps.segment && k < first + kWindow; k += 32) {
      const uint32_t starts = __ballot_sync(~0u, k + lane < length && steps.starts(begin + k + lane));
      if (!starts) continue;
      if (FORTH)
        found.begin = k + 31 - __clz(starts);
      else if (!found.cut)
        found.end = k + __ffs(starts) - 1;
      found.cut = true;
    }
    return found;
  }

  // Steps begin .. begin + length of a walk. Whether a sequence starts in them, so that nothing passes.
  __device__ __forceinline__ bool run(const Steps& steps, int begin, int length) {
    constexpr int next = FORTH ? -kWindow : kWindow;  // from window to window
    const auto is_there = [&](int first) { return FORTH ? first >= 0 : first < length; };
    const int own_first = kStretch * (FORTH ? kWarps - 1 - warp : warp);  // this warp's, in a window
    int64_t found[2];  // cells of the steps that this lane moves, of the window that is asked for next
    const auto look_up = [&](int first) {
      if (!is_there(first)) return;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int step = first + own_first + inputs.step + 8 * half;
        found[half] = steps.found(begin + (step < length ? step : length - 1));
      }
    };
    const auto ask = [&](int first) {
      if (!is_there(first)) return;
      const int32_t cells[2] = {int32_t(steps.checked(found[0])), int32_t(steps.checked(found[1]))};
      inputs.ask(cells);
    };
    int first = FORTH ? (length + kWindow - 1) / kWindow * kWindow - kWindow : 0;
    look_up(first), ask(first), look_up(first + next);
    int alive = states;
    bool cut = false;
    for (; is_there(first) && alive && !cut; first += next) {
      const Counted counted = count(steps, begin, length, first);
      cut = counted.cut;
      wait_for_copies(), __syncwarp();
      const bool usual = is.soft && (FORTH || is.gated) && counted.end - counted.begin == kWindow;
      float(&sums)[kWarps][kWide] = m.sums[first / kWindow & 1];
      Stretch here;
      const int offset = first + own_first;
      sums[warp][lane] =
          usual ? take<true>(here, 0, kStretch) : take<false>(here, counted.begin - offset, counted.end - offset);
      __syncthreads();
      ask(first + next), look_up(first + 2 * next);
      const float start = sum;
      float before = sum;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        if (w == warp) before = sum;
        sum += sums[w][lane];
      }
#pragma unroll
      for (int k = 0; k < kStretch; ++k) {  // d: from here on the sum of delta
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
