// `selective_scan`, backward, fast: sums over a warp's channels, on the tensor cores.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_CHANNEL_SUMS_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_CHANNEL_SUMS_CUH

#include "fast.cuh"

namespace nvsubq::selective {

// Sums over the channels of a warp. Products with matrices that pick rows add up over t what lanes have of four states
// at a step, in rows 0 .. 3 and, once more, in rows 12 .. 15; a product that picks columns adds up over the rest of the
// channels, for four steps.
template <bool EXACT>
struct ChannelSums {
  float low[4], high[4];  // whether g is 0, 4, 1, 5; 2, 6, 3, 7

  // Through memory, since the compiler would rather make them anew for every product: `scratch` is a number of the lane.
  __device__ __forceinline__ ChannelSums(int g, volatile float* scratch) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      *scratch = g == i / 2 + i % 2 * 4 ? 1.0f : 0.0f, low[i] = *scratch;
      *scratch = g == 2 + i / 2 + i % 2 * 4 ? 1.0f : 0.0f, high[i] = *scratch;
    }
  }

  struct Turned {
    float sum[4][4] = {};  // of each step
  };
  // x: four states at step j.
  __device__ __forceinline__ void turn(Turned& to, int j, const float (&x)[4]) const {
    in_parts<EXACT>(x, [&](const float (&part)[4]) {
      multiply(to.sum[j], low[0], low[1], low[2], low[3], part[0], part[1]);
      multiply(to.sum[j], high[0], high[1], high[2], high[3], part[2], part[3]);
    });
  }
  // sum, of lanes (g, t) where t is COLUMN: state g % 4 of the four at step g / 4, and at step 2 + g / 4; the same of
  // the upper half's states.
  template <int COLUMN>
  __device__ __forceinline__ void add(float (&sum)[4], const Turned& from) const {
    const auto& x = from.sum;
    const float all[4] = {x[0][0] + x[1][2], x[0][1] + x[1][3], x[2][0] + x[3][2], x[2][1] + x[3][3]};
    const auto picked = [&](int column) {
      return column % 4 < 2 ? low[column % 2 * 2 + column / 4] : high[column % 2 * 2 + column / 4];
    };
    in_parts<EXACT>(all, [&](const float (&part)[4]) {
      multiply(sum, part[0], part[1], part[2], part[3], picked(2 * COLUMN), picked(2 * COLUMN + 1));
    });
  }
};

}  // namespace nvsubq::selective

#endif
