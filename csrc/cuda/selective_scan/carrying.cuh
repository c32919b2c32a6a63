// `selective_scan`, fast: what a piece of a walk, alone, leaves to the next: a sum over its steps, each with the weight
// exp(A sum of delta) of the steps between it and the piece's end. A block goes away from that end, with 32 channels;
// where all that is further away has too little weight to show in fp32, it stops.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_CARRYING_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_CARRYING_CUH

#include "pieces.cuh"

namespace nvsubq::selective {

// Steps with a weight under 2^-64 are left out: fp32 has 24 bits, and inputs of fp16 are at most 2^40 apart.
constexpr float kNoWeight = -64.0f, kNone = -1e30f;
constexpr int kQuarter = kWindow / kWarps;  // steps that a warp lays out
static_assert(kQuarter == 16);

// A window's steps in the order in which they are walked over; `in` is delta u or, for cotangents, that of y; x is B or
// C, states 0, 4, 8, 12, 1, 5 ... Rows are padded: what is read or written at once is in all banks.
struct CarryMemory {
  alignas(16) float d[kWide][kWindow + 4], in[kWide][kWindow + 4];
  float x[kWindow][kMostFast + 4];
  float bias[kWide];
};

// FORTH: the states at a piece's end; else the cotangents at its begin. A lane has states g, g + 4, g + 8, g + 12 of a
// channel when it adds; when it lays out, four channels of four steps, and four states of two steps.
template <class S, bool FORTH, bool WHOLE>
struct Carrier {
  CarryMemory& m;
  const Options& is;
  int warp, lane, states, four, fourth, valid, states_left;
  Row<const S> u, delta, z, x;  // u: or the cotangents of y
  float A[4], q[4] = {0, 0, 0, 0}, sum = 0;

  __device__ __forceinline__ Carrier(CarryMemory& memory, const Selective& a, const Options& options, int64_t row,
                                     int64_t first, int there, int64_t group)
      : m(memory), is(options), warp(threadIdx.x / 32), lane(threadIdx.x % 32), states(int(a.states)), four(lane / 4),
        fourth(lane % 4), valid(there - 4 * four), states_left(states - 4 * fourth),
        u(FORTH ? a.u : a.d_y, row, first + (valid > 0 ? 4 * four : 0)),
        delta(a.delta, row, first + (valid > 0 ? 4 * four : 0)),
        z(options.gated ? a.z : a.delta, row, first + (valid > 0 ? 4 * four : 0)),
        x(FORTH ? a.B : a.C, row, group * (FORTH ? a.B : a.C).stride[2] + (states_left > 0 ? 4 * fourth : 0)) {
    valid = valid < 0 ? 0 : valid > 4 ? 4 : valid;
    if (threadIdx.x < kWide) m.bias[lane] = of_channel(a.delta_bias, first, lane, there);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      A[i] = channel() < there && state(i) < states
                 ? read_any<float>(a.A, at(a.A, first + channel(), state(i))) * kLog2e
                 : kNone;
  }
  __device__ __forceinline__ int channel() const { return 8 * warp + four; }
  __device__ __forceinline__ int state(int i) const { return fourth + 4 * i; }

  // Lays a window out, each warp a quarter, whose cells lanes 0 .. 15 have. Bit i of `are_there`: whether the i-th step
  // is.
  __device__ __forceinline__ void lay(int32_t cell, uint64_t are_there) const {
    Pack<S, 4> us[4], deltas[4], zs[4], xs[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t from = __shfl_sync(~0u, cell, 4 * fourth + i);
      deltas[i] = load_four<WHOLE>(delta.at(from), valid), us[i] = load_four<WHOLE>(u.at(from), valid);
      if constexpr (!FORTH) zs[i] = load_four<WHOLE>(z.at(from), valid);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) xs[i] = load_four<WHOLE>(x.at(__shfl_sync(~0u, cell, four + 8 * i)), states_left);
    const int first = kQuarter * warp + 4 * fourth, to = FORTH ? kWindow - 4 - first : first;
    const uint32_t here = uint32_t(are_there >> first);
    const float* const bias = m.bias + 4 * four;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      alignas(16) float d[4], in[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int k = FORTH ? 3 - i : i;
        const float raw = widen<float>(deltas[i].lane[j]) + bias[j], by = widen<float>(us[i].lane[j]);
        const float soft = fast_softplus(raw), known = is.soft ? soft : raw;
        d[k] = here >> i & 1 ? known : 0.0f;
        if constexpr (FORTH) {
          in[k] = d[k] * by;
        } else {
          const float gate_in = widen<float>(zs[i].lane[j]), gate = is.gated ? gate_in * fast_sigmoid(gate_in) : 1.0f;
          in[k] = here >> i & 1 ? by * gate : 0.0f;
        }
      }
      *reinterpret_cast<float4*>(&m.d[4 * four + j][to]) = *reinterpret_cast<const float4*>(d);
      *reinterpret_cast<float4*>(&m.in[4 * four + j][to]) = *reinterpret_cast<const float4*>(in);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int step = kQuarter * warp + four + 8 * i;
#pragma unroll
      for (int n = 0; n < 4; ++n)
        m.x[FORTH ? kWindow - 1 - step : step][4 * n + fourth] =
            states_left > 0 ? widen<float>(xs[i].lane[n]) : 0.0f;
    }
  }

  // Steps from .. from + kQuarter of what is laid out, with the first MANY of a lane's states.
  template <int MANY>
  __device__ __forceinline__ void add(int from) {
#pragma unroll 2
    for (int k = from; k < from + kQuarter; k += 4) {
      alignas(16) float d[4], in[4], by[4][4];
      *reinterpret_cast<float4*>(d) = *reinterpret_cast<const float4*>(&m.d[channel()][k]);
      *reinterpret_cast<float4*>(in) = *reinterpret_cast<const float4*>(&m.in[channel()][k]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {  // d: from here on the sum of delta
        *reinterpret_cast<float4*>(by[j]) = *reinterpret_cast<const float4*>(&m.x[k + j][4 * fourth]);
        const float after = sum + d[j];
        d[j] = FORTH ? sum : after, sum = after;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int i = 0; i < MANY; ++i) q[i] = fmaf(exp2_of(d[j] * A[i]), by[j][i] * in[j], q[i]);
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
    const auto step_at = [&](int step) { return begin + (step < length ? step : length - 1); };
    int alive = (states + 3) / 4;
    bool cut = false;
    __syncthreads();
    for (int i = 0; i < windows && !cut; ++i) {
      const int first = (FORTH ? windows - 1 - i : i) * kWindow, left = length - first;
      const int32_t cell = int32_t(steps.cell(step_at(first + kQuarter * warp + lane % kQuarter)));
      uint64_t are_there = left < kWindow ? (uint64_t(1) << left) - 1 : ~uint64_t(0);
      if (steps.segment) {
        const auto starts_at = [&](int step) {
          return __ballot_sync(~0u, step < length && steps.starts(step_at(step)));
        };
        const uint64_t starts = starts_at(first + lane) | uint64_t(starts_at(first + 32 + lane)) << 32;
        if (starts) are_there &= FORTH ? ~uint64_t(0) << (63 - __clzll(starts)) : (starts & -starts) - 1;
        cut = starts;
      }
      lay(cell, are_there);
      __syncthreads();
#pragma unroll 1
      for (int k = 0; k < kWindow && alive; k += kQuarter) {
        switch (alive) {
          case 4: add<4>(k); break;
          case 3: add<3>(k); break;
          case 2: add<2>(k); break;
          default: add<1>(k);
        }
        if (is.soft) alive = leave_out();  // else delta may be below 0, and weights come back
      }
      if (!__syncthreads_or(alive)) break;
    }
    return cut;
  }
};

}  // namespace nvsubq::selective

#endif
