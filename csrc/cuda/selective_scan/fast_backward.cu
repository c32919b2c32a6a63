// `selective_scan`, backward, fast: a block walks back over one piece of a row's walk, with one chunk of channels.
#include "backward_computing.cuh"

namespace nvsubq::selective {
namespace {

// A window's d_B and d_C, from all warps, to (or added to) the chunk's sums: a thread has four states of some steps.
template <bool WHOLE, bool EXACT>
__device__ __forceinline__ void add_warps(const Window& m, int which, int steps, int states, bool adds) {
  constexpr int kAtOnce = kThreads / 8, kRounds = kWindow / kAtOnce;
  const int thread = this_thread(), v = thread % 8 * 4, first = thread / 8, left = states - v % 16;
  const auto place = [&](int i) {
    const int32_t cell = some_cell(m.cells[which].cell[first + i * kAtOnce]);
    return m.at<float>(v < 16 ? kSumsB : kSumsC, cell, v % 16);
  };
  Pack<float, 4> before[kRounds] = {};
  if (adds && left > 0) {
#pragma unroll
    for (int i = 0; i < kRounds; ++i) before[i] = load_four<WHOLE>(place(i), left);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int k = first + i * kAtOnce;
    if (k >= steps || left <= 0) return;
    float sum[4] = {0, 0, 0, 0};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float* const from = m.slots[k / kTile][w].numbers + Slot::sum_at(k % kTile, v);
      const float4 x = *reinterpret_cast<const float4*>(from);
      sum[0] += x.x, sum[1] += x.y, sum[2] += x.z, sum[3] += x.w;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[j] = before[i].lane[j] + (EXACT ? sum[j] : sum[j] * (kCut * kCut));
    store_four<WHOLE>(place(i), pack<float>(sum), left);
  }
}

// The states that enter a window: as the forward kept them, or as they were given.
template <bool WHOLE>
__device__ __forceinline__ void read_entering(float (&h)[kHeld], const Window& m, const Selective& a, const Place& p,
                                              int64_t row, int first, int there, int window) {
  const int left = p.states_there(int(a.states), there);
  if (window) {
    const float* const kept = m.kept(window, p, int(a.states));
#pragma unroll
    for (int i = 0; i < kHeld; i += 4) {
      if (WHOLE && i < left) {
        const uint4 x = load_passing(kept + i);
        h[i] = __uint_as_float(x.x), h[i + 1] = __uint_as_float(x.y);
        h[i + 2] = __uint_as_float(x.z), h[i + 3] = __uint_as_float(x.w);
      }
#pragma unroll
      for (int j = i; !WHOLE && j < i + 4; ++j)
        if (j < left) h[j] = kept[j];
    }
  } else if (has(a.initial_state)) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (i >= left) continue;
      h[i] = read_any<float>(a.initial_state, at(a.initial_state, row, first + p.channel(), kHeld * p.half + i));
    }
  }
}

// A lane's rates, and the cotangents that arrive at its states.
__device__ __forceinline__ void read_rates(float (&A)[kHeld], float (&q)[kHeld], const Selective& a, const Place& p,
                                           const Partials<float>& partials, const Piece& at_piece, bool cut, int first,
                                           int there) {
  const int channel = first + p.channel(), n = kHeld * p.half, left = p.states_there(int(a.states), there);
  const float* const arriving = partials.of(partials.A, at_piece.number, channel, n);
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    A[i] = q[i] = 0;
    if (i >= left) continue;
    A[i] = read_any<float>(a.A, at(a.A, channel, n + i)) * kLog2e;
    if (cut)
      q[i] = arriving[i];
    else if (has(a.d_final_state))
      q[i] = read_any<float>(a.d_final_state, at(a.d_final_state, at_piece.row, channel, n + i));
  }
}

// A lane's sums over a piece.
template <class S, bool USUAL>
__device__ __forceinline__ void write_sums(const Tiles<S, USUAL>& of, const Selective& a, const Place& p,
                                           const Partials<float>& partials, const Piece& at_piece, int first,
                                           int there) {
  const int channel = first + p.channel(), n = kHeld * p.half, left = p.states_there(int(a.states), there);
  float* const d_A = partials.of(partials.A, at_piece.number, channel, n);
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (i >= left) continue;
    d_A[i] = of.d_A[i];
    if (has(a.d_initial_state) && at_piece.piece == 0)
      write_any<float>(a.d_initial_state, at(a.d_initial_state, at_piece.row, channel, n + i), of.q[i]);
  }
  const float d_skip = of.d_skip + __shfl_xor_sync(~0u, of.d_skip, 4);
  const float d_bias = of.d_bias + __shfl_xor_sync(~0u, of.d_bias, 4);
  if (p.channel() >= there || p.half) return;
  if (partials.D) partials.D[at_piece.number * a.width + channel] = d_skip;
  if (partials.bias) partials.bias[at_piece.number * a.width + channel] = d_bias;
}

// USUAL: see `Maker`.
template <class S, bool USUAL>
__global__ void __launch_bounds__(kThreads, 3)
    selective_fast_backward(const __grid_constant__ Selective a, const __grid_constant__ Walk walk,
                            const __grid_constant__ Chunks chunks, const __grid_constant__ Partials<float> partials,
                            const __grid_constant__ Pieces pieces, const __grid_constant__ Options is) {
  extern __shared__ __align__(16) char memory[];
  auto& m = *reinterpret_cast<Window*>(memory);
  const Piece at_piece(a, chunks, pieces);
  const int states = int(a.states);
  const Steps steps = walk.steps(at_piece.row, at_piece.group * a.blocks / chunks.groups);
  const int chunk_begin = int(at_piece.group * chunks.run + at_piece.chunk % chunks.per_group * chunks.width);
  const int group_end = int((at_piece.group + 1) * chunks.run);
  const int chunk_end = min(chunk_begin + int(chunks.width), group_end);
  const int end = int(steps.count < at_piece.end ? steps.count : at_piece.end);
  const int first_window = at_piece.begin / kWindow;
  const int last = end > at_piece.begin ? (end - 1) / kWindow : first_window - 1;
  const auto steps_in = [&](int window) { return min(end - window * kWindow, kWindow); };
  const auto tiles_in = [&](int window) { return (steps_in(window) + kTile - 1) / kTile; };

  for (int first = chunk_begin; first < chunk_end; first += kBlock) {
    const bool adds = first != chunk_begin;
    const int there = min(chunk_end - first, kBlock);
    m.template find_rows<S>(a, is, partials, at_piece, first);
    const Place p(threadIdx.x);
    const int made = p.warp * kOwn + p.made;
    const Maker<S, USUAL> maker{is, of_channel(a.delta_bias, first, made, there), made < there};
    Tiles<S, USUAL> computing(m, maker, p);
    computing.skip = of_channel(a.D, first, p.channel(), there);
    read_rates(computing.A, computing.q, a, p, partials, at_piece, pieces.count > 1, first, there);
    if (threadIdx.x < kWindow) {
      NextCell next;
      next.ask(steps, int64_t(last) * kWindow + threadIdx.x);
      next.put(steps, m.cells[last & 1], int(threadIdx.x));
    }
    __syncthreads();

    for (int window = last; window >= first_window; --window) {
      const int which = window & 1, tiles = tiles_in(window);
      const Place here(this_thread());
      // What global memory has is asked for long before it is needed.
      Window::Asked<S> states_of;
      typename Packets<S, 2 * kTile>::Asked first_pair;
      typename Packets<S, kTile>::Asked last_tile;
      m.template ask<USUAL>(states_of, states, which);
      const Packets<S, 2 * kTile> pairs(m, kDelta, 2, here, there);
      pairs.template ask<USUAL>(first_pair, m.cells[which].cell);
      Packets<S, kTile>(m, kDelta, 4, here, there)
          .template ask<USUAL>(last_tile, m.cells[which].cell + kTile * (tiles - 1));
      float entering[kHeld] = {};
      read_entering<USUAL>(entering, m, a, here, at_piece.row, first, there, window);
      m.lay(states_of, states);
      __syncthreads();
      const auto walk_window = [&](auto starts_of) {
        constexpr bool starts = decltype(starts_of)::value;
        NextCell next;
        next.ask(steps, int64_t(window - 1) * kWindow + this_thread() % kWindow);
        computing.template ahead<starts>(entering, which, tiles, pairs, first_pair);
        if (const int thread = this_thread(); thread < kWindow) {
          next.put(steps, m.cells[which ^ 1], thread);
          m.template ask_ahead<S>(next.cell(steps));
        }
        if (window > 1) prefetch(m.kept(window - 1, Place(this_thread()), states));
        const Place again(this_thread());
        computing.template back<starts>(which, tiles, {m, kDelta, 4, again, there},
                                        {m, kGradU, maker.gated() ? 3 : 2, again, there}, last_tile);
      };
      if (!USUAL || m.cells[which].any_starts())
        walk_window(std::true_type());
      else
        walk_window(std::false_type());
      add_warps<USUAL, kExact<S>>(m, which, steps_in(window), states, adds);
    }

    write_sums(computing, a, p, partials, at_piece, first, there);
    // Steps from `end` on visit cells that are not there.
    const Place late(this_thread());
    for (int k = max(end, at_piece.begin) + late.half; k < at_piece.end && late.channel() < there; k += 2)
      for (const Tensor of : {kGradU, kGradDelta, kGradZ})
        *m.at<S>(of, uint32_t(steps.cell(k)), late.channel()) = narrow<S>(0.0f);
    __syncthreads();
  }
  for (int k = max(end, at_piece.begin); k < at_piece.end; ++k) {
    const int n = threadIdx.x % 32;
    if (threadIdx.x < 32 && n % 16 < states)
      *partials.of(n < 16 ? partials.B : partials.C, at_piece.row, steps.cell(k), at_piece.chunk, n % 16) = 0;
  }
}

struct Plan {
  Arena arena;
  Chunks chunks;
  Pieces pieces;
  Partials<float> partials;
  float* sums;  // of delta, [pieces][D]

  Plan(const Selective& a, void* memory)
      : arena(memory), chunks(a), pieces(a, false), partials(arena, a, chunks.count, a.batch * pieces.count),
        sums(arena.take<float>(a.batch * pieces.count * a.width)) {}
};

template <class S>
int run(const Selective& a, const Plan& plan, cudaStream_t stream) {
  const auto& [arena, chunks, pieces, partials, sums] = plan;
  const Options is = options_of(a);
  if (pieces.count > 1)
    if (const int status = carry<S>(a, pieces, false, is, partials.A.sums, sums, stream)) return status;
  const dim3 grid(unsigned(a.batch * pieces.count * chunks.count));
  const bool usual = is.soft && is.gated && is.packed;
  const auto kernel = usual ? selective_fast_backward<S, true> : selective_fast_backward<S, false>;
  if (const int status = launch("selective_scan backward", kernel, grid, kThreads, sizeof(Window), stream, a, Walk(a),
                                chunks, partials, pieces, is))
    return status;
  return add_up(a, partials, chunks.groups, stream);
}

}  // namespace

bool is_fast_backward(const Selective& a) {
  return is_fast(a) && a.states <= kMostFast && a.width * a.states < int64_t(1) << 30;
}

int64_t fast_backward_bytes(const Selective& a) { return Plan(a, nullptr).arena.bytes(); }

int fast_backward(const Selective& a, void* memory, cudaStream_t stream) {
  const Plan plan(a, memory);
  switch (a.u.dtype) {
    case NVSUBQ_F32: return run<float>(a, plan, stream);
    case NVSUBQ_F16: return run<f16>(a, plan, stream);
    default: return run<bf16>(a, plan, stream);
  }
}

}  // namespace nvsubq::selective
