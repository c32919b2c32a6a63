// `rglru_scan`, backward: tiles are linked from the end of the walk; the states of one are made again from the one that
// the forward kept at its border.
#include "cell.cuh"

namespace nvsubq {
namespace {

enum Parameter { kRate, kRBias, kIBias, kParameters };

template <class T>
T* partial_in(Arena& arena, const Rglru& a, const Tiling& t) {  // [B tiles, kParameters, D]
  return arena.take<T>(a.batch * t.tiles * kParameters * a.width);
}

template <class T, int REACH>
__global__ void __launch_bounds__(RglruSizes<T>::warps_back * 32, sizeof(T) == 4 ? 3 : 1)
    backward_kernel(const __grid_constant__ Rglru a, const __grid_constant__ Walk walk,
                    const __grid_constant__ Tiling tiling, const __grid_constant__ Links links, T* partial) {
  using Sizes = RglruSizes<T>;
  constexpr int R = Sizes::steps_back;
  __shared__ TileMemory<T, Sizes::warps_back> memory;
  __shared__ T states[Sizes::warps_back][32];  // the sums of the forward's chunks
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) & 31;
  const TilePlace place(tiling);
  const int tile = tiling.tiles - 1 - place.rank, first = (tile * Sizes::warps_back + warp) * R;
  const Chunk<R> chunk(walk.steps(place.row, place.block), place.row, first, place.live);
  T r[R], i[R], x[R], h[R], before[R];
  load(a.r, chunk, place.channel, r);
  load(a.i, chunk, place.channel, i);
  load(a.x, chunk, place.channel, x);
  if (present(a.d_y)) load(a.d_y, chunk, place.channel, h);
  if (present(a.gate)) load(a.gate, chunk, place.channel, before);
  const RglruChannel<T> here(a, place);  // once all is asked for
  open(a.r, r);
  open(a.i, i);
  open(a.x, x);
  if (present(a.d_y)) open(a.d_y, h);
  if (here.gated) open(a.gate, before);

#pragma unroll
  for (int j = 0; j < R; ++j) h[j] = !present(a.d_y) ? T(0) : here.gated ? h[j] * here.gelu(before[j]).value : h[j];
  T decay[R];
#pragma unroll
  for (int j = 0; j < R; ++j) decay[j] = r[j], before[j] = i[j];
  here.make(here.unscaled_of(chunk), decay, before, x);
  keep_state(chunk, decay, before);

  T product = 1, s = 0, coming = 0;
  for_starts(chunk, [&](auto starts) {
#pragma unroll
    for (int j = 0; j < R; ++j) {
      s = starts(j) ? before[j] : fused(decay[j], s, before[j]);
      product = starts(j) ? T(0) : product * decay[j];
    }
#pragma unroll
    for (int j = R - 1; j >= 0; --j) coming = starts(j) ? T(0) : decay[j] * (coming + h[j]);
  });
  memory.product[warp][lane] = product, states[warp][lane] = s, memory.sum[warp][lane] = coming;
  s = 0;
  if (place.live) {
    const int64_t border = int64_t(place.row) * borders(a.length, Sizes::tile_back) + tile - 1;
    s = tile ? static_cast<const T*>(a.saved)[border * a.width + place.channel]
             : read_state<T>(a.initial_state, place.row, place.channel);
  }
  __syncthreads();
  coming = entering_state<true, REACH>(memory, tiling, links, place, a.d_final_state);
#pragma unroll 4
  for (int w = 0; w < warp; ++w) s = fold(memory.product[w][lane], states[w][lane], s);
  for_starts(chunk, [&](auto starts) {
#pragma unroll
    for (int j = 0; j < R; ++j) {
      const T entering = starts(j) ? T(0) : s;
      s = fused(decay[j], entering, before[j]);
      before[j] = entering;
    }
#pragma unroll
    for (int j = R - 1; j >= 0; --j) {
      h[j] += coming;
      coming = starts(j) ? T(0) : decay[j] * h[j];
    }
  });
  if (tile == 0 && warp == 0 && place.live) write_state(a.d_initial_state, place.row, place.channel, coming);

  const uint32_t plain = here.unscaled_of(chunk);
  if (here.gated && present(a.d_gate)) {
    T g[R], d_y[R];
    load(a.gate, chunk, place.channel, g);
    if (present(a.d_y)) load(a.d_y, chunk, place.channel, d_y);
    open(a.gate, g);
    if (present(a.d_y)) open(a.d_y, d_y);
#pragma unroll
    for (int j = 0; j < R; ++j) {
      const Opened<T> o = here.open_cell(r[j], i[j]);
      const T in = o.i.open * (plain >> j & 1 ? x[j] : x[j] * o.norm);
      g[j] = present(a.d_y) ? d_y[j] * fused(o.decay, before[j], in) * here.gelu(g[j]).slope : T(0);
    }
    store(a.d_gate, chunk, place.channel, g);
  }
  T sums[kParameters] = {};
#pragma unroll
  for (int j = 0; j < R; ++j) {
    const Opened<T> o = here.open_cell(r[j], i[j]);
    const bool unscaled = plain >> j & 1;
    const T in = o.i.open * x[j], scaled = unscaled ? h[j] : h[j] * o.norm;
    T d_log = h[j] * before[j] * o.decay;  // of the logarithm of the decay
    const T by_norm = reciprocal(fmax(T(2) * o.norm, T(1 / kMaxDerivative)));
    if (!unscaled) d_log -= h[j] * in * T(2) * o.decay * o.decay * by_norm;
    const T d_r = d_log * here.rate * o.r.open * o.r.shut, d_i = scaled * in * o.i.shut;
    if (j < chunk.visited) sums[kRate] += d_log * o.r.open, sums[kRBias] += d_r, sums[kIBias] += d_i;
    x[j] = scaled * o.i.open, r[j] = d_r, i[j] = d_i;
  }
  if (present(a.d_x)) store(a.d_x, chunk, place.channel, x);
  if (present(a.d_r)) store(a.d_r, chunk, place.channel, r);
  if (present(a.d_i)) store(a.d_i, chunk, place.channel, i);

  __syncthreads();  // before what the warps told each other is overwritten
  memory.product[warp][lane] = sums[kRate], states[warp][lane] = sums[kRBias], memory.sum[warp][lane] = sums[kIBias];
  __syncthreads();
  for (int which = warp; which < kParameters && place.live; which += tiling.warps) {
    const T(*from)[32] = which == kRate ? memory.product : which == kRBias ? states : memory.sum;
    T sum = 0;
    for (int w = 0; w < tiling.warps; ++w) sum += from[w][lane];
    partial[((int64_t(place.row) * tiling.tiles + tile) * kParameters + which) * a.width + place.channel] = sum;
  }
}

// Gradients of the parameters from their sums over tiles.
template <class T>
__global__ void sum_parameters(const __grid_constant__ Rglru a, const T* from, int64_t rows) {
  sum_columns(from, rows, a.width * kParameters, [&](int64_t column, T sum) {
    const int64_t which = column / a.width, channel = column % a.width;
    const nvsubq_tensor& t = which == kRate ? a.d_a_log : which == kRBias ? a.d_r_bias : a.d_i_bias;
    if (!present(t)) return;
    if (which == kRate) {
      const T logit = read_any<T>(a.a_log, channel * a.a_log.stride[0]);
      sum *= T(__longlong_as_double(a.c_bits)) * Gate<T>(kLogScale<T> * logit).shut;
    }
    write_any<T>(t, channel * t.stride[0], sum);
  });
}

template <class T>
int run_backward(const Rglru& a, cudaStream_t stream) {
  using Sizes = RglruSizes<T>;
  const Tiling tiling = Tiling::of(a, Sizes::warps_back, Sizes::steps_back, false);
  if (const int status = check_tiling(a, tiling)) return status;
  Arena arena(a.workspace);
  const Links links = Links::in<T>(arena, a, tiling);
  T* partial = partial_in<T>(arena, a, tiling);
  const char* name = "rglru_scan backward";
  const dim3 grid(unsigned(tiling.count(a))), sums(unsigned(ceil_div(a.width * kParameters, 32)));
  constexpr int kFar = sizeof(T) == 4 ? 4 : 2;
  const auto kernel = many_walks(a, tiling) ? backward_kernel<T, 2> : backward_kernel<T, kFar>;
  if (const int status = launch_linked(name, kernel, links, grid, dim3(tiling.warps * 32), stream, a, Walk(a),
                                       tiling, links, partial))
    return status;
  return launch(name, sum_parameters<T>, sums, dim3(32, 32), 0, stream, a, static_cast<const T*>(partial),
                a.batch * tiling.tiles);
}

template <class T>
int64_t workspace_of(const Rglru& a) {
  using Sizes = RglruSizes<T>;
  const Tiling there = Tiling::of(a, Sizes::warps, Sizes::steps, true);
  const Tiling back = Tiling::of(a, Sizes::warps_back, Sizes::steps_back, false);
  Arena forward(nullptr), backward(nullptr);
  Links::in<T>(forward, a, there);
  Links::in<T>(backward, a, back);
  partial_in<T>(backward, a, back);
  int64_t bytes = forward.bytes() > backward.bytes() ? forward.bytes() : backward.bytes();
  // Whether or not these addresses pair up: who calls may keep the size for others.
  if (pairs_workspace(a) > bytes) bytes = pairs_workspace(a);
  return bytes;
}

}  // namespace

int64_t rglru_workspace(const Rglru& a) {
  return a.flags & NVSUBQ_DOUBLE ? workspace_of<double>(a) : workspace_of<float>(a);
}

int rglru_backward(const Rglru& a, cudaStream_t stream) {
  return a.flags & NVSUBQ_DOUBLE ? run_backward<double>(a, stream) : run_backward<float>(a, stream);
}

}  // namespace nvsubq
