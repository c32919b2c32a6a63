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

// Half a window's d_B and d_C, from all warps, to (or added to) the chunk's sums: a thread has one number of 8 steps.
template <bool EXACT>
__device__ __forceinline__ void add_warps(const BackwardMemory& m, int begin, int steps, int states, bool adds,
                                          float* sums, int64_t by_cell) {
  constexpr int each = 32 / kWarps;
  const int v = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (v % 16 >= states) return;
  float before[each];
#pragma unroll
  for (int j = 0; j < each; ++j) {
    const int step = begin + warp + j * kWarps;
    before[j] = adds && step < steps ? sums[m.window.cells.cell[step] * by_cell] : 0.0f;
  }
#pragma unroll
  for (int j = 0; j < each; ++j) {
    const int k = warp + j * kWarps, where = v ^ (8 * (k / 2 % 4));
    if (begin + k >= steps) continue;
    float sum = m.by_channel[0][k][where];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) sum += m.by_channel[w][k][where];
    sums[m.window.cells.cell[begin + k] * by_cell] = before[j] + (EXACT ? sum : sum * (kCut * kCut));
  }
}

template <class S>
__global__ void __launch_bounds__(kBackThreads, 3)
    selective_fast_backward(const __grid_constant__ Selective a, const __grid_constant__ Walk walk,
                            const __grid_constant__ Chunks chunks, const __grid_constant__ Partials<float> partials,
                            const __grid_constant__ Options is, bool carried) {
  extern __shared__ __align__(16) char memory[];
  auto& m = *reinterpret_cast<BackwardMemory*>(memory);
  const Piece at_piece(a, chunks, blockIdx.x);
  const int64_t row = at_piece.row, states = a.states;
  const Steps steps = walk.steps(row, at_piece.group * a.blocks / chunks.groups);
  const int64_t chunk_begin = at_piece.group * chunks.run + at_piece.chunk % chunks.per_group * chunks.width;
  const int64_t group_end = (at_piece.group + 1) * chunks.run;
  const int64_t chunk_end = chunk_begin + chunks.width < group_end ? chunk_begin + chunks.width : group_end;
  const int64_t end = steps.count < at_piece.end ? steps.count : at_piece.end;
  const int64_t last = end > at_piece.begin ? (end - 1) / kWindow : -1, first_window = at_piece.begin / kWindow;

  // This thread's column of d_B or d_C, and how far cells are apart in it.
  const int v = threadIdx.x % 32;
  float* const v_sums = partials.of(v < 16 ? partials.B : partials.C, row, 0, at_piece.chunk, v % 16);
  const int64_t by_cell = partials.chunks * states;

  for (int64_t first = chunk_begin; first < chunk_end; first += kWide) {
    const bool adds = first != chunk_begin;
    const int there = int(chunk_end - first < kWide ? chunk_end - first : kWide);
    m.window.read_parameters(a, first, there);
    Eighths<S> computing(m);
    float d_skip[4] = {0, 0, 0, 0}, d_bias[4] = {0, 0, 0, 0};
    const auto is_real = [&](int i) { return computing.here[i / 2] < there && 2 * computing.g + i % 2 < states; };
    const auto element = [&](int i) {  // of [D, N]
      return (hidden(first) + computing.here[i / 2]) * states + 2 * computing.g + i % 2;
    };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t channel = first + computing.here[i / 2], n = 2 * computing.g + i % 2;
      computing.A[i] = is_real(i) ? read_any<float>(a.A, at(a.A, channel, n)) * kLog2e : 0.0f;
      computing.d_A[i] = computing.q[i] = 0;
      if (!is_real(i)) continue;
      if (carried)
        computing.q[i] = partials.A.sums[at_piece.number * a.width * states + element(i)];
      else if (has(a.d_final_state))
        computing.q[i] = read_any<float>(a.d_final_state, at(a.d_final_state, row, channel, n));
    }
    NextCell next;
    const bool leads = threadIdx.x < kWindow;
    if (leads && last >= 0) next.ask(steps, last * kWindow + threadIdx.x);
    for (int64_t window = last; window >= first_window; --window) {
      const int64_t begin = window * kWindow;
      const int in_window = int(end - begin < kWindow ? end - begin : kWindow), eighths = (in_window + 7) / 8;
      if (leads) next.put(steps, m.window.cells, int(threadIdx.x));
      float entering[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        entering[i] = 0;
        if (!is_real(i)) continue;
        const int64_t border = row * borders(a.length) + window - 1, n = 2 * computing.g + i % 2;
        if (window)
          entering[i] = static_cast<const float*>(a.saved)[border * a.width * states + element(i)];
        else if (has(a.initial_state))
          entering[i] = read_any<float>(a.initial_state, at(a.initial_state, row, first + computing.here[i / 2], n));
      }
      __syncthreads();
      if (leads && window > first_window) next.ask(steps, begin - kWindow + threadIdx.x);
      {
        const Layer<S> layer(a, is, m.window, row, hidden(first), there, at_piece.group);
        if (is.whole)
          layer.template lay<true, Part::all>(in_window);
        else
          layer.template lay<false, Part::all>(in_window);
      }
      __syncthreads();
      const bool starts = m.window.cells.any_starts();
      if (starts)
        computing.template ahead<true>(entering, eighths);
      else
        computing.template ahead<false>(entering, eighths);
      __syncwarp();
      for (int e = eighths - 1; e >= 0; --e) {
        if (starts)
          computing.template back<true>(entering, e);
        else
          computing.template back<false>(entering, e);
        if (e % 4) continue;
        __syncthreads();
        // Half a window is done: its sums over the block's channels.
        const int half_begin = e / 4 * 32;
        add_warps<kExact<S>>(m, half_begin, in_window, int(states), adds, v_sums, by_cell);
        __syncthreads();
      }
      const Layer<S> layer(a, is, m.window, row, hidden(first), there, at_piece.group);
      const Writer<S> writer(layer, a, row, hidden(first));
      if (is.whole)
        writer.template write<true>(in_window, d_skip, d_bias);
      else
        writer.template write<false>(in_window, d_skip, d_bias);
      __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!is_real(i)) continue;
      partials.A.sums[at_piece.number * a.width * states + element(i)] = computing.d_A[i];
      const int64_t channel = first + computing.here[i / 2], n = 2 * computing.g + i % 2;
      if (has(a.d_initial_state) && at_piece.piece == 0)
        write_any<float>(a.d_initial_state, at(a.d_initial_state, row, channel, n), computing.q[i]);
    }
    add_threads(&m.by_channel[0][0][0], d_skip, d_bias, partials, at_piece.number, first, there);
    if (steps.count >= at_piece.end) continue;
    const Layer<S> layer(a, is, m.window, row, first, there, at_piece.group);
    const Writer<S> writer(layer, a, row, first);
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

template <class S>
int run(const Selective& a, const Partials<float>& partials, float* sums, cudaStream_t stream) {
  const Chunks chunks(a);
  const Options is = options_of(a);
  const int64_t pieces = pieces_of(a.length);
  if (pieces > 1)
    if (const int status = carry<S>(a, false, is, partials.A.sums, sums, stream)) return status;
  const dim3 grid(unsigned(a.batch * pieces * chunks.count));
  if (const int status = launch("selective_scan backward", selective_fast_backward<S>, grid, kBackThreads,
                                sizeof(BackwardMemory), stream, a, Walk(a), chunks, partials, is, pieces > 1))
    return status;
  return add_up(a, partials, chunks.groups, stream);
}

struct Plan {
  Arena arena;
  Partials<float> partials;
  float* sums;  // of delta, [pieces][D]

  Plan(const Selective& a, void* memory)
      : arena(memory), partials(arena, a, Chunks(a).count, a.batch * pieces_of(a.length)),
        sums(arena.take<float>(a.batch * pieces_of(a.length) * a.width)) {}
};

}  // namespace

bool is_fast_backward(const Selective& a) { return is_fast(a) && a.states <= kMostFast; }

int64_t fast_backward_bytes(const Selective& a) { return Plan(a, nullptr).arena.bytes(); }

int fast_backward(const Selective& a, void* memory, cudaStream_t stream) {
  const Plan plan(a, memory);
  switch (a.u.dtype) {
    case NVSUBQ_F32: return run<float>(a, plan.partials, plan.sums, stream);
    case NVSUBQ_F16: return run<f16>(a, plan.partials, plan.sums, stream);
    default: return run<bf16>(a, plan.partials, plan.sums, stream);
  }
}

}  // namespace nvsubq::selective
