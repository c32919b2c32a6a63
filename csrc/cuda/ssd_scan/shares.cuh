// `ssd_scan`, backward: the gradients of B and C, which the heads of a group share.
#ifndef NVSUBQ_CUDA_SSD_SCAN_SHARES_CUH
#define NVSUBQ_CUDA_SSD_SCAN_SHARES_CUH

#include "../launch.h"
#include "stage.cuh"

namespace nvsubq::ssd {

// At the end the inputs' memory takes B and C, that of the cotangents the weights, that of the states the stage.
template <class Math>
struct ShareMemory {
  static constexpr int64_t kGiven = Math::Given::kBytes, kMade = Math::Made::kBytes, kStage = Stage<Math>::kBytes;
  static constexpr int64_t kX = sizeof(Chunk<Math>), kOut = kX + kGiven, kStates = kOut + kMade;
  static constexpr int64_t kBytes = kStates + 4 * kMade;
  static_assert(kStage <= 2 * kMade, "");
};

// A block per unit, chunk, group and tile of states: the group's heads one after the other.
template <class Math>
__global__ void __launch_bounds__(Math::kThreads, Math::kShares) shares(const __grid_constant__ Call<Math> call) {
  using T = typename Math::T;
  using Memory = ShareMemory<Math>;
  extern __shared__ __align__(16) char memory[];
  auto& chunk = *reinterpret_cast<Chunk<Math>*>(memory);
  typename Math::Given x(memory + Memory::kX);
  typename Math::Made out(memory + Memory::kOut);
  const auto state = [&](int64_t step) {
    return typename Math::Made(memory + Memory::kStates + step % 2 * 2 * Memory::kMade);
  };
  const auto next = [&](int64_t step) {
    return typename Math::Made(memory + Memory::kStates + (step % 2 * 2 + 1) * Memory::kMade);
  };
  Stage<Math> stage(memory + Memory::kStates);

  const Ssd& a = call.a;
  const Plan& plan = call.plan;
  int64_t task = blockIdx.x;
  const int n = int(task % plan.state_tiles);
  const int64_t group = (task /= plan.state_tiles) % a.groups, local = (task /= a.groups) % plan.segment_chunks;
  const int64_t unit = task / plan.segment_chunks, row = (call.first_unit + unit) / plan.segments;
  const int64_t at_chunk = (call.first_unit + unit) % plan.segments * plan.segment_chunks + local;
  if (at_chunk >= plan.chunks) return;
  const int64_t heads = a.heads / a.groups;

  // The states of the next head and tile of lanes are read while this one's are multiplied.
  const int64_t steps = heads * plan.lane_tiles;
  const auto read_states = [&](int64_t step) {
    const int64_t head = group * heads + step / plan.lane_tiles;
    const int p = int(step % plan.lane_tiles);
    auto to_state = state(step), to_next = next(step);
    Math::load(to_state, call.states + call.tile(unit, local, head, p, n));
    Math::load(to_next, call.d_states + call.tile(unit, local, head, p, n));
    Math::commit_tiles();
  };
  typename Chunk<Math>::Cell decays;
  Chunk<Math>::fetch_decays(decays, call, row, group * heads, at_chunk);
  chunk.read_cells(call, row, call.block(group * heads), at_chunk);
  read_states(0);
  typename Math::Sum d_C, d_B, weights, between;
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t head = group * heads + step / plan.lane_tiles;
    const int p = int(step % plan.lane_tiles), lane = p * Math::kSide;
    __syncthreads();
    if (!p) {
      chunk.put_decays(decays);
      if (step + plan.lane_tiles < steps) Chunk<Math>::fetch_decays(decays, call, row, head + 1, at_chunk);
    }
    read_tile<Math>(x, chunk, rows_of(a.x, row, head, lane, a.head_width));
    Math::commit_tiles();
    if (step + 1 < steps) read_states(step + 1);
    {
      Packs<Math> cotangents;
      read_cotangents(cotangents, call, chunk, row, head, lane);
      cotangents.each([&](int r, int c, T(&v)[8]) { out.put8(r, c, v); });
    }
    if (step + 1 < steps)
      Math::wait_older_tiles();
    else
      Math::wait_tiles();
    __syncthreads();
    Math::template add<false, true>(between, out, x);
    {
      typename Math::Sum read;
      Math::template add<false, false>(read, out, state(step));
      d_C.with(read, [&](int i, int, T& to, T v) { to += decayed(v, chunk.since[i]); });
    }
    {
      typename Math::Sum given;
      Math::template add<false, false>(given, x, next(step));
      d_B.with(given, [&](int j, int, T& to, T v) { to += decayed(v, chunk.until[j] * chunk.delta[j]); });
    }
    if (p + 1 < plan.lane_tiles) continue;
    weights.with(between, [&](int i, int j, T& to, T& v) {
      to += v * (chunk.between(i, j) * chunk.delta[j]);
      v = T(0);
    });
  }

  __syncthreads();
  weights.put(out, [](int, int, T v) { return v; });
  typename Math::Given& matrix = x;
  const auto write = [&](typename Math::Sum& sum, const nvsubq_tensor& to) {
    stage.put(sum);
    __syncthreads();
    const Rows8 rows = rows_of(to, row, group, n * Math::kSide, a.states);
    Packs<Math>().each([&](int r, int c, T(&v)[8]) {
      if (chunk.cell[r] < 0 || n * Math::kSide + c >= a.states) return;
      stage.take8(r, c, v);
      rows.write(chunk.cell[r], c, v);
    });
  };
  read_tile<Math>(matrix, chunk, rows_of(a.B, row, group, n * Math::kSide, a.states));
  Math::wait_tiles();
  __syncthreads();
  Math::template add<false, false>(d_C, out, matrix);
  write(d_C, a.d_C);
  __syncthreads();
  read_tile<Math>(matrix, chunk, rows_of(a.C, row, group, n * Math::kSide, a.states));
  Math::wait_tiles();
  __syncthreads();
  Math::template add<true, false>(d_B, out, matrix);
  write(d_B, a.d_B);
}

template <class Math>
int shares_of(const Call<Math>& call, int64_t units, cudaStream_t stream) {
  const int64_t blocks = units * call.plan.segment_chunks * call.a.groups * call.plan.state_tiles;
  return launch("ssd_scan's gradients of a group", shares<Math>, dim3(unsigned(blocks)), dim3(Math::kThreads),
                ShareMemory<Math>::kBytes, stream, call);
}

}  // namespace nvsubq::ssd

#endif
