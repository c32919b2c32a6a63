// `selective_scan`, backward, fast: the walk of a warp over a window, with eight channels.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_BACKWARD_COMPUTING_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_BACKWARD_COMPUTING_CUH

#include "window.cuh"

namespace nvsubq::selective {

constexpr int kEighths = kWindow / 8;

struct BackwardMemory {
  Window window;
  alignas(16) float entering[kEighths - 1][kWide][kMostFast];  // the states that enter each 8 steps but the first
  alignas(16) float by_state[kWarps][3][8][32];                // of 4 steps: sums to be made over states
  alignas(16) float by_channel[kWarps][kWindow / 2][32];       // d_B and d_C of half a window, from 8 channels
};

// sum += A B for A and B of 22 bits: see `multiply`.
template <bool EXACT>
__device__ __forceinline__ void multiply_by(float (&sum)[4], const float (&x)[4], float b0, float b1) {
  if constexpr (!EXACT) {
    multiply(sum, x[0], x[1], x[2], x[3], b0, b1);
  } else {
    float kept[4], rest[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) kept[i] = kept_part(x[i]), rest[i] = x[i] - kept[i];
    const float kept0 = kept_part(b0), kept1 = kept_part(b1);
    multiply(sum, kept[0], kept[1], kept[2], kept[3], kept0, kept1);
    multiply(sum, kept[0], kept[1], kept[2], kept[3], b0 - kept0, b1 - kept1);
    multiply(sum, rest[0], rest[1], rest[2], rest[3], kept0, kept1);
  }
}

// A lane's two channels and two states of each; of an array [4] the channel is i / 2.
template <class S>
struct Eighths {
  BackwardMemory& m;
  int warp, g, t, here[2];  // channels in the block
  float A[4], q[4], d_A[4];  // q: the cotangent of the states that come next, as it arrives

  __device__ __forceinline__ explicit Eighths(BackwardMemory& memory)
      : m(memory), warp(threadIdx.x / 32), g(threadIdx.x % 32 / 4), t(threadIdx.x % 4) {
    here[0] = warp * 8 + t, here[1] = here[0] + 4;
  }

  __device__ __forceinline__ static void read_four(const float (&rows)[kWide][kWindow], int channel, int four,
                                                   float (&to)[4]) {
    *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(&rows[channel][swizzled(channel, four)]);
  }
  template <bool STARTS>
  __device__ __forceinline__ float decay(float d, float rate, int step) const {
    const float x = exp2_of(d * rate);
    return STARTS && (m.window.cells.starts[step / 32] >> (step % 32) & 1) ? 0.0f : x;
  }

  // The states that enter each 8 steps, from those that enter the window.
  template <bool STARTS>
  __device__ __forceinline__ void ahead(const float (&first)[4], int eighths) {
    float h[4] = {first[0], first[1], first[2], first[3]};
#pragma unroll 1
    for (int e = 0; e < eighths - 1; ++e) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        alignas(16) float d[2][4], w[2][4];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          read_four(m.window.d, here[r], 2 * e + half, d[r]);
          read_four(m.window.w, here[r], 2 * e + half, w[r]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int step = 8 * e + 4 * half + j;
          const float2 b = *reinterpret_cast<const float2*>(&m.window.B[step][2 * g]);
#pragma unroll
          for (int i = 0; i < 4; ++i)
            h[i] = fmaf(decay<STARTS>(d[i / 2][j], A[i], step), h[i], (i % 2 ? b.y : b.x) * w[i / 2][j]);
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r)
        *reinterpret_cast<float2*>(&m.entering[e][here[r]][2 * g]) = make_float2(h[2 * r], h[2 * r + 1]);
    }
  }

  // Eight steps: the states forth, and the cotangents back.
  template <bool STARTS>
  __device__ __forceinline__ void back(const float (&first)[4], int e) {
    float before[4], a[8][4], h[8][4], y[8][2], d_B[4] = {0, 0, 0, 0}, d_C[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 4; ++i) before[i] = e ? m.entering[e - 1][here[i / 2]][2 * g + i % 2] : first[i];
    // Of step g of the eight: a column of the tensor cores' second factor.
    float w_column[2], out_column[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = swizzle(here[r], 8 * e + g);
      w_column[r] = m.window.w[here[r]][at], out_column[r] = m.window.out[here[r]][at];
    }
    __syncwarp();  // results will be put in their place
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      alignas(16) float d[2][4], w[2][4];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        read_four(m.window.d, here[r], 2 * e + half, d[r]);
        read_four(m.window.w, here[r], 2 * e + half, w[r]);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int s = 4 * half + j, step = 8 * e + s;
        const float2 b = *reinterpret_cast<const float2*>(&m.window.B[step][2 * g]);
        const float2 c = *reinterpret_cast<const float2*>(&m.window.C[step][2 * g]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          a[s][i] = decay<STARTS>(d[i / 2][j], A[i], step);
          h[s][i] = fmaf(a[s][i], s ? h[s - 1][i] : before[i], (i % 2 ? b.y : b.x) * w[i / 2][j]);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) y[s][r] = fmaf(c.y, h[s][2 * r + 1], c.x * h[s][2 * r]);
        const bool mine = g == s;
        multiply_by<kExact<S>>(d_C, h[s], mine ? out_column[0] : 0.0f, mine ? out_column[1] : 0.0f);
      }
    }
#pragma unroll
    for (int half = 1; half >= 0; --half) {
      alignas(16) float d[2][4], out[2][4], by_w[2][4], by_d[2][4];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        read_four(m.window.d, here[r], 2 * e + half, d[r]);
        read_four(m.window.out, here[r], 2 * e + half, out[r]);
      }
#pragma unroll
      for (int j = 3; j >= 0; --j) {
        const int s = 4 * half + j, step = 8 * e + s;
        const float2 b = *reinterpret_cast<const float2*>(&m.window.B[step][2 * g]);
        const float2 c = *reinterpret_cast<const float2*>(&m.window.C[step][2 * g]);
        float h_bar[4], l[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          h_bar[i] = fmaf(i % 2 ? c.y : c.x, out[i / 2][j], q[i]);
          q[i] = a[s][i] * h_bar[i];
          l[i] = q[i] * (s ? h[s - 1][i] : before[i]);
          d_A[i] = fmaf(l[i], d[i / 2][j], d_A[i]);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          by_w[r][j] = fmaf(b.y, h_bar[2 * r + 1], b.x * h_bar[2 * r]);
          by_d[r][j] = fmaf(A[2 * r + 1], l[2 * r + 1], A[2 * r] * l[2 * r]);
        }
        const bool mine = g == s;
        multiply_by<kExact<S>>(d_B, h_bar, mine ? w_column[0] : 0.0f, mine ? w_column[1] : 0.0f);
      }
      __syncwarp();  // the sums before these have been made
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int channel = t + 4 * r, at = 4 * (g ^ ((2 * t + r) & 7));
        float(*to)[8][32] = m.by_state[warp];
        *reinterpret_cast<float4*>(&to[0][channel][at]) =
            make_float4(y[4 * half][r], y[4 * half + 1][r], y[4 * half + 2][r], y[4 * half + 3][r]);
        *reinterpret_cast<float4*>(&to[1][channel][at]) = *reinterpret_cast<float4*>(by_w[r]);
        *reinterpret_cast<float4*>(&to[2][channel][at]) = *reinterpret_cast<float4*>(by_d[r]);
      }
      __syncwarp();
      add_states(2 * e + half);
    }
    // States 2g and 2g + 1 of steps 2t and 2t + 1, where the bank depends on both.
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const float* from = which ? d_C : d_B;
#pragma unroll
      for (int i = 0; i < 2; ++i)
        *reinterpret_cast<float2*>(&m.by_channel[warp][8 * (e % 4) + 2 * t + i][(16 * which + 2 * g) ^ (8 * t)]) =
            make_float2(from[i], from[2 + i]);
    }
  }

  // Lanes 0 to 23 have one sum (y, by_w, by_d) of one channel each, of four steps; y goes where `out` was, and so on.
  __device__ __forceinline__ void add_states(int four) {
    const int lane = threadIdx.x % 32, which = lane / 8, channel = lane % 8;
    if (lane >= 24) return;
    const float* from = m.by_state[warp][which][channel];
    const int turn = (2 * (channel % 4) + channel / 4) & 7;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float4 x = *reinterpret_cast<const float4*>(from + 4 * (i ^ turn));
      sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    }
    const int c = warp * 8 + channel;
    float* to = which == 0 ? m.window.out[c] : which == 1 ? m.window.w[c] : m.window.d[c];
    *reinterpret_cast<float4*>(to + swizzled(c, four)) = sum;
  }
};

}  // namespace nvsubq::selective

#endif
