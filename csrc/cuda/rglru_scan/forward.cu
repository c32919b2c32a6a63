// `rglru_scan`, forward.
#include "cell.cuh"

namespace nvsubq {
namespace {

template <class T>
__global__ void __launch_bounds__(RglruSizes<T>::warps * 32, sizeof(T) == 4 ? 3 : 1)
    forward_kernel(const __grid_constant__ Rglru a, const __grid_constant__ Walk walk,
                   const __grid_constant__ Tiling tiling, const __grid_constant__ Links links) {
  using Sizes = RglruSizes<T>;
  constexpr int R = Sizes::steps, kPart = R < 8 ? R : 8;
  __shared__ TileMemory<T, Sizes::warps> memory;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) & 31;
  const TilePlace place(tiling);
  const int first = (place.rank * tiling.warps + warp) * R;
  const Chunk<R> chunk(walk.steps(place.row, place.block), place.row, first, place.live);
  const RglruChannel<T> here(a, place);
  T decay[R], in[R];
#pragma unroll
  for (int from = 0; from < R; from += kPart) {  // what is asked for at once has to fit in registers
    const Chunk<kPart> part = chunk.template part<kPart>(from);
    T r[kPart], i[kPart], x[kPart];
    load(a.r, part, place.channel, r);
    load(a.i, part, place.channel, i);
    load(a.x, part, place.channel, x);
    open(a.r, r);
    open(a.i, i);
    open(a.x, x);
    here.make(here.unscaled_of(part), r, i, x);
#pragma unroll
    for (int j = 0; j < kPart; ++j) decay[from + j] = r[j], in[from + j] = i[j];
  }
  keep_state(chunk, decay, in);

  T product = 1, s = 0;
  for_starts(chunk, [&](auto starts) {
#pragma unroll
    for (int j = 0; j < R; ++j) {
      s = starts(j) ? in[j] : fused(decay[j], s, in[j]);
      product = starts(j) ? T(0) : product * decay[j];
    }
  });
  memory.product[warp][lane] = product, memory.sum[warp][lane] = s;
  __syncthreads();
  s = entering_state<false>(memory, tiling, links, place, a.initial_state);
  if (place.live && a.saved && first && first % Sizes::tile_back == 0 && first < a.length) {
    const int64_t border = int64_t(place.row) * borders(a.length, Sizes::tile_back) + first / Sizes::tile_back - 1;
    static_cast<T*>(a.saved)[border * a.width + place.channel] = s;
  }
  for_starts(chunk, [&](auto starts) {
#pragma unroll
    for (int j = 0; j < R; ++j) in[j] = s = starts(j) ? in[j] : fused(decay[j], s, in[j]);
  });
  if (here.gated) {
    load(a.gate, chunk, place.channel, decay);
    open(a.gate, decay);
#pragma unroll
    for (int j = 0; j < R; ++j) in[j] *= here.gelu(decay[j]).value;
  }
  store(a.y, chunk, place.channel, in);
  if (place.live && place.rank == tiling.tiles - 1 && warp == tiling.warps - 1)
    write_state(a.final_state, place.row, place.channel, s);
}

template <class T>
int run_forward(const Rglru& a, cudaStream_t stream) {
  using Sizes = RglruSizes<T>;
  const Tiling tiling = Tiling::of(a, Sizes::warps, Sizes::steps, true);
  if (const int status = check_tiling(a, tiling)) return status;
  Arena arena(a.workspace);
  const Links links = Links::in<T>(arena, a, tiling);
  return launch_linked("rglru_scan forward", forward_kernel<T>, links, dim3(unsigned(tiling.count(a))),
                       dim3(tiling.warps * 32), stream, a, Walk(a), tiling, links);
}

}  // namespace

int rglru_forward(const Rglru& a, cudaStream_t stream) {
  if (in_pairs(a)) return forward_in_pairs(a, stream);
  return a.flags & NVSUBQ_DOUBLE ? run_forward<double>(a, stream) : run_forward<float>(a, stream);
}

}  // namespace nvsubq
