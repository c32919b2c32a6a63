// `selective_scan`, fast: where walks are cut into pieces, the states that enter each, or the cotangents that arrive at
// its end. First every piece alone, as if nothing came before (or behind) it; then the pieces of a row one after the
// other, where a piece lets through exp(A sum of delta) of what arrives.
#include "laying.cuh"

namespace nvsubq::selective {
namespace {

// Walks over a window: the states q, or their cotangents from behind, and the sums of delta.
template <bool FORTH, bool STARTS>
__device__ __forceinline__ void walk_window(const Window& m, const int (&here)[2], int g, int fours,
                                            const float (&A)[4], float (&q)[4], float (&sum)[2]) {
#pragma unroll 4
  for (int i_four = 0; i_four < fours; ++i_four) {
    const int four = FORTH ? i_four : fours - 1 - i_four;
    alignas(16) float d[2][4], in[2][4];
    float x[2][4];  // B or C
    read_single(m.d + single(here[0], 0) + 4 * four, d);
    read_paired((FORTH ? m.w : m.out) + paired(here[0], 0) + 8 * four, in);
    read_states(&(FORTH ? m.B : m.C)[0][2 * g][0] + 4 * four * kMostFast, x);
#pragma unroll
    for (int i_step = 0; i_step < 4; ++i_step) {
      const int j = FORTH ? i_step : 3 - i_step, step = 4 * four + j;
      const bool stops = STARTS && (m.cells.starts[step / 32] >> (step % 32) & 1);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float decay = stops ? 0.0f : exp2_of(d[i / 2][j] * A[i]), by = x[i % 2][j];
        q[i] = FORTH ? fmaf(decay, q[i], by * in[i / 2][j]) : decay * fmaf(by, in[i / 2][j], q[i]);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) sum[r] += d[r][j];
    }
  }
}

template <class S, bool FORTH>
__global__ void __launch_bounds__(kBackThreads, 6)
    selective_carry(const __grid_constant__ Selective a, const __grid_constant__ Walk walk,
                    const __grid_constant__ Chunks chunks, const __grid_constant__ Pieces pieces,
                    const __grid_constant__ Options is, float* __restrict__ local, float* __restrict__ sums) {
  extern __shared__ __align__(16) char memory[];
  auto& m = *reinterpret_cast<Window*>(memory);
  const int64_t parts = (chunks.width + kWide - 1) / kWide;
  const Piece at_piece(a, chunks, pieces, blockIdx.x / parts);
  if (at_piece.piece == (FORTH ? pieces.count - 1 : 0)) return;  // nothing comes after it
  const int64_t row = at_piece.row, states = a.states;
  const Steps steps = walk.steps(row, at_piece.group * a.blocks / chunks.groups);
  const int64_t group_end = (at_piece.group + 1) * chunks.run;
  const int64_t chunk_begin = at_piece.group * chunks.run + at_piece.chunk % chunks.per_group * chunks.width;
  const int64_t first = chunk_begin + blockIdx.x % parts * kWide;
  const int there = int(group_end - first < kWide ? group_end - first : kWide);
  if (there <= 0) return;
  const int64_t end = steps.count < at_piece.end ? steps.count : at_piece.end;
  const int64_t last = end > at_piece.begin ? (end - 1) / kWindow : -1, first_window = at_piece.begin / kWindow;
  m.template read_parameters<S>(a, is, row, first, there, at_piece.group);
  __syncthreads();
  const Layer<S> layer(a, is, m, there);

  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
  const int here[2] = {warp * 8 + t, warp * 8 + t + 4};
  float A[4], q[4] = {0, 0, 0, 0}, sum[2] = {0, 0};
  bool real[4], cut = false;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t channel = first + here[i / 2], n = 2 * g + i % 2;
    real[i] = here[i / 2] < there && n < states;
    A[i] = real[i] ? read_any<float>(a.A, at(a.A, channel, n)) * kLog2e : 0.0f;
  }
  NextCell next;
  const bool leads = threadIdx.x < kWindow;
  if (leads && last >= first_window) next.ask(steps, (FORTH ? first_window : last) * kWindow + threadIdx.x);
  for (int64_t i = 0; i <= last - first_window; ++i) {
    const int64_t begin = (FORTH ? first_window + i : last - i) * kWindow;
    const int in_window = int(end - begin < kWindow ? end - begin : kWindow), fours = (in_window + 3) / 4;
    if (leads) next.put(steps, m.cells, int(threadIdx.x));
    __syncthreads();
    const bool goes_on = leads && i < last - first_window;
    if (goes_on) next.ask(steps, begin + (FORTH ? kWindow : -kWindow) + threadIdx.x);
    constexpr Part part = FORTH ? Part::forth : Part::back;
    if (is.whole)
      layer.template lay<true, part>(in_window);
    else
      layer.template lay<false, part>(in_window);
    __syncthreads();
    if (goes_on) ask_ahead<FORTH, !FORTH>(m, next.cell(steps));
    const bool starts = m.cells.any_starts();
    cut |= starts;
    if (starts)
      walk_window<FORTH, true>(m, here, g, fours, A, q, sum);
    else
      walk_window<FORTH, false>(m, here, g, fours, A, q, sum);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (real[i]) local[(at_piece.number * a.width + first + here[i / 2]) * states + 2 * g + i % 2] = q[i];
#pragma unroll
  for (int r = 0; r < 2; ++r)  // no number: nothing passes
    if (g == 0 && here[r] < there)
      sums[at_piece.number * a.width + first + here[r]] = cut ? __int_as_float(0x7fffffff) : sum[r];
}

// In place: what each piece makes becomes what arrives at it.
__global__ void __launch_bounds__(128)
    selective_arrive(const __grid_constant__ Selective a, int64_t pieces, bool forth, float* __restrict__ local,
                     const float* __restrict__ sums) {
  const int64_t i = int64_t(blockIdx.x) * 128 + threadIdx.x, each = a.width * a.states;
  if (i >= a.batch * each) return;
  const int64_t row = i / each, element = i - row * each;
  const int64_t channel = uint32_t(element) / uint32_t(a.states), n = element - channel * a.states;
  const float rate = read_any<float>(a.A, at(a.A, channel, n)) * kLog2e;
  const nvsubq_tensor& first = forth ? a.initial_state : a.d_final_state;
  float q = has(first) ? read_any<float>(first, at(first, row, channel, n)) : 0.0f;
  const auto piece_at = [&](int64_t k) { return row * pieces + (forth ? k : pieces - 1 - k); };
  constexpr int kBatch = 8;  // pieces that are read at once
  for (int64_t from = 0; from < pieces; from += kBatch) {
    float made[kBatch], sum[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (from + k >= pieces - 1) continue;  // the last makes nothing for others
      const int64_t piece = piece_at(from + k);
      made[k] = local[piece * each + element], sum[k] = sums[piece * a.width + channel];
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (from + k >= pieces) continue;
      local[piece_at(from + k) * each + element] = q;
      if (from + k < pieces - 1) q = sum[k] == sum[k] ? fmaf(exp2_of(rate * sum[k]), q, made[k]) : made[k];
    }
  }
}

}  // namespace

template <class S>
int carry(const Selective& a, bool forth, const Options& is, float* arriving, float* sums, cudaStream_t stream) {
  const Chunks chunks(a);
  const Pieces pieces(a, forth);
  const dim3 grid(unsigned(a.batch * pieces.count * chunks.count * ceil_div(chunks.width, kWide)));
  const auto kernel = forth ? selective_carry<S, true> : selective_carry<S, false>;
  if (const int status = launch("selective_scan carry", kernel, grid, kBackThreads, sizeof(Window), stream, a, Walk(a),
                                chunks, pieces, is, arriving, sums))
    return status;
  const dim3 all(unsigned(ceil_div(a.batch * a.width * a.states, 128)));
  return launch("selective_scan arrive", selective_arrive, all, 128, 0, stream, a, pieces.count, forth, arriving,
                static_cast<const float*>(sums));
}

template int carry<float>(const Selective&, bool, const Options&, float*, float*, cudaStream_t);
template int carry<f16>(const Selective&, bool, const Options&, float*, float*, cudaStream_t);
template int carry<bf16>(const Selective&, bool, const Options&, float*, float*, cudaStream_t);

}  // namespace nvsubq::selective
