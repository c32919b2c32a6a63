// `ssd_scan`, backward: what belongs to a head, chunk by chunk: the gradients of x, z and dt, and parts of those of A,
// dt_bias and D.
#ifndef NVSUBQ_CUDA_SSD_SCAN_RATES_CUH
#define NVSUBQ_CUDA_SSD_SCAN_RATES_CUH

#include "../launch.h"
#include "prepare.cuh"
#include "stage.cuh"

namespace nvsubq::ssd {

// Sums over a chunk's cells, in shared memory: by cell, what it takes from earlier cells and from the entering state,
// and for a step of one what it gives to later cells, to itself, and to the leaving state.
template <class Math>
struct alignas(16) CellSums {
  static constexpr int S = Math::kSide;
  using T = typename Math::T;

  double parts[Math::kThreads];
  double taken[S], given[S], running[2][3][S];
  T lanes[Math::kThreads], read[S], itself[S], left[S], skip[S];
  T by_step[S], by_rate[S];
};

// C and B, read anew for every tile of states, make place for the weights; the two states for the stage.
template <class Math>
struct RateMemory {
  static constexpr int64_t kGiven = Math::Given::kBytes, kMade = Math::Made::kBytes, kStage = Stage<Math>::kBytes;
  static constexpr int64_t kSums = sizeof(Chunk<Math>), kC = kSums + sizeof(CellSums<Math>), kB = kC + kGiven;
  static constexpr int64_t kWeights = kC, kX = kC + (2 * kGiven > kMade ? 2 * kGiven : kMade), kOut = kX + kGiven;
  static constexpr int64_t kState = kOut + Math::Fine::kBytes, kNext = kState + kMade, kBytes = kNext + kMade;
  static_assert(kStage <= 2 * kMade, "");
};

// A block per unit, chunk and head.
template <class Math>
__global__ void __launch_bounds__(Math::kThreads, Math::kRates) rates(const __grid_constant__ Call<Math> call) {
  using T = typename Math::T;
  using Memory = RateMemory<Math>;
  constexpr int S = Math::kSide;
  extern __shared__ __align__(16) char memory[];
  auto& chunk = *reinterpret_cast<Chunk<Math>*>(memory);
  auto& sums = *reinterpret_cast<CellSums<Math>*>(memory + Memory::kSums);
  typename Math::Given C(memory + Memory::kC), B(memory + Memory::kB), x(memory + Memory::kX);
  typename Math::Fine out(memory + Memory::kOut);
  typename Math::Made weights(memory + Memory::kWeights), coarse_out(memory + Memory::kOut);
  typename Math::Made state(memory + Memory::kState), next(memory + Memory::kNext);
  Stage<Math> stage(memory + Memory::kState);

  const Ssd& a = call.a;
  const Plan& plan = call.plan;
  int64_t task = blockIdx.x;
  const int64_t head = task % a.heads, local = (task /= a.heads) % plan.segment_chunks;
  const int64_t unit = task / plan.segment_chunks, row = (call.first_unit + unit) / plan.segments;
  const int64_t at_chunk = (call.first_unit + unit) % plan.segments * plan.segment_chunks + local;
  if (at_chunk >= plan.chunks) return;
  const int64_t group = call.group(head), part = (row * plan.chunks + at_chunk) * a.heads + head;

  const auto read_group = [&](int n) {
    read_tile<Math>(C, chunk, rows_of(a.C, row, group, n * S, a.states));
    read_tile<Math>(B, chunk, rows_of(a.B, row, group, n * S, a.states));
  };
  const auto read_lanes = [&](int lane) {
    chunk.read_skip(call, head, lane);
    read_tile<Math>(x, chunk, rows_of(a.x, row, head, lane, a.head_width));
    Packs<Math> cotangents;
    read_cotangents(cotangents, call, chunk, row, head, lane);
    cotangents.each([&](int r, int c, T(&v)[8]) { out.put8(r, c, v); });
  };

  chunk.read_cells(call, row, call.block(head), at_chunk);
  chunk.read_decays(call, row, head, at_chunk);
  typename Math::Sum scores, products;  // C B^T, and the cotangents times the inputs
  T whole = 0;                          // of the entering state and the gradient of the leaving one
  for (int p = 0; p < plan.lane_tiles; ++p) {
    const int lane = p * S;
    typename Math::Sum y, d_x;
    for (int n = 0; n < plan.state_tiles; ++n) {
      read_group(n);
      Math::load(state, call.states + call.tile(unit, local, head, p, n));
      Math::load(next, call.d_states + call.tile(unit, local, head, p, n));
      if (!n) read_lanes(lane);
      Math::wait_tiles();
      __syncthreads();
      if (!p) Math::template add<false, true>(scores, C, B);
      Math::template add<false, true>(y, C, state);
      Math::template add<false, true>(d_x, B, next);
#pragma unroll 4
      for (int i = threadIdx.x; i < S * S; i += Math::kThreads)
        whole += state.get(i / S, i % S) * next.get(i / S, i % S);
      __syncthreads();
    }
    Math::template add<false, true>(products, out, x);
    if (!p) scores.each([&](int i, int j, T& s) { s *= chunk.between(i, j); });
    y.each([&](int i, int, T& v) { v = decayed(v, chunk.since[i]); });
    d_x.each([&](int j, int, T& v) { v = decayed(v, chunk.until[j]); });
    stage.put(y);
    __syncthreads();
    sum_lines<Math>(sums.lanes, sums.read, p > 0, [&](int i, int k) { return stage.at(i, k) * out.get(i, k); });
    stage.put(d_x);
    __syncthreads();
    sum_lines<Math>(sums.lanes, sums.left, p > 0, [&](int j, int k) { return stage.at(j, k) * x.get(j, k); });

    if (present(a.z)) {
      scores.put(weights, [&](int, int j, T s) { return s * chunk.delta[j]; });
      __syncthreads();
      Math::template add<false, false>(y, weights, x);
      stage.put(y);
      __syncthreads();
      const Rows8 to = rows_of(a.d_z, row, head, lane, a.head_width);
      Packs<Math> gates, from;
      gates.read(rows_of(a.z, row, head, lane, a.head_width), chunk.there);
      from.read(rows_of(a.d_y, row, head, lane, a.head_width), chunk.there);
#pragma unroll
      for (int i = 0; i < Packs<Math>::kOwn; ++i)
#pragma unroll
        for (int k = 0; k < 8; ++k) from.v[i][k] *= silu_slope(gates.v[i][k]);
      from.each([&](int r, int c, T(&v)[8]) {
        if (chunk.cell[r] < 0 || lane + c >= a.head_width) return;
#pragma unroll
        for (int k = 0; k < 8; ++k)
          v[k] *= stage.at(r, c + k) + (present(a.D) ? chunk.skip[c + k] * x.get(r, c + k) : T(0));
        to.write(chunk.cell[r], c, v);
      });
    }

    scores.put(weights, [](int, int, T s) { return s; });
    __syncthreads();
    Math::template add<true, false>(d_x, weights, coarse_out);
    stage.put(d_x);
    __syncthreads();
    const Rows8 to = rows_of(a.d_x, row, head, lane, a.head_width);
    Packs<Math>().each([&](int r, int c, T(&v)[8]) {
      if (chunk.cell[r] < 0 || lane + c >= a.head_width) return;
      stage.take8(r, c, v);
#pragma unroll
      for (int k = 0; k < 8; ++k)
        v[k] = v[k] * chunk.delta[r] + (present(a.D) ? chunk.skip[c + k] * out.get(r, c + k) : T(0));
      to.write(chunk.cell[r], c, v);
    });
    if (present(a.d_D)) {
      sum_lines<Math>(sums.lanes, sums.skip, false, [&](int k, int i) { return x.get(i, k) * out.get(i, k); });
      for (int k = threadIdx.x; k < S && lane + k < a.head_width; k += Math::kThreads)
        call.by_skip[part * a.head_width + lane + k] = sums.skip[k];
    }
    __syncthreads();
  }

  // What passes from cell j to a later cell i. Differences of its sums by i and by j are exact but for rounding in
  // double precision, since both are sums of the same numbers.
  scores.with(products, [&](int i, int j, T s, T v) {
    stage.at(i, j) = i > j ? s * v : T(0);
    if (i == j) sums.itself[i] = s * v;
  });
  sums.lanes[threadIdx.x] = whole;
  __syncthreads();
  sum_lines<Math>(sums.parts, sums.taken, false,
                  [&](int i, int j) { return double(stage.at(i, j)) * double(chunk.delta[j]); });
  sum_lines<Math>(sums.parts, sums.given, false, [&](int j, int i) { return double(stage.at(i, j)); });
  // Of a cell's Δ A: all that passes over the cell, to it or a later one from an earlier one. Running sums over the
  // cells from the last one, over those from the first one, and of the states.
  const int line = threadIdx.x / S, k = threadIdx.x % S, last = S - 1 - k;
  double sum = 0;
  if (line == 0) sum = sums.taken[last] - sums.given[last] * chunk.delta[last] + double(sums.read[last]);
  if (line == 1 && k) sum = double(sums.left[k - 1]) * chunk.delta[k - 1];
  if (line == 2)
    for (int i = k; i < Math::kThreads; i += S) sum += sums.lanes[i];
#pragma unroll
  for (int reach = 1, turn = 0; reach < S; reach *= 2, turn ^= 1) {
    if (line < 3) sums.running[turn][line][k] = sum;
    __syncthreads();
    if (line < 3 && k >= reach) sum += sums.running[turn][line][k - reach];
  }
  __syncthreads();
  if (line < 3) sums.running[0][line][k] = sum;
  __syncthreads();
  for (int t = threadIdx.x; t < S; t += Math::kThreads) {
    const double whole = decayed(sums.running[0][2][S - 1], double(chunk.whole));
    const double over = whole + sums.running[0][0][S - 1 - t] + sums.running[0][1][t];
    const int64_t cell = chunk.there[t];
    T d_raw = 0, d_rate = 0;
    if (cell >= 0) {
      const T rate = read_any<T>(a.A, head * a.A.stride[0]);
      const T slope = Step<T>(a, raw_step<T>(a, row, cell, head)).slope;
      d_raw = slope * (rate * T(over) + (T(sums.given[t]) + sums.itself[t] + sums.left[t]));
      d_rate = chunk.delta[t] * T(over);
    }
    if (chunk.cell[t] >= 0) write_any<T>(a.d_dt, at(a.d_dt, row, chunk.cell[t], head), d_raw);
    sums.by_step[t] = d_raw, sums.by_rate[t] = d_rate;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0 && threadIdx.x < 64) {  // in two warps
    const T* const of = threadIdx.x ? sums.by_step : sums.by_rate;
    T all = 0;
#pragma unroll
    for (int t = 0; t < S; ++t) all += of[t];
    (threadIdx.x ? call.by_bias : call.by_rate)[part] = all;
  }
}

template <class Math>
int rates_of(const Call<Math>& call, int64_t units, cudaStream_t stream) {
  const int64_t blocks = units * call.plan.segment_chunks * call.a.heads;
  return launch("ssd_scan's gradients of a head", rates<Math>, dim3(unsigned(blocks)), dim3(Math::kThreads),
                RateMemory<Math>::kBytes, stream, call);
}

}  // namespace nvsubq::ssd

#endif
