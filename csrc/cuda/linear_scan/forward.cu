// `linear_scan`, forward.
#include "decay.cuh"

namespace nvsubq {
namespace {

template <class T, bool CX, Mode MODE>
__global__ void __launch_bounds__(LinearSizes<T, CX>::warps * 32, LinearSizes<T, CX>::blocks(MODE))
    forward_kernel(const __grid_constant__ Linear a, const __grid_constant__ Walk walk,
                   const __grid_constant__ Tiling tiling, const __grid_constant__ Links links) {
  using N = Number<T, CX>;
  using Sizes = LinearSizes<T, CX>;
  constexpr int R = Sizes::steps;
  __shared__ TileMemory<N, Sizes::warps> memory;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) & 31;
  const TilePlace place(tiling);
  const int first = (place.rank * tiling.warps + warp) * R;
  const Chunk<R> chunk(walk.steps(place.row, place.block), place.row, first, place.live);
  const LinearChannel<T, CX, MODE> here(a, place);
  N decay[R], in[R];
  here.make(a, chunk, decay, in, [] {});

  N product = number<N>(T(1)), s = {};
  for_starts(chunk, [&](auto starts) {
#pragma unroll
    for (int j = 0; j < R; ++j) {
      s = starts(j) ? in[j] : fused(decay[j], s, in[j]);
      product = starts(j) ? N{} : product * decay[j];
    }
  });
  memory.product[warp][lane] = product, memory.sum[warp][lane] = s;
  __syncthreads();
  s = entering_state<false>(memory, tiling, links, place, a.initial_state);
  if (place.live && a.saved && first && first % Sizes::tile_back == 0 && first < a.length) {
    const int64_t border = int64_t(place.row) * borders(a.length, Sizes::tile_back) + first / Sizes::tile_back - 1;
    static_cast<N*>(a.saved)[border * a.width + place.channel] = s;
  }
  for_starts(chunk, [&](auto starts) {
#pragma unroll
    for (int j = 0; j < R; ++j) in[j] = s = starts(j) ? in[j] : fused(decay[j], s, in[j]);
  });
  store(a.y, chunk, place.channel, in);
  if (place.live && place.rank == tiling.tiles - 1 && warp == tiling.warps - 1)
    write_state(a.final_state, place.row, place.channel, s);
}

template <class T, bool CX, Mode MODE>
int run_forward(const Linear& a, cudaStream_t stream) {
  using Sizes = LinearSizes<T, CX>;
  const Tiling tiling = Tiling::of(a, Sizes::warps, Sizes::steps, true);
  if (const int status = check_tiling(a, tiling)) return status;
  Arena arena(a.workspace);
  const Links links = Links::in<Number<T, CX>>(arena, a, tiling);
  const dim3 grid(unsigned(tiling.count(a))), block(tiling.warps * 32);
  return launch_linked("linear_scan forward", forward_kernel<T, CX, MODE>, links, grid, block, stream, a, Walk(a),
                       tiling, links);
}

}  // namespace

int linear_forward(const Linear& a, cudaStream_t stream) {
  return for_linear(a, [&](auto kind) {
    return run_forward<typename decltype(kind)::Real, kind.complex, kind.mode>(a, stream);
  });
}

}  // namespace nvsubq
