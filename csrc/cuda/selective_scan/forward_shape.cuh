// `selective_scan`, forward, fast: the shape of a block and its memory.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_FORWARD_SHAPE_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_FORWARD_SHAPE_CUH

#include "fast.cuh"

namespace nvsubq::selective {

// P_ states of each of R_ channels on a lane, and the states of a channel on Q_ lanes. COMPUTING warps that compute and
// SERVING that serve, tiles of T_ steps. Of a step a lane reads 2 R + 2 P numbers for its R P states, and the shared
// memory gives a warp one a cycle: most is asked of it where R and P differ most.
template <int P_, int Q_, int R_, int COMPUTING, int SERVING, int T_>
struct Shape {
  static constexpr int P = P_, Q = Q_, R = R_, T = T_;
  static constexpr int each_warp = 32 / Q;  // channels side by side in a warp
  static constexpr int channels = COMPUTING * R * each_warp, states = P * Q;
  static constexpr int computers = COMPUTING * 32, servers = SERVING * 32, threads = computers + servers;

  // Of a thread that serves: four channels of `runs` runs of V steps each, `rows` runs apart.
  static constexpr int fours = channels / 4, rows = servers / fours, each = T / rows;
  static constexpr int V = each < 4 ? each : 4, runs = each / V;
  static_assert(rows > 0 && T % (rows * V) == 0 && servers >= T && (Q == 4 || Q == 8));

  // B and C lie in packs of four numbers, which a lane reads at once: of W states and G steps, a row of packs for G
  // steps. A thread that serves has four states of G steps of B or of C, `packed` times.
  static constexpr int W = P < 4 ? P : 4, G = 4 / W, row_packs = states / W;
  static constexpr int state_fours = states / 4, groups = T / G, halves = servers / 2;
  static constexpr int state_rows = halves / state_fours, packed = (groups + state_rows - 1) / state_rows;
  // Where the pack of `n / W` lies in the row of step group `group`: what is read or written at once is in all banks.
  static __device__ __forceinline__ int pack_at(int group, int pack) {
    return 4 * (group * row_packs + (pack ^ (group & (G - 1))));
  }

  // A channel's sums over its lanes come in parts, one of each quad, which do not meet in a bank.
  static constexpr int parts = Q / 4, part = channels * T + (parts > 1 ? 16 : 0);

  struct alignas(16) Slot : Cells<T> {};
  struct Memory {
    float d[2][channels][T], w[2][channels][T], y[2][parts][part];  // swizzled
    float B[2][T * states], C[2][T * states];
    float bias[channels], skip[channels];
    Slot cells[kRing];
  };
};

}  // namespace nvsubq::selective

#endif
