// `ssd_scan`, forward: y of each chunk, from the state that enters it.
#ifndef NVSUBQ_CUDA_SSD_SCAN_OUTPUTS_CUH
#define NVSUBQ_CUDA_SSD_SCAN_OUTPUTS_CUH

#include "../launch.h"
#include "stage.cuh"

namespace nvsubq::ssd {

// C and B make place for the weights between cells, the state for the outputs.
template <class Math>
struct OutputMemory {
  static constexpr int64_t kGiven = Math::Given::kBytes, kMade = Math::Made::kBytes, kStage = Stage<Math>::kBytes;
  static constexpr int64_t kC = sizeof(Chunk<Math>), kB = kC + kGiven, kWeights = kC;
  static constexpr int64_t kX = kC + (2 * kGiven > kMade ? 2 * kGiven : kMade), kState = kX + kGiven;
  static constexpr int64_t kBytes = kState + (kMade > kStage ? kMade : kStage);
};

// A block per unit, chunk, head and tile of lanes.
template <class Math>
__global__ void __launch_bounds__(Math::kThreads, Math::kOutputs) outputs(const __grid_constant__ Call<Math> call) {
  using T = typename Math::T;
  using Memory = OutputMemory<Math>;
  extern __shared__ __align__(16) char memory[];
  auto& chunk = *reinterpret_cast<Chunk<Math>*>(memory);
  typename Math::Given C(memory + Memory::kC), B(memory + Memory::kB), x(memory + Memory::kX);
  typename Math::Made weights(memory + Memory::kWeights), state(memory + Memory::kState);
  Stage<Math> stage(memory + Memory::kState);

  const Ssd& a = call.a;
  const Plan& plan = call.plan;
  int64_t task = blockIdx.x;
  const int lane_tile = int(task % plan.lane_tiles);
  const int64_t head = (task /= plan.lane_tiles) % a.heads;
  const int64_t local = (task /= a.heads) % plan.segment_chunks, unit = task / plan.segment_chunks;
  const int64_t row = (call.first_unit + unit) / plan.segments;
  const int64_t at_chunk = (call.first_unit + unit) % plan.segments * plan.segment_chunks + local;
  if (at_chunk >= plan.chunks) return;
  const int lane = lane_tile * Math::kSide;
  const int64_t group = call.group(head);

  chunk.read_cells(call, row, call.block(head), at_chunk);
  chunk.read_skip(call, head, lane);
  chunk.read_decays(call, row, head, at_chunk);
  read_tile<Math>(x, chunk, rows_of(a.x, row, head, lane, a.head_width));
  typename Math::Sum y, scores;
  for (int n = 0; n < plan.state_tiles; ++n) {
    read_tile<Math>(C, chunk, rows_of(a.C, row, group, n * Math::kSide, a.states));
    read_tile<Math>(B, chunk, rows_of(a.B, row, group, n * Math::kSide, a.states));
    Math::load(state, call.states + call.tile(unit, local, head, lane_tile, n));
    Math::wait_tiles();
    __syncthreads();
    Math::template add<false, true>(scores, C, B);
    Math::template add<false, true>(y, C, state);
    __syncthreads();
  }
  scores.each([&](int i, int j, T& s) { s *= chunk.between(i, j) * chunk.delta[j]; });
  scores.put(weights, [](int, int, T s) { return s; });
  y.each([&](int i, int, T& v) { v = decayed(v, chunk.since[i]); });
  __syncthreads();
  Math::template add<false, false>(y, weights, x);
  stage.put(y);
  __syncthreads();

  Packs<Math> gates;
  if (present(a.z)) gates.read(rows_of(a.z, row, head, lane, a.head_width), chunk.there);
  write_outputs<Math>(call, chunk, stage, x, gates, row, head, lane);
}

template <class Math>
int outputs_of(const Call<Math>& call, int64_t units, cudaStream_t stream) {
  const int64_t blocks = units * call.plan.segment_chunks * call.a.heads * call.plan.lane_tiles;
  return launch("ssd_scan's outputs", outputs<Math>, dim3(unsigned(blocks)), dim3(Math::kThreads),
                OutputMemory<Math>::kBytes, stream, call);
}

}  // namespace nvsubq::ssd

#endif
