// `selective_scan`, forward, fast: the warps that compute.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_FORWARD_COMPUTING_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_FORWARD_COMPUTING_CUH

#include "forward_shape.cuh"

namespace nvsubq::selective {

// A warp that computes: its lanes hold the states, P of each of R channels.
template <class S, class Is>
struct Computing {
  static constexpr int P = Is::P, Q = Is::Q, R = Is::R, T = Is::T;
  typename Is::Memory& m;
  const Selective& a;
  int lane, row, first, here[R], first_state;  // the block's first channel, and channels in the block
  bool there[R];
  float A[R][P], h[R][P];

  __device__ __forceinline__ Computing(typename Is::Memory& memory, const Selective& args, int64_t at_row,
                                       int64_t first_channel, int run, const float* entering)
      : m(memory), a(args), lane(threadIdx.x % 32), row(int(at_row)), first(int(first_channel)),
        first_state(lane % Q * P) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      here[r] = (int(threadIdx.x / 32) * R + r) * Is::each_warp + lane / Q;
      there[r] = here[r] < run;
#pragma unroll
      for (int p = 0; p < P; ++p) {
        const int n = first_state + p;
        const bool real = there[r] && n < a.states;
        A[r][p] = real ? read_any<float>(a.A, at(a.A, channel(r), n)) * kLog2e : 0.0f;
        h[r][p] = 0;
        if (real && entering)
          h[r][p] = entering[channel(r) * a.states + n];
        else if (real && has(a.initial_state))
          h[r][p] = read_any<float>(a.initial_state, at(a.initial_state, row, channel(r), n));
      }
    }
  }

  __device__ __forceinline__ int64_t channel(int r) const { return int64_t(first) + here[r]; }

  __device__ __forceinline__ void keep(int border) const {
    int own = row;
    asm volatile("" : "+r"(own));  // else products with it are made before the walk, and there are no registers for them
    const int64_t before = own * borders(a.length) + border;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (!there[r]) continue;
      float* to = static_cast<float*>(a.saved) + (before * a.width + channel(r)) * a.states;
#pragma unroll
      for (int p = 0; p < P; ++p)
        if (first_state + p < a.states) to[first_state + p] = h[r][p];
    }
  }

  // Steps from `from` on of a tile. What lanes have of y is added up over quads, 16 steps at once.
  template <bool STARTS>
  __device__ __forceinline__ void run(int buffer, int slot, int from, int steps) {
    constexpr int W = Is::W, G = Is::G;
    const float *B = m.B[buffer], *C = m.C[buffer];
#pragma unroll 1
    for (int sixteen = from; sixteen < from + steps; sixteen += 16) {
      const uint32_t starts = STARTS ? m.cells[slot].starts[sixteen / 32] >> (sixteen % 32) : 0;
      float sum[R][4];
#pragma unroll
      for (int i = 0; i < 4 * R; ++i) sum[i / 4][i % 4] = 0;
#pragma unroll(P > 4 ? 1 : 4)
      for (int four = 0; four < 4; ++four) {
        const int k = sixteen / 4 + four;
        alignas(16) float ds[R][4], ws[R][4], y[R][4];
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const int at = swizzled(here[r], k);
          *reinterpret_cast<float4*>(ds[r]) = *reinterpret_cast<const float4*>(&m.d[buffer][here[r]][at]);
          *reinterpret_cast<float4*>(ws[r]) = *reinterpret_cast<const float4*>(&m.w[buffer][here[r]][at]);
        }
#pragma unroll
        for (int j_group = 0; j_group < 4; j_group += G) {
          alignas(16) float b[P / W][4], c[P / W][4];
#pragma unroll
          for (int p = 0; p < P / W; ++p) {
            const int at = Is::pack_at((4 * k + j_group) / G, first_state / W + p);
            *reinterpret_cast<float4*>(b[p]) = *reinterpret_cast<const float4*>(B + at);
            *reinterpret_cast<float4*>(c[p]) = *reinterpret_cast<const float4*>(C + at);
          }
#pragma unroll
          for (int i = 0; i < G * R; ++i) {
            const int j = j_group + i / R, r = i % R;
            float out = 0;
#pragma unroll
            for (int p = 0; p < P; ++p) {
              const int at = (j - j_group) * W + p % W;
              float decay = exp2_of(ds[r][j] * A[r][p]);
              if (STARTS && starts >> (4 * four + j) & 1) decay = 0;
              h[r][p] = fmaf(decay, h[r][p], b[p / W][at] * ws[r][j]);
              out = p ? fmaf(c[p / W][at], h[r][p], out) : c[p / W][at] * h[r][p];
            }
            y[r][j] = out;
          }
        }
#pragma unroll
        for (int r = 0; r < R; ++r) add_quads<kExact<S>>(sum[r], y[r], four, lane / 4);
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        float* const to = m.y[buffer][lane / 4 % Is::parts] + here[r] * T + swizzled(here[r], sixteen / 4 + lane % 4);
        *reinterpret_cast<float4*>(to) = make_float4(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
      }
    }
  }

  __device__ __forceinline__ void finish() const {
    if (!has(a.final_state)) return;
#pragma unroll
    for (int i = 0; i < R * P; ++i) {
      const int r = i / P, n = first_state + i % P;
      if (there[r] && n < a.states) write_any<float>(a.final_state, at(a.final_state, row, channel(r), n), h[r][i % P]);
    }
  }
};

}  // namespace nvsubq::selective

#endif
