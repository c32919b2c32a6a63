// `ssd_scan`: states along the walk, forwards from the inputs, and backwards their gradients from the cotangents.
//
// Both are one walk over chunks: state = decay state + rows^T matrix, rows being x or the cotangents, each times its
// decay, and matrix B or C. A walk of several segments takes a first pass for what each adds to a state, a sum over
// the segments, and a second pass, a round at a time, that leaves the state at every chunk.
#ifndef NVSUBQ_CUDA_SSD_SCAN_CARRY_CUH
#define NVSUBQ_CUDA_SSD_SCAN_CARRY_CUH

#include "../launch.h"
#include "chunk.cuh"

namespace nvsubq::ssd {

enum class Way { forward, backward };
enum class Pass { first, second };

template <class Math>
constexpr int64_t kCarryBytes = sizeof(Chunk<Math>) + Math::Made::kBytes + Math::Given::kBytes;

// A block per unit, head and tile of its state, as [lanes][states].
template <class Math, Way kWay, Pass kPass>
__global__ void __launch_bounds__(Math::kThreads, Math::kCarries) carry(const __grid_constant__ Call<Math> call) {
  using T = typename Math::T;
  constexpr bool kForward = kWay == Way::forward;
  extern __shared__ __align__(16) char memory[];
  auto& chunk = *reinterpret_cast<Chunk<Math>*>(memory);
  typename Math::Made rows(memory + sizeof(Chunk<Math>));
  typename Math::Given matrix(memory + sizeof(Chunk<Math>) + Math::Made::kBytes);

  const Ssd& a = call.a;
  const Plan& plan = call.plan;
  int64_t task = blockIdx.x;
  const int state_tile = int(task % plan.state_tiles);
  const int lane_tile = int((task /= plan.state_tiles) % plan.lane_tiles);
  const int64_t head = (task /= plan.lane_tiles) % a.heads, unit = task / a.heads;
  const int64_t row = (call.first_unit + unit) / plan.segments, segment = (call.first_unit + unit) % plan.segments;
  const int64_t last = plan.segments - 1;
  const bool enters = segment == (kForward ? 0 : last), ends = segment == (kForward ? last : 0);
  if (kPass == Pass::first && ends) return;

  const int64_t first = segment * plan.segment_chunks;
  const int count = int(first + plan.segment_chunks < plan.chunks ? plan.segment_chunks : plan.chunks - first);
  const int lane = lane_tile * Math::kSide, state = state_tile * Math::kSide;
  T* const borders = kForward ? call.borders : call.d_borders;
  // Borders are counted by the segment before which they lie; backwards, the state comes from the one after it.
  const auto border = [&](int64_t before, int p, int n) {
    return borders + call.border(row, before, head) + (lane + p) * a.states + state + n;
  };
  const auto inside = [&](int p, int n) { return lane + p < a.head_width && state + n < a.states; };

  typename Math::Sum sum;
  const nvsubq_tensor& given = kForward ? a.initial_state : a.d_final_state;
  if (enters && present(given))
    sum.each([&](int p, int n, T& x) {
      if (inside(p, n)) x = read_any<T>(given, at(given, row, head, lane + p) + state + n);
    });
  if (kPass == Pass::second && !enters)
    sum.each([&](int p, int n, T& x) {
      if (inside(p, n)) x = *border(kForward ? segment : segment + 1, p, n);
    });

  const nvsubq_tensor& other = kForward ? a.B : a.C;
  const Rows8 x = rows_of(a.x, row, head, lane, a.head_width);
  const Rows8 group = rows_of(other, row, call.group(head), state, a.states);
  const Steps steps = call.walk.steps(row, call.block(head));
  typename Chunk<Math>::Cell ahead;
  const auto fetch = [&](int i) {
    const int64_t at_chunk = first + (kForward ? i : count - 1 - i);
    Chunk<Math>::fetch_cell(ahead, call, steps, at_chunk);
    Chunk<Math>::fetch_decays(ahead, call, row, head, at_chunk);
  };
  if (count) fetch(0);
  T span = 1;
  for (int i = 0; i < count; ++i) {
    const int local = kForward ? i : count - 1 - i;
    if (kPass == Pass::second)
      Math::store(sum, (kForward ? call.states : call.d_states) + call.tile(unit, local, head, lane_tile, state_tile));
    __syncthreads();
    chunk.put_cell(ahead);
    chunk.put_decays(ahead);
    read_tile<Math>(matrix, chunk, group);
    if (i + 1 < count) fetch(i + 1);
    Packs<Math> packs;
    if (kForward)
      packs.read(x, chunk.there);
    else
      read_cotangents(packs, call, chunk, row, head, lane);
    packs.each([&](int r, int c, T(&v)[8]) {
      const T scale = kForward ? chunk.until[r] * chunk.delta[r] : chunk.since[r];
#pragma unroll
      for (int k = 0; k < 8; ++k) v[k] *= scale;
      rows.put8(r, c, v);
    });
    if (i + 1 < count && threadIdx.x < Math::kSide) {
      group.bring_near(ahead.there);
      if (kForward) x.bring_near(ahead.there);
      if (!kForward) rows_of(a.d_y, row, head, lane, a.head_width).bring_near(ahead.there);
      if (!kForward && present(a.z)) rows_of(a.z, row, head, lane, a.head_width).bring_near(ahead.there);
    }
    Math::wait_tiles();
    __syncthreads();
    const T whole = chunk.whole;
    sum.each([&](int, int, T& v) { v = decayed(v, whole); });
    span *= whole;
    Math::template add<true, false>(sum, rows, matrix);
  }

  if (kPass == Pass::first) {
    if (!lane_tile && !state_tile && !threadIdx.x) call.spans[(row * plan.segments + segment) * a.heads + head] = span;
    sum.each([&](int p, int n, T& v) {
      if (inside(p, n)) *border(kForward ? segment + 1 : segment, p, n) = v;
    });
  } else if (ends) {
    const nvsubq_tensor& to = kForward ? a.final_state : a.d_initial_state;
    if (present(to))
      sum.each([&](int p, int n, T& v) {
        if (inside(p, n)) write_any<T>(to, at(to, row, head, lane + p) + state + n, v);
      });
  }
}

constexpr int kJoinThreads = 128;

// What each segment adds becomes the state at its border; a thread per row and number of the state.
template <class Math, Way kWay>
__global__ void __launch_bounds__(kJoinThreads) join(const __grid_constant__ Call<Math> call) {
  using T = typename Math::T;
  const Ssd& a = call.a;
  const int64_t numbers = a.width * a.states, task = int64_t(blockIdx.x) * kJoinThreads + threadIdx.x;
  if (task >= a.batch * numbers) return;
  const int64_t row = task / numbers, number = task % numbers, head = number / (a.head_width * a.states);
  const int64_t borders = call.plan.segments - 1;
  T* const memory = (kWay == Way::forward ? call.borders : call.d_borders) + row * borders * numbers + number;
  const T* const spans = call.spans + row * call.plan.segments * a.heads + head;
  constexpr int kAhead = 8;  // borders whose reads are under way at once
  T state = 0;
  for (int64_t first = 0; first < borders; first += kAhead) {
    T added[kAhead], span[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int64_t i = first + k < borders ? first + k : borders - 1;
      const int64_t border = kWay == Way::forward ? i : borders - 1 - i;
      added[k] = memory[border * numbers];
      span[k] = spans[(kWay == Way::forward ? border : border + 1) * a.heads];
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (first + k >= borders) break;
      state = first + k ? added[k] + decayed(state, span[k]) : added[k];
      memory[(kWay == Way::forward ? first + k : borders - 1 - first - k) * numbers] = state;
    }
  }
}

template <class Math, Way kWay, Pass kPass>
int carry_units(const Call<Math>& call, int64_t units, cudaStream_t stream) {
  return launch("ssd_scan's states", carry<Math, kWay, kPass>, dim3(unsigned(units * call.plan.tiles(call.a))),
                dim3(Math::kThreads), kCarryBytes<Math>, stream, call);
}

// The states at all borders of segments.
template <class Math, Way kWay>
int carry_borders(const Call<Math>& call, cudaStream_t stream) {
  if (call.plan.segments < 2) return NVSUBQ_OK;
  if (const int status = carry_units<Math, kWay, Pass::first>(call, call.plan.units, stream)) return status;
  const int64_t tasks = call.a.batch * call.a.width * call.a.states;
  return launch("ssd_scan's borders", join<Math, kWay>, dim3(unsigned(ceil_div(tasks, kJoinThreads))),
                dim3(kJoinThreads), 0, stream, call);
}

}  // namespace nvsubq::ssd

#endif
