// `selective_scan`, backward, fast: a block walks back over one piece of a row's walk, with one chunk of channels.
#include "backward_computing.cuh"
#include "backward_writing.cuh"

namespace nvsubq::selective {
namespace {

// Sums of d_D and d_bias over the threads that have the same channels.
__device__ __forceinline__ void add_threads(float* scratch, const float (&d_skip)[4], const float (&d_bias)[4],
                                            const Partials<float>& partials, int64_t piece, int64_t first, int there) {
  const int four = threadIdx.x % (kWide / 4), first_row = threadIdx.x / (kWide / 4);
  __syncthreads();
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    scratch[first_row * kWide + 4 * four + j] = d_skip[j];
    scratch[(kAtOnce + first_row) * kWide + 4 * four + j] = d_bias[j];
  }
  __syncthreads();
  const int channel = threadIdx.x % kWide, which = threadIdx.x / kWide;
  float* to = which == 0 ? partials.D : which == 1 ? partials.bias : nullptr;
  if (to && channel < there) {
    float sum = 0;
    for (int i = 0; i < kAtOnce; ++i) sum += scratch[(which * kAtOnce + i) * kWide + channel];
    to[piece * partials.width + first + channel] = sum;
  }
  __syncthreads();
}

// Some steps' d_B and d_C, from all warps, to (or added to) the chunk's sums: a thread has four states of a step.
template <bool WHOLE, bool EXACT>
__device__ __forceinline__ void add_warps(const BackwardMemory& m, int begin, int steps, int states, bool adds,
                                          float* sums, uint32_t by_cell) {
  const int v = threadIdx.x % 8 * 4, k = threadIdx.x / 8, left = states - v % 16;
  static_assert(kBackThreads / 8 == kPart);
  const bool is_there = left > 0 && begin + k < steps;
  float* const to = sums + uint64_t(is_there ? uint32_t(m.window.cells.cell[begin + k]) : 0u) * by_cell;
  Pack<float, 4> before{};
  if (adds && is_there) before = load_four<WHOLE>(to, left);
  __syncthreads();
  float sum[4] = {0, 0, 0, 0};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const float4 x = *reinterpret_cast<const float4*>(&m.by_channel[w][k][v]);
    sum[0] += x.x, sum[1] += x.y, sum[2] += x.z, sum[3] += x.w;
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < 4; ++j) sum[j] = before.lane[j] + (EXACT ? sum[j] : sum[j] * (kCut * kCut));
  if (is_there) store_four<WHOLE>(to, pack<float>(sum), left);
}

template <class S>
__global__ void __launch_bounds__(kBackThreads, 3)
    selective_fast_backward(const __grid_constant__ Selective a, const __grid_constant__ Walk walk,
                            const __grid_constant__ Chunks chunks, const __grid_constant__ Partials<float> partials,
                            const __grid_constant__ Pieces pieces, const __grid_constant__ Options is) {
  extern __shared__ __align__(16) char memory[];
  auto& m = *reinterpret_cast<BackwardMemory*>(memory);
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
  float* v_sums = partials.of(v < 16 ? partials.B : partials.C, row, 0, at_piece.chunk, v % 16);
  asm volatile("" : "+l"(v_sums));  // else made anew for every part
  const uint32_t by_cell = uint32_t(partials.chunks * states);

  for (int64_t first = chunk_begin; first < chunk_end; first += kWide) {
    const bool adds = first != chunk_begin;
    const int there = int(chunk_end - first < kWide ? chunk_end - first : kWide);
    m.window.template read_parameters<S>(a, is, row, first, there, at_piece.group);
    Tiles<S> computing(m);
    float d_skip[4] = {0, 0, 0, 0}, d_bias[4] = {0, 0, 0, 0};
    // Of [D, N]: this lane's first element, and whether the i-th of its four is there.
    const int64_t element = (first + computing.here[0]) * states + 2 * computing.g;
    const auto is_real = [&](int i) { return computing.here[i / 2] < there && 2 * computing.g + i % 2 < states; };
    const auto after = [&](int i) { return i / 2 * 4 * states + i % 2; };
    const auto given = [&](const nvsubq_tensor& t, int i) {
      return read_any<float>(t, at(t, row, first + computing.here[i / 2], 2 * computing.g + i % 2));
    };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t channel = first + computing.here[i / 2], n = 2 * computing.g + i % 2;
      computing.A[i] = is_real(i) ? read_any<float>(a.A, at(a.A, channel, n)) * kLog2e : 0.0f;
      computing.d_A[i] = computing.q[i] = 0;
      if (!is_real(i)) continue;
      if (pieces.count > 1)
        computing.q[i] = partials.A.sums[at_piece.number * a.width * states + element + after(i)];
      else if (has(a.d_final_state))
        computing.q[i] = given(a.d_final_state, i);
    }
    const float* const kept = static_cast<const float*>(a.saved) + row * borders(a.length) * a.width * states + element;
    NextCell next;
    const bool leads = threadIdx.x < kWindow;
    if (leads && last >= 0) next.ask(steps, last * kWindow + threadIdx.x);
    for (int64_t window = last; window >= first_window; --window) {
      const int64_t begin = window * kWindow;
      const int in_window = int(end - begin < kWindow ? end - begin : kWindow), tiles = (in_window + kTile - 1) / kTile;
      if (leads) next.put(steps, m.window.cells, int(threadIdx.x));
      float entering[4] = {0, 0, 0, 0};
      if (window) {
        const float* const border = kept + (window - 1) * a.width * states;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (is_real(i)) entering[i] = border[after(i)];
      } else if (has(a.initial_state)) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (is_real(i)) entering[i] = given(a.initial_state, i);
      }
      __syncthreads();
      if (leads && window > first_window) next.ask(steps, begin - kWindow + threadIdx.x);
      {
        const Layer<S> layer(a, is, m.window, there);
        if (is.whole)
          layer.template lay<true>(in_window);
        else
          layer.template lay<false>(in_window);
      }
      __syncthreads();
      const bool starts = m.window.cells.any_starts();
      if (starts)
        computing.template ahead<true>(entering, tiles);
      else
        computing.template ahead<false>(entering, tiles);
      __syncwarp();
      if (leads && window > first_window) ask_ahead(m.window, next.cell(steps));
      for (int e = tiles - 1; e >= 0; --e) {
        if (starts)
          computing.template back<true>(entering, e);
        else
          computing.template back<false>(entering, e);
        if (kTile * e % kPart) continue;
        if (is.whole)
          add_warps<true, kExact<S>>(m, kTile * e, in_window, int(states), adds, v_sums, by_cell);
        else
          add_warps<false, kExact<S>>(m, kTile * e, in_window, int(states), adds, v_sums, by_cell);
      }
      const Layer<S> layer(a, is, m.window, there);
      const Writer<S> writer(layer, m);
      if (is.whole)
        writer.template write<true>(in_window, d_skip, d_bias);
      else
        writer.template write<false>(in_window, d_skip, d_bias);
      __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!is_real(i)) continue;
      partials.A.sums[at_piece.number * a.width * states + element + after(i)] = computing.d_A[i];
      const int64_t channel = first + computing.here[i / 2], n = 2 * computing.g + i % 2;
      if (has(a.d_initial_state) && at_piece.piece == 0)
        write_any<float>(a.d_initial_state, at(a.d_initial_state, row, channel, n), computing.q[i]);
    }
    add_threads(&m.entering[0][0][0], d_skip, d_bias, partials, at_piece.number, first, there);
    if (steps.count >= at_piece.end) continue;
    const Layer<S> layer(a, is, m.window, there);
    const Writer<S> writer(layer, m);
    const int64_t absent = steps.count > at_piece.begin ? steps.count : at_piece.begin;
    for (int64_t k = absent + layer.first_row; k < at_piece.end; k += kAtOnce)
      writer.template clear<false>(int32_t(steps.cell(k)));
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
  if (const int status = launch("selective_scan backward", selective_fast_backward<S>, grid, kBackThreads,
                                sizeof(BackwardMemory), stream, a, Walk(a), chunks, partials, pieces, is))
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
