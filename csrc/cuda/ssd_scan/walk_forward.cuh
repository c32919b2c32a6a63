// `ssd_scan`, forward, where a state has few tiles: a block walks a segment and has the state in registers.
#ifndef NVSUBQ_CUDA_SSD_SCAN_WALK_FORWARD_CUH
#define NVSUBQ_CUDA_SSD_SCAN_WALK_FORWARD_CUH

#include "../launch.h"
#include "stage.cuh"

namespace nvsubq::ssd {

constexpr int kMostWalked = 2;  // tiles of states

// Once the outputs have read the states, these make place for the inputs times their decays, and for the stage.
template <class Math, int kTiles>
struct WalkMemory {
  static constexpr int64_t kGiven = Math::Given::kBytes, kMade = Math::Made::kBytes;
  static constexpr int64_t kX = sizeof(Chunk<Math>), kC = kX + kGiven, kB = kC + kTiles * kGiven;
  static constexpr int64_t kWeights = kB + kTiles * kGiven, kStates = kWeights + kMade, kStage = kStates + kMade;
  static constexpr int64_t kBytes = kStage + (kMade > Stage<Math>::kBytes ? kMade : int64_t(Stage<Math>::kBytes));
};

// A block per unit, head and tile of lanes.
template <class Math, int kTiles>
__global__ void __launch_bounds__(Math::kThreads, Math::kOutputs)
    walk_forward(const __grid_constant__ Call<Math> call) {
  using T = typename Math::T;
  using Memory = WalkMemory<Math, kTiles>;
  constexpr int S = Math::kSide;
  extern __shared__ __align__(16) char memory[];
  auto& chunk = *reinterpret_cast<Chunk<Math>*>(memory);
  typename Math::Given x(memory + Memory::kX);
  typename Math::Made weights(memory + Memory::kWeights), rows(memory + Memory::kStates);
  Stage<Math> stage(memory + Memory::kStage);
  const auto C = [&](int t) { return typename Math::Given(memory + Memory::kC + t * Memory::kGiven); };
  const auto B = [&](int t) { return typename Math::Given(memory + Memory::kB + t * Memory::kGiven); };
  const auto state_tile = [&](int t) { return typename Math::Made(memory + Memory::kStates + t * Memory::kMade); };

  const Ssd& a = call.a;
  const Plan& plan = call.plan;
  const int lane = int(blockIdx.x % plan.lane_tiles) * S;
  const int64_t head = blockIdx.x / plan.lane_tiles % a.heads, unit = blockIdx.x / plan.lane_tiles / a.heads;
  const int64_t row = unit / plan.segments, segment = unit % plan.segments, group = call.group(head);
  const int64_t first = segment * plan.segment_chunks;
  const int count = int(first + plan.segment_chunks < plan.chunks ? plan.segment_chunks : plan.chunks - first);

  typename Math::Sum state[kTiles];
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
    state[t].each([&](int p, int n, T& v) {
      if (lane + p < a.head_width && t * S + n < a.states) v = call.entering(row, segment, head, lane + p, t * S + n);
    });
  const Steps steps = call.walk.steps(row, call.block(head));
  typename Chunk<Math>::Cell ahead;
  const auto fetch = [&](int i) {
    Chunk<Math>::fetch_cell(ahead, call, steps, first + i);
    Chunk<Math>::fetch_decays(ahead, call, row, head, first + i);
  };
  if (count) fetch(0);
  chunk.read_skip(call, head, lane);
  for (int i = 0; i < count; ++i) {
    __syncthreads();
    chunk.put_cell(ahead);
    chunk.put_decays(ahead);
    if (i + 1 < count) fetch(i + 1);
    read_tile<Math>(x, chunk, rows_of(a.x, row, head, lane, a.head_width));
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      auto to_C = C(t), to_B = B(t);
      read_tile<Math>(to_C, chunk, rows_of(a.C, row, group, t * S, a.states));
      read_tile<Math>(to_B, chunk, rows_of(a.B, row, group, t * S, a.states));
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      auto to = state_tile(t);
      state[t].put(to, [](int, int, T v) { return v; });
    }
    Math::wait_tiles();
    __syncthreads();
    {
      typename Math::Sum scores;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) Math::template add<false, true>(scores, C(t), B(t));
      scores.each([&](int i, int j, T& s) { s *= chunk.between(i, j) * chunk.delta[j]; });
      scores.put(weights, [](int, int, T s) { return s; });
    }
    typename Math::Sum y;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) Math::template add<false, true>(y, C(t), state_tile(t));
    y.each([&](int i, int, T& v) { v = decayed(v, chunk.since[i]); });
    __syncthreads();
    Math::template add<false, false>(y, weights, x);
    stage.put(y);
    Packs<Math> packs;
    packs.each([&](int r, int c, T(&v)[8]) {
      const T scale = chunk.until[r] * chunk.delta[r];
      x.get8(r, c, v);
#pragma unroll
      for (int k = 0; k < 8; ++k) v[k] *= scale;
      rows.put8(r, c, v);
    });
    if (i + 1 < count && threadIdx.x < S) {
      rows_of(a.x, row, head, lane, a.head_width).bring_near(ahead.there);
      if (present(a.z)) rows_of(a.z, row, head, lane, a.head_width).bring_near(ahead.there);
    }
    if (present(a.z)) packs.read(rows_of(a.z, row, head, lane, a.head_width), chunk.there);
    __syncthreads();
    const T whole = chunk.whole;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      state[t].each([&](int, int, T& v) { v = decayed(v, whole); });
      Math::template add<true, false>(state[t], rows, B(t));
    }
    write_outputs<Math>(call, chunk, stage, x, packs, row, head, lane);
  }
  if (segment + 1 == plan.segments && present(a.final_state))
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
      state[t].each([&](int p, int n, T& v) {
        if (lane + p < a.head_width && t * S + n < a.states)
          write_any<T>(a.final_state, at(a.final_state, row, head, lane + p) + t * S + n, v);
      });
}

template <class Math>
bool walks_forward(const Call<Math>& call) {
  return call.plan.state_tiles <= kMostWalked;
}

template <class Math, int kTiles>
int walk_forward_by(const Call<Math>& call, cudaStream_t stream) {
  const int64_t blocks = call.plan.units * call.a.heads * call.plan.lane_tiles;
  return launch("ssd_scan, forward", walk_forward<Math, kTiles>, dim3(unsigned(blocks)), dim3(Math::kThreads),
                WalkMemory<Math, kTiles>::kBytes, stream, call);
}

template <class Math>
int walk_forward_of(const Call<Math>& call, cudaStream_t stream) {
  return call.plan.state_tiles < 2 ? walk_forward_by<Math, 1>(call, stream) : walk_forward_by<Math, 2>(call, stream);
}

}  // namespace nvsubq::ssd

#endif
