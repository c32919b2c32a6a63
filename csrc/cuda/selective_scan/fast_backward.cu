// `selective_scan`, backward, fast: a block walks back over one piece of a row's walk, with one chunk of channels.
#include "backward_computing.cuh"

namespace nvsubq::selective {
namespace {

// A window's d_B and d_C, from all warps, to (or added to) the chunk's sums: a thread has four states of a step.
template <bool WHOLE, bool EXACT>
__device__ __forceinline__ void add_warps(const Window& m, int which, int steps, int states, bool adds, float* sums,
                                          uint32_t by_cell) {
  constexpr int kAtOnce = kThreads / 8, kRounds = kWindow / kAtOnce;
  const int v = threadIdx.x % 8 * 4, first = threadIdx.x / 8, left = states - v % 16;
  const auto place = [&](int i) {
    return sums + uint64_t(uint32_t(some_cell(m.cells[which].cell[first + i * kAtOnce]))) * by_cell;
  };
  Pack<float, 4> before[kRounds] = {};
  if (adds) {
#pragma unroll
    for (int i = 0; i < kRounds; ++i)
      if (left > 0) before[i] = load_four<WHOLE>(place(i), left);
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

template <class S, bool USUAL>
__global__ void __launch_bounds__(kThreads, 3)
    selective_fast_backward(const __grid_constant__ Selective a, const __grid_constant__ Walk walk,
                            const __grid_constant__ Chunks chunks, const __grid_constant__ Partials<float> partials,
                            const __grid_constant__ Pieces pieces, const __grid_constant__ Options is) {
  extern __shared__ __align__(16) char memory[];
  auto& m = *reinterpret_cast<Window*>(memory);
  const Piece at_piece(a, chunks, pieces, blockIdx.x);
  const int64_t row = at_piece.row, states = a.states;
  const Steps steps = walk.steps(row, at_piece.group * a.blocks / chunks.groups);
  const int64_t chunk_begin = at_piece.group * chunks.run + at_piece.chunk % chunks.per_group * chunks.width;
  const int64_t group_end = (at_piece.group + 1) * chunks.run;
  const int64_t chunk_end = chunk_begin + chunks.width < group_end ? chunk_begin + chunks.width : group_end;
  const int64_t end = steps.count < at_piece.end ? steps.count : at_piece.end;
  const int64_t last = end > at_piece.begin ? (end - 1) / kWindow : -1, first_window = at_piece.begin / kWindow;

  // This thread's columns of d_B or d_C, and how far cells are apart in them.
  const int v = threadIdx.x % 8 * 4;
  float* const v_sums = partials.of(v < 16 ? partials.B : partials.C, row, 0, at_piece.chunk, v % 16);
  const uint32_t by_cell = uint32_t(partials.chunks * states);
  // Its columns of B and C.
  const int n = threadIdx.x % 4 * 4, left = int(states) - n, some_n = left > 0 ? n : 0;
  const Row<const S> B(a.B, row, at_piece.group * a.B.stride[2] + some_n);
  const Row<const S> C(a.C, row, at_piece.group * a.C.stride[2] + some_n);

  for (int64_t first = chunk_begin; first < chunk_end; first += kBlock) {
    const bool adds = first != chunk_begin;
    const int there = int(chunk_end - first < kBlock ? chunk_end - first : kBlock);
    const Place p;
    m.template find_rows<S>(a, is, row, first);
    const Channel<S, USUAL> channel(a, is, first, p.channel(), there);
    Tiles<S, USUAL> computing(m, channel, p);
    // Of [D, N]: this lane's first element, and whether the i-th of its eight is there.
    const int64_t at_channel = first + p.channel(), first_state = kHeld * p.half;
    const int64_t element = at_channel * states + first_state;
    const auto is_real = [&](int i) { return channel.there && first_state + i < states; };
    const auto given = [&](const nvsubq_tensor& t, int i) {
      return read_any<float>(t, at(t, row, at_channel, first_state + i));
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      computing.A[i] = is_real(i) ? read_any<float>(a.A, at(a.A, at_channel, first_state + i)) * kLog2e : 0.0f;
      computing.d_A[i] = computing.q[i] = 0;
      if (!is_real(i)) continue;
      if (pieces.count > 1)
        computing.q[i] = partials.A.sums[at_piece.number * a.width * states + element + i];
      else if (has(a.d_final_state))
        computing.q[i] = given(a.d_final_state, i);
    }
    const float* const kept = static_cast<const float*>(a.saved) + row * borders(a.length) * a.width * states + element;
    NextCell next;
    const bool leads = threadIdx.x < kWindow;
    if (leads && last >= 0) next.ask(steps, last * kWindow + threadIdx.x);
    int which = 0;
    for (int64_t window = last; window >= first_window; --window, which ^= 1) {
      const int64_t begin = window * kWindow;
      const int in_window = int(end - begin < kWindow ? end - begin : kWindow), tiles = (in_window + kTile - 1) / kTile;
      if (leads) next.put(steps, m.cells[which], int(threadIdx.x));
      float entering[kHeld] = {};
      if (window) {
        const float* const border = kept + (window - 1) * a.width * states;
#pragma unroll
        for (int i = 0; i < kHeld; ++i)
          if (is_real(i)) entering[i] = border[i];
      } else if (has(a.initial_state)) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i)
          if (is_real(i)) entering[i] = given(a.initial_state, i);
      }
      __syncthreads();
      if (leads && window > first_window) next.ask(steps, begin - kWindow + threadIdx.x);
      // Ahead and back over the window. Whatever global memory has is asked for long before it is needed.
      const auto walk_window = [&](auto starts_of, auto packed_of) {
        constexpr bool starts = decltype(starts_of)::value, packed = decltype(packed_of)::value;
        const int32_t* const cells = m.cells[which].cell;
        const Packets<S, 2 * kTile> pairs(m, kDelta, 2, p, there);
        const Packets<S, kTile> packets(m, kDelta, 4, p, there);
        typename Packets<S, 2 * kTile>::Asked first_pair;
        typename Packets<S, kTile>::Asked last_tile;
        pairs.template ask<packed>(first_pair, cells);
        if (is.whole)
          m.template lay<S, true>(B, C, left, which);
        else
          m.template lay<S, false>(B, C, left, which);
        packets.template ask<packed>(last_tile, cells + kTile * (tiles - 1));
        __syncthreads();
        computing.template ahead<starts, packed>(entering, which, tiles, pairs, first_pair);
        if (window > first_window) {
          if (leads) ask_ahead(m, B, C, next.cell(steps));
          if (window > 1) prefetch(kept + (window - 2) * a.width * states);
        }
        const Packets<S, kTile> gradients(m, kGradU, channel.gated() ? 3 : 2, p, there);
        computing.template back<starts, packed>(which, tiles, packets, gradients, last_tile);
      };
      using No = std::false_type;
      using Yes = std::true_type;
      const bool starts = m.cells[which].any_starts();
      if constexpr (USUAL)
        starts ? walk_window(Yes(), Yes()) : walk_window(No(), Yes());
      else
        walk_window(Yes(), No());
      if (is.whole)
        add_warps<true, kExact<S>>(m, which, in_window, int(states), adds, v_sums, by_cell);
      else
        add_warps<false, kExact<S>>(m, which, in_window, int(states), adds, v_sums, by_cell);
    }

#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (!is_real(i)) continue;
      partials.A.sums[at_piece.number * a.width * states + element + i] = computing.d_A[i];
      if (has(a.d_initial_state) && at_piece.piece == 0)
        write_any<float>(a.d_initial_state, at(a.d_initial_state, row, at_channel, first_state + i), computing.q[i]);
    }
    const float d_skip = computing.d_skip + __shfl_xor_sync(~0u, computing.d_skip, 4);
    const float d_bias = computing.d_bias + __shfl_xor_sync(~0u, computing.d_bias, 4);
    if (channel.there && p.half == 0) {
      if (partials.D) partials.D[at_piece.number * partials.width + at_channel] = d_skip;
      if (partials.bias) partials.bias[at_piece.number * partials.width + at_channel] = d_bias;
    }
    if (channel.there) {
      const Row<S> d_u(a.d_u, row, at_channel), d_delta(a.d_delta, row, at_channel);
      const Row<S> d_z(channel.gated() ? a.d_z : a.d_u, row, at_channel);
      for (int64_t k = (steps.count > at_piece.begin ? steps.count : at_piece.begin) + p.half; k < at_piece.end; k += 2) {
        const int32_t cell = int32_t(steps.cell(k));
        *d_u.at(cell) = *d_delta.at(cell) = *d_z.at(cell) = narrow<S>(0.0f);
      }
    }
    __syncthreads();
  }
  for (int64_t k = steps.count > at_piece.begin ? steps.count : at_piece.begin; k < at_piece.end; ++k) {
    const int n = threadIdx.x % 32;
    if (threadIdx.x < 32 && n % 16 < states)
      *partials.of(n < 16 ? partials.B : partials.C, row, steps.cell(k), at_piece.chunk, n % 16) = 0;
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
  const auto kernel = is.soft && is.gated && is.packed ? selective_fast_backward<S, true> : selective_fast_backward<S, false>;
  if (const int status = launch("selective_scan backward", kernel, grid, kThreads,
                                sizeof(Window), stream, a, Walk(a), chunks, partials, pieces, is))
    return status;
  return add_up(a, partials, chunks.groups, stream);
}

}  // namespace

bool is_fast_backward(const Selective& a) { return is_fast(a) && a.states <= kMostFast; }

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
