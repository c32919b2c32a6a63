// `selective_scan`, forward, fast: the warps that compute.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_FORWARD_COMPUTING_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_FORWARD_COMPUTING_CUH

#include "forward_shape.cuh"

namespace nvsubq::selective {

// A warp that computes: its lanes hold the states, P of each of R channels.
template <class S, class Is>
struct Computing {
  static constexpr int P = Is::P, R = Is::R, T = Is::T;
  typename Is::Memory& m;
  const Selective& a;
  int lane, here[R], first_state;  // channels in the block
  int64_t row, channel[R];
  bool there[R];
  float A[R][P], h[R][P];

  __device__ __forceinline__ Computing(typename Is::Memory& memory, const Selective& args, int64_t at_row,
                                       int64_t first, int run, const float* entering)
      : m(memory), a(args), lane(threadIdx.x % 32), first_state(lane % 4 * P), row(at_row) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      here[r] = int(threadIdx.x / 32) * R * 8 + r * 8 + lane / 4;
      there[r] = here[r] < run;
      channel[r] = first + (there[r] ? here[r] : 0);
#pragma unroll
      for (int p = 0; p < P; ++p) {
        const int n = first_state + p;
        const bool real = there[r] && n < a.states;
        A[r][p] = real ? read_any<float>(a.A, at(a.A, channel[r], n)) * kLog2e : 0.0f;
        h[r][p] = 0;
        if (real && entering)
          h[r][p] = entering[channel[r] * a.states + n];
        else if (real && has(a.initial_state))
          h[r][p] = read_any<float>(a.initial_state, at(a.initial_state, row, channel[r], n));
      }
    }
  }

  __device__ __forceinline__ void keep(int64_t border) const {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (!there[r]) continue;
      float* to = static_cast<float*>(a.saved) + ((row * borders(a.length) + border) * a.width + channel[r]) * a.states;
#pragma unroll
      for (int p = 0; p < P; ++p)
        if (first_state + p < a.states) to[first_state + p] = h[r][p];
    }
  }

  // Steps from `from` on of a tile.
  template <bool STARTS>
  __device__ __forceinline__ void run(int buffer, int slot, int from, int steps) {
    const float *B = m.B[buffer], *C = m.C[buffer];
    const int g = lane / 4, t = lane % 4;
#pragma unroll 1
    for (int sixteen = from; sixteen < from + steps; sixteen += 16) {
      const uint32_t starts = STARTS ? m.cells[slot].starts[sixteen / 32] >> (sixteen % 32) : 0;
      float sum[R][4];
#pragma unroll
      for (int i = 0; i < 4 * R; ++i) sum[i / 4][i % 4] = 0;
#pragma unroll(P > 4 ? 1 : 4)
      for (int four = 0; four < 4; ++four) {
        const int k = sixteen / 4 + four;
        alignas(16) float ds[R][4], ws[R][4], y[R][4], b[4], c[4];
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const int at = swizzled(here[r], k);
          *reinterpret_cast<float4*>(ds[r]) = *reinterpret_cast<const float4*>(&m.d[buffer][here[r]][at]);
          *reinterpret_cast<float4*>(ws[r]) = *reinterpret_cast<const float4*>(&m.w[buffer][here[r]][at]);
        }
        if constexpr (P == 1) {
          const int at = first_state * T + swizzled(first_state, k);
          *reinterpret_cast<float4*>(b) = *reinterpret_cast<const float4*>(B + at);
          *reinterpret_cast<float4*>(c) = *reinterpret_cast<const float4*>(C + at);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          alignas(16) float bs[P], cs[P];
          if constexpr (P == 1) {
            bs[0] = b[j], cs[0] = c[j];
          } else {
            const int at = (4 * k + j) * Is::states + first_state;
            constexpr int V = P < 4 ? P : 4;
#pragma unroll
            for (int p = 0; p < P; p += V) {
              *reinterpret_cast<Pack<float, V>*>(bs + p) = load_pack<float, V>(B + at + p);
              *reinterpret_cast<Pack<float, V>*>(cs + p) = load_pack<float, V>(C + at + p);
            }
          }
#pragma unroll
          for (int r = 0; r < R; ++r) {
            float out = 0;
#pragma unroll
            for (int p = 0; p < P; ++p) {
              float decay = exp2_of(ds[r][j] * A[r][p]);
              if (STARTS && starts >> (4 * four + j) & 1) decay = 0;
              h[r][p] = fmaf(decay, h[r][p], bs[p] * ws[r][j]);
              out = p ? fmaf(cs[p], h[r][p], out) : cs[p] * h[r][p];
            }
            y[r][j] = out;
          }
        }
#pragma unroll
        for (int r = 0; r < R; ++r) add_quads<kExact<S>>(sum[r], y[r], four, g);
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        float* to = m.y[buffer][here[r]] + swizzled(here[r], sixteen / 4 + t);
        *reinterpret_cast<float4*>(to) = make_float4(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
      }
    }
  }

  __device__ __forceinline__ void finish() const {
    if (!has(a.final_state)) return;
#pragma unroll
    for (int i = 0; i < R * P; ++i) {
      const int r = i / P, n = first_state + i % P;
      if (there[r] && n < a.states) write_any<float>(a.final_state, at(a.final_state, row, channel[r], n), h[r][i % P]);
    }
  }
};

}  // namespace nvsubq::selective

#endif
