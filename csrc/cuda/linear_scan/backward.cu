// `linear_scan`, backward: tiles are linked from the end of the walk; the states of one are made again from the one
// that the forward kept at its border.
#include "decay.cuh"

namespace nvsubq {
namespace {

// Sums over steps and over channels, before rows and tiles and groups of channels are added up.
template <class T, bool CX>
struct LinearPartial {
  Number<T, CX>* rate;  // [B tiles, D]
  T* dt;                // [groups, B L]

  LinearPartial(Arena& arena, const Linear& a, const Tiling& t, Mode mode) {
    rate = arena.take<Number<T, CX>>(mode == kVarying ? 0 : a.batch * t.tiles * a.width);
    dt = arena.take<T>(mode == kTimed && a.flags & NVSUBQ_SHARED_DT ? a.batch * a.length * t.groups : 0);
  }
};

template <class T>
__device__ __forceinline__ T sum_of_warp(T x) {
#pragma unroll
  for (int by = 16; by; by /= 2) x += __shfl_xor_sync(~0u, x, by);
  return x;
}
// Writes the gradients of a chunk from its decays, the states before its steps and the cotangents of those after them.
template <class T, bool CX, Mode MODE, int R, class N = Number<T, CX>>
__device__ __forceinline__ void write_gradients(const Linear& a, const Chunk<R>& chunk,
                                                 const LinearChannel<T, CX, MODE>& here, N (&decay)[R], N (&before)[R],
                                                 N (&h)[R], N* d_rate, T* shared_dt) {
  N given[R];  // b, where the factor depends on the decay
  const bool scaled = a.input_scale != NVSUBQ_SCALE_NONE;
  if (scaled) {
    load(a.b, chunk, here.channel, given);
    open(a.b, given);
  }
  if constexpr (MODE == kTimed) {
    T dt[R];
    here.load_times(a, chunk, dt);
    open(a.dt, dt);
#pragma unroll
    for (int j = 0; j < R; ++j) {
      const Timed<T, CX> timed(a, dt[j], here.rate);
      const TimedGradient<T, CX> d(a, timed, dt[j], here.rate, conj(before[j]) * h[j],
                                   scaled ? conj(given[j]) * h[j] : N{});
      const bool there = j < chunk.visited;
      if (there) *d_rate = *d_rate + d.rate;
      dt[j] = there ? d.dt : T(0);
      if (scaled) h[j] = conj(timed.scale) * h[j];
    }
    if (!(a.flags & NVSUBQ_SHARED_DT)) {
      if (present(a.d_dt)) store(a.d_dt, chunk, here.channel, dt);
    } else if (present(a.d_dt)) {
#pragma unroll
      for (int j = 0; j < R; ++j) {
        const T sum = sum_of_warp(dt[j]);
        const int cell = chunk.cell_of(j);
        if ((threadIdx.x & 31) == 0 && j < chunk.exist) shared_dt[int64_t(chunk.row) * a.length + cell] = sum;
      }
    }
  } else {
#pragma unroll
    for (int j = 0; j < R; ++j) before[j] = conj(before[j]) * h[j];
    if (a.input_scale == NVSUBQ_SCALE_SQRT) {
#pragma unroll
      for (int j = 0; j < R; ++j) {
        const Slope<T> root = MODE == kFixed ? here.root : bounded_root(one_minus_square(decay[j]));
        const T d_scale = re(conj(given[j]) * h[j]);
        before[j] = before[j] + decay[j] * (T(-2) * root.slope * d_scale);
        h[j] = h[j] * root.value;
      }
    }
    if constexpr (MODE == kFixed) {
#pragma unroll
      for (int j = 0; j < R; ++j)
        if (j < chunk.visited) *d_rate = *d_rate + before[j];
    }
    if (MODE == kVarying && present(a.d_a)) store(a.d_a, chunk, here.channel, before);
  }
  if (present(a.d_b)) store(a.d_b, chunk, here.channel, h);
}

template <class T, bool CX, Mode MODE>
__global__ void __launch_bounds__(LinearSizes<T, CX>::warps_back * 32, LinearSizes<T, CX>::blocks(MODE))
    backward_kernel(const __grid_constant__ Linear a, const __grid_constant__ Walk walk,
                    const __grid_constant__ Tiling tiling, const __grid_constant__ Links links,
                    const __grid_constant__ LinearPartial<T, CX> partial) {
  using N = Number<T, CX>;
  using Sizes = LinearSizes<T, CX>;
  constexpr int R = Sizes::steps_back;
  __shared__ TileMemory<N, Sizes::warps_back> memory;
  __shared__ N states[Sizes::warps_back][32];  // the sums of the forward's chunks
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) & 31;
  const TilePlace place(tiling);
  const int tile = tiling.tiles - 1 - place.rank, first = (tile * Sizes::warps_back + warp) * R;
  const Chunk<R> chunk(walk.steps(place.row, place.block), place.row, first, place.live);
  const LinearChannel<T, CX, MODE> here(a, place);
  N decay[R], in[R], h[R];
  here.make(a, chunk, decay, in, [&] {
    if (present(a.d_y)) load(a.d_y, chunk, place.channel, h);
  });
  if (present(a.d_y)) {
    open(a.d_y, h);
  } else {
#pragma unroll
    for (int j = 0; j < R; ++j) h[j] = N{};
  }

  N product = number<N>(T(1)), s = {}, coming = {};
  for_starts(chunk, [&](auto starts) {
#pragma unroll
    for (int j = 0; j < R; ++j) {
      s = starts(j) ? in[j] : fused(decay[j], s, in[j]);
      product = starts(j) ? N{} : product * decay[j];
    }
#pragma unroll
    for (int j = R - 1; j >= 0; --j) coming = starts(j) ? N{} : conj(decay[j]) * (coming + h[j]);
  });
  memory.product[warp][lane] = product, states[warp][lane] = s, memory.sum[warp][lane] = coming;
  s = N{};
  if (place.live) {
    const int64_t border = int64_t(place.row) * borders(a.length, Sizes::tile_back) + tile - 1;
    s = tile ? static_cast<const N*>(a.saved)[border * a.width + place.channel]
             : read_state<N>(a.initial_state, place.row, place.channel);
  }
  __syncthreads();
  coming = entering_state<true>(memory, tiling, links, place, a.d_final_state);
#pragma unroll 4
  for (int w = 0; w < warp; ++w) s = fold(memory.product[w][lane], states[w][lane], s);
  for_starts(chunk, [&](auto starts) {
#pragma unroll
    for (int j = 0; j < R; ++j) {
      const N before = starts(j) ? N{} : s;
      s = fused(decay[j], before, in[j]);
      in[j] = before;
    }
#pragma unroll
    for (int j = R - 1; j >= 0; --j) {
      h[j] = coming + h[j];
      coming = starts(j) ? N{} : conj(decay[j]) * h[j];
    }
  });
  if (tile == 0 && warp == 0 && place.live) write_state(a.d_initial_state, place.row, place.channel, coming);

  N d_rate = {};
  T* shared_dt = partial.dt ? partial.dt + place.group * a.batch * a.length : nullptr;
  write_gradients(a, chunk, here, decay, in, h, &d_rate, shared_dt);
  if constexpr (MODE != kVarying) {
    __syncthreads();  // before sums are overwritten
    memory.sum[warp][lane] = d_rate;
    __syncthreads();
    if (warp == 0 && place.live) {
      N sum = memory.sum[0][lane];
      for (int w = 1; w < tiling.warps; ++w) sum = sum + memory.sum[w][lane];
      partial.rate[(int64_t(place.row) * tiling.tiles + tile) * a.width + place.channel] = sum;
    }
  }
}

// Sums of the partial ones: by columns of D numbers, or of all cells.
template <class T, bool CX>
__global__ void sum_rates(const __grid_constant__ Linear a, const T* from, int64_t rows) {
  constexpr int kParts = CX ? 2 : 1;
  sum_columns(from, rows, a.width * kParts, [&](int64_t column, T sum) {
    const bool pairs = a.d_a.flags & NVSUBQ_COMPLEX;
    const int64_t part = column % kParts;
    if (part && !pairs) return;
    write_any<T>(a.d_a, (pairs ? 2 : 1) * (column / kParts * a.d_a.stride[0]) + part, sum);
  });
}
template <class T>
__global__ void sum_times(const __grid_constant__ Linear a, const T* from, int groups) {
  const int64_t cell = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, cells = a.batch * a.length;
  if (cell >= cells) return;
  T sum = 0;
  for (int g = 0; g < groups; ++g) sum += from[g * cells + cell];
  write_any<T>(a.d_dt, at(a.d_dt, cell / a.length, cell % a.length), sum);
}

template <class T, bool CX, Mode MODE>
int run_backward(const Linear& a, cudaStream_t stream) {
  using Sizes = LinearSizes<T, CX>;
  const Tiling tiling = Tiling::of(a, Sizes::warps_back, Sizes::steps_back, false);
  if (const int status = check_tiling(a, tiling)) return status;
  Arena arena(a.workspace);
  const Links links = Links::in<Number<T, CX>>(arena, a, tiling);
  const LinearPartial<T, CX> partial(arena, a, tiling, MODE);
  const char* name = "linear_scan backward";
  const dim3 grid(unsigned(tiling.count(a))), block(tiling.warps * 32);
  if (const int status = launch_linked(name, backward_kernel<T, CX, MODE>, links, grid, block, stream, a, Walk(a),
                                       tiling, links, partial))
    return status;
  if (MODE != kVarying && present(a.d_a)) {
    const int64_t columns = a.width * (CX ? 2 : 1);
    const T* from = reinterpret_cast<const T*>(partial.rate);
    const dim3 sums(unsigned(ceil_div(columns, 32)));
    const int64_t rows = a.batch * tiling.tiles;
    if (const int status = launch(name, sum_rates<T, CX>, sums, dim3(32, 32), 0, stream, a, from, rows))
      return status;
  }
  if (MODE == kTimed && a.flags & NVSUBQ_SHARED_DT && present(a.d_dt))
    return launch(name, sum_times<T>, dim3(unsigned(ceil_div(a.batch * a.length, 256))), dim3(256), 0, stream, a,
                  static_cast<const T*>(partial.dt), tiling.groups);
  return NVSUBQ_OK;
}

}  // namespace

int64_t linear_workspace(const Linear& a) {
  return for_linear(a, [&](auto kind) {
    using T = typename decltype(kind)::Real;
    using Sizes = LinearSizes<T, kind.complex>;
    const Tiling there = Tiling::of(a, Sizes::warps, Sizes::steps, true);
    const Tiling back = Tiling::of(a, Sizes::warps_back, Sizes::steps_back, false);
    Arena forward(nullptr), backward(nullptr);
    Links::in<Number<T, kind.complex>>(forward, a, there);
    Links::in<Number<T, kind.complex>>(backward, a, back);
    LinearPartial<T, kind.complex>(backward, a, back, kind.mode);
    return forward.bytes() > backward.bytes() ? forward.bytes() : backward.bytes();
  });
}

int linear_backward(const Linear& a, cudaStream_t stream) {
  return for_linear(a, [&](auto kind) {
    return run_backward<typename decltype(kind)::Real, kind.complex, kind.mode>(a, stream);
  });
}

}  // namespace nvsubq
