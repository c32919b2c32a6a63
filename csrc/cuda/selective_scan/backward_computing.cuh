// `selective_scan`, backward, fast: the walk of a warp over a window, with eight channels.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_BACKWARD_COMPUTING_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_BACKWARD_COMPUTING_CUH

#include "window.cuh"

namespace nvsubq::selective {

constexpr int kTile = 4, kTiles = kWindow / kTile;  // steps whose states a lane holds
constexpr int kPart = 16;                           // steps between sums over the block's channels

struct BackwardMemory {
  Window window;
  // First the states that enter the tile after the e-th; once these are done, sums of the e-th: see `SumAt`.
  alignas(16) float entering[kTiles][kWide][kMostFast];
  alignas(16) float by_channel[kWarps][kPart][32];  // d_B and d_C of some steps, from 8 channels
};

// Where a channel's sums over states of a tile's step lie in BackwardMemory::entering: by_w at `index`, by_d at
// index ^ 4, y at index ^ 8. Rows and sums are swizzled, by channels.
struct SumAt {
  int channel, index;
  __device__ __forceinline__ SumAt(int c, int step)
      : channel(c ^ (c >> 2 & 1)), index(step + 4 * ((c >> 1 ^ c >> 3) & 3)) {}
};

// A B, for A and B of 22 bits if EXACT: see `multiply`. All columns of B are the same.
template <bool EXACT>
__device__ __forceinline__ float2 product(const float (&x)[4], float b0, float b1) {
  float sum[4] = {0, 0, 0, 0};
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
  return make_float2(sum[0], sum[2]);
}

// Sums over the eight lanes g of numbers that a lane has of its two channels: a product with rows of the identity
// turns lanes into columns, which a product with ones adds up.
struct StateSums {
  float upper[4], lower[4], one[8];  // eight rows of the identity and eight of zeros; what picks a column

  // Through memory, since the compiler would rather make them anew for every product: `scratch` has a number of a lane.
  __device__ __forceinline__ StateSums(int g, int t, volatile float* scratch) {
    const auto hold = [&](float x) {
      *scratch = x;
      return *scratch;
    };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float row = g == t + 2 * (i & 2) ? 1.0f : 0.0f;
      upper[i] = hold(i % 2 ? 0.0f : row), lower[i] = hold(i % 2 ? row : 0.0f);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) one[i] = hold(g == i ? 1.0f : 0.0f);
  }
  // Sums of x[i] in columns 2p, of y[i] in columns 2p + 1, with p = i % 4: see `of`. As many products as there are go
  // side by side, since one that waits for another waits long.
  template <int N>
  __device__ __forceinline__ void add(float (&sum)[4], const float (&x)[N][2], const float (&y)[N][2]) const {
    constexpr int kChains = N < 4 ? N : 4;
    float turned[N][4], part[kChains][4];
#pragma unroll
    for (int i = 0; i < 4 * N; ++i) turned[i / 4][i % 4] = 0;
#pragma unroll
    for (int i = 0; i < 4 * kChains; ++i) part[i / 4][i % 4] = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) multiply(turned[i], upper[0], upper[1], upper[2], upper[3], x[i][0], x[i][1]);
#pragma unroll
    for (int i = 0; i < N; ++i) multiply(turned[i], lower[0], lower[1], lower[2], lower[3], y[i][0], y[i][1]);
#pragma unroll
    for (int i = 0; i < N; ++i)
      multiply(part[i % kChains], turned[i][0], turned[i][1], turned[i][2], turned[i][3], one[2 * (i % 4)],
               one[2 * (i % 4) + 1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[i] = part[0][i];
#pragma unroll
      for (int k = 1; k < kChains; ++k) sum[i] += part[k][i];
    }
  }
  // The same of numbers of 22 bits.
  template <int N>
  __device__ __forceinline__ void add_exact(float (&sum)[4], const float (&x)[N][2], const float (&y)[N][2]) const {
    static_assert(N == 4);  // so that parts of one step meet in a column
    float parts_x[2 * N][2], parts_y[2 * N][2];
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        parts_x[i][r] = x[i][r], parts_x[N + i][r] = x[i][r] - kept_part(x[i][r]);
        parts_y[i][r] = y[i][r], parts_y[N + i][r] = y[i][r] - kept_part(y[i][r]);
      }
    add(sum, parts_x, parts_y);
  }
  // Of channel g: columns 2t and 2t + 1.
  __device__ __forceinline__ static float2 of(const float (&sum)[4]) {
    return make_float2(sum[0] + sum[2], sum[1] + sum[3]);
  }
};

// A lane's two channels and two states of each; of an array [4] the channel is i / 2.
template <class S>
struct Tiles {
  BackwardMemory& m;
  int warp, g, t, here[2];   // channels in the block
  float A[4], q[4], d_A[4];  // q: the cotangent of the states that come next, as it arrives
  const StateSums sums;

  __device__ __forceinline__ explicit Tiles(BackwardMemory& memory)
      : m(memory), warp(threadIdx.x / 32), g(threadIdx.x % 32 / 4), t(threadIdx.x % 4),
        sums(g, t, &m.by_channel[warp][0][threadIdx.x % 32]) {
    here[0] = warp * 8 + t, here[1] = here[0] + 4;
  }
  // Where a step of this lane's channels, and of its states, lies, and the states that enter a tile.
  __device__ __forceinline__ const float* of_channels(const float (&rows)[kSingle], int step) const {
    return rows + single(here[0], 0) + step;
  }
  __device__ __forceinline__ const float* of_channels(const float (&rows)[kPaired], int step) const {
    return rows + paired(here[0], 0) + 2 * step;
  }
  __device__ __forceinline__ const float* of_states(const float (&rows)[kWindow / 2][kMostFast][2], int step) const {
    return &rows[0][2 * g][0] + step * kMostFast;
  }
  __device__ __forceinline__ float* entering(int e) const {
    return &m.entering[e][here[0]][2 * g ^ 8 * (t / 2)];  // channels do not meet in a bank
  }
  template <bool STARTS>
  __device__ __forceinline__ float decay(float d, float rate, int step) const {
    const float x = exp2_of(d * rate);
    return STARTS && (m.window.cells.starts[step / 32] >> (step % 32) & 1) ? 0.0f : x;
  }

  // The states that enter each tile, from those that enter the window.
  template <bool STARTS>
  __device__ __forceinline__ void ahead(const float (&first)[4], int tiles) {
    float h[4] = {first[0], first[1], first[2], first[3]};
#pragma unroll 2
    for (int e = 0; e < tiles - 1; ++e) {
      alignas(16) float d[2][4], w[2][4], b[2][4];
      const int step = kTile * e;
      read_single(of_channels(m.window.d, step), d), read_paired(of_channels(m.window.w, step), w);
      read_states(of_states(m.window.B, step), b);
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          h[i] = fmaf(decay<STARTS>(d[i / 2][j], A[i], step + j), h[i], b[i % 2][j] * w[i / 2][j]);
#pragma unroll
      for (int r = 0; r < 2; ++r)
        *reinterpret_cast<float2*>(entering(e) + 4 * r * kMostFast) = make_float2(h[2 * r], h[2 * r + 1]);
    }
  }

  // A tile: the states forth, and the cotangents back.
  template <bool STARTS>
  __device__ __forceinline__ void back(const float (&first)[4], int e) {
    float before[4] = {first[0], first[1], first[2], first[3]}, a[4][4], h[4][4];
    if (e) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float2 x = *reinterpret_cast<const float2*>(entering(e - 1) + 4 * r * kMostFast);
        before[2 * r] = x.x, before[2 * r + 1] = x.y;
      }
    }
    const int step = kTile * e;
    alignas(16) float d[2][4], w[2][4], out[2][4], b[2][4], c[2][4], y[4][2];
    read_single(of_channels(m.window.d, step), d), read_paired(of_channels(m.window.w, step), w);
    read_paired(of_channels(m.window.out, step), out);
    read_states(of_states(m.window.B, step), b), read_states(of_states(m.window.C, step), c);
    // States 2g and 2g + 1 of d_B and, 16 further on, of d_C.
    float* const by_channel = &m.by_channel[warp][step % kPart][2 * g];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[j][i] = decay<STARTS>(d[i / 2][j], A[i], step + j);
        h[j][i] = fmaf(a[j][i], j ? h[j - 1][i] : before[i], b[i % 2][j] * w[i / 2][j]);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) y[j][r] = fmaf(c[1][j], h[j][2 * r + 1], c[0][j] * h[j][2 * r]);
      const float2 d_C = product<kExact<S>>(h[j], out[0][j], out[1][j]);
      if (t == 0) *reinterpret_cast<float2*>(by_channel + 32 * j + 16) = d_C;
    }
    float by_w[4][2], by_d[4][2], sum[4], y_sum[4];
#pragma unroll
    for (int j = 3; j >= 0; --j) {
      float h_bar[4], l[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        h_bar[i] = fmaf(c[i % 2][j], out[i / 2][j], q[i]);
        q[i] = a[j][i] * h_bar[i];
        l[i] = q[i] * (j ? h[j - 1][i] : before[i]);
        d_A[i] = fmaf(l[i], d[i / 2][j], d_A[i]);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        by_w[j][r] = fmaf(b[1][j], h_bar[2 * r + 1], b[0][j] * h_bar[2 * r]);
        by_d[j][r] = fmaf(A[2 * r + 1], l[2 * r + 1], A[2 * r] * l[2 * r]);
      }
      const float2 d_B = product<kExact<S>>(h_bar, w[0][j], w[1][j]);
      if (t == 0) *reinterpret_cast<float2*>(by_channel + 32 * j) = d_B;
    }
    sums.add_exact(sum, by_w, by_d);  // since d_bias is fp32 whatever the storage
    if constexpr (kExact<S>) {
      const float none[4][2] = {};
      sums.add_exact(y_sum, y, none);
    } else {
      const float even[2][2] = {{y[0][0], y[0][1]}, {y[2][0], y[2][1]}};
      const float odd[2][2] = {{y[1][0], y[1][1]}, {y[3][0], y[3][1]}};
      sums.add(y_sum, even, odd);
    }
    const SumAt to(warp * 8 + g, 0);
    float* const row = m.entering[e][to.channel];
    const float2 both = StateSums::of(sum), ys = StateSums::of(y_sum);
    row[to.index ^ t] = both.x, row[to.index ^ 4 ^ t] = both.y;
    if constexpr (kExact<S>)
      row[to.index ^ 8 ^ t] = ys.x;
    else if (t < 2)
      *reinterpret_cast<float2*>(&row[to.index ^ 8 ^ 2 * t]) = ys;
    __syncwarp();
  }
};

}  // namespace nvsubq::selective

#endif
