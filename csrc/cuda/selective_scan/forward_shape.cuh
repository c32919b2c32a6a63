// `selective_scan`, forward, fast: the shape of a block and its memory.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_FORWARD_SHAPE_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_FORWARD_SHAPE_CUH

#include "fast.cuh"

namespace nvsubq::selective {

// P_ states on each of the four lanes of a channel, R_ channels to a lane, COMPUTING warps that compute and SERVING
// that serve, tiles of T_ steps.
template <int P_, int R_, int COMPUTING, int SERVING, int T_>
struct Shape {
  static constexpr int P = P_, R = R_, T = T_;
  static constexpr int channels = COMPUTING * R * 8, states = P * 4;
  static constexpr int computers = COMPUTING * 32, servers = SERVING * 32, threads = computers + servers;
  // Of a thread that serves: it has four channels, and four states of B and C.
  static constexpr int fours = channels / 4, rows = servers / fours, each = (T + rows - 1) / rows;
  static constexpr int state_fours = states / 4, state_rows = servers / state_fours;
  static constexpr int state_each = (T + state_rows - 1) / state_rows;
  static_assert(rows % 4 == 0 && rows <= T && T % rows == 0 && (rows & (rows - 1)) == 0 && servers >= T);

  struct Memory {
    float d[2][channels][T], w[2][channels][T], y[2][channels][T];  // swizzled
    float B[2][states * T], C[2][states * T];  // [step][state], or swizzled [state][step] with one on a lane
    Cells<T> cells[kRing];
  };
};

}  // namespace nvsubq::selective

#endif
