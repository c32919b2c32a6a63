// `rglru_scan`, forward, two channels a lane. Chunks and tiles are those of one channel a lane, and so are the bits:
// which of the two runs depends on how tensors lie.
#include "../pairs.cuh"
#include "cell.cuh"

namespace nvsubq {
namespace {

constexpr int kWarps = RglruSizes<float>::warps, kSteps = RglruSizes<float>::steps;

template <class S, int REACH>
__global__ void __launch_bounds__(kWarps * 32, 2)
    forward_pairs(const __grid_constant__ Rglru a, const __grid_constant__ Walk walk,
                  const __grid_constant__ Tiling tiling, const __grid_constant__ Links links) {
  constexpr int R = kSteps;
  __shared__ TileMemory<float, kWarps> memory[2];
  const TilePlace place(tiling);
  const int first = (place.rank * tiling.warps + int(threadIdx.x) / 32) * R;
  const Chunk<R> chunk(walk.steps(place.row, place.block), place.row, first, place.live);
  RawPair<S> r[R], i[R], x[R];
  load_pairs(a.r, chunk, place.channel, r);
  load_pairs(a.i, chunk, place.channel, i);
  load_pairs(a.x, chunk, place.channel, x);
  const RglruChannel<float> here[2] = {{a, place, 0}, {a, place, 1}};  // once all is asked for
  const uint32_t plain = here[0].unscaled_of(chunk);
  float decay[2][R], in[2][R];
#pragma unroll
  for (int j = 0; j < R; ++j) {
    const float2 r2 = opened<S>(r[j]), i2 = opened<S>(i[j]), x2 = opened<S>(x[j]);
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const auto o = here[v].open_cell<false>(v ? r2.y : r2.x, v ? i2.y : i2.x);
      const float opens = o.i.open * (v ? x2.y : x2.x);
      decay[v][j] = o.decay;
      in[v][j] = plain >> j & 1 ? opens : opens * o.norm;
    }
  }
  keep_state(chunk, decay[0], in[0]), keep_state(chunk, decay[1], in[1]);
  scan_pairs<REACH, sizeof(S) == 2>(a, memory, tiling, links, place, chunk, RglruSizes<float>::tile_back, decay, in);
  if (here[0].gated) {
    load_pairs(a.gate, chunk, place.channel, x);
#pragma unroll
    for (int j = 0; j < R; ++j) {
      const float2 g = opened<S>(x[j]);
      in[0][j] *= here[0].gelu(g.x).value, in[1][j] *= here[0].gelu(g.y).value;
    }
  }
  store_pairs<S>(a.y, chunk, place.channel, in);
}

Tiling tiling_of(const Rglru& a) { return Tiling::of(a, kWarps, kSteps, true, 2); }

template <class S>
int run_pairs(const Rglru& a, cudaStream_t stream) {
  const Tiling tiling = tiling_of(a);
  if (const int status = check_tiling(a, tiling)) return status;
  Arena arena(a.workspace);
  const Links links = Links::in<float>(arena, a, tiling);
  const auto kernel = many_walks(a, tiling) ? forward_pairs<S, 2> : forward_pairs<S, 4>;
  return launch_linked("rglru_scan forward", kernel, links, dim3(unsigned(tiling.count(a))), dim3(tiling.warps * 32),
                       stream, a, Walk(a), tiling, links);
}

}  // namespace

bool in_pairs(const Rglru& a) {
  if (!pairs_up(a)) return false;
  for (const nvsubq_tensor* t : {&a.x, &a.r, &a.i, &a.gate, &a.y})
    if (!lies_in_pairs(*t, a.x.dtype)) return false;
  return true;
}

int64_t pairs_workspace(const Rglru& a) {
  Arena arena(nullptr);
  return Links::in<float>(arena, a, tiling_of(a)).bytes;
}

int forward_in_pairs(const Rglru& a, cudaStream_t stream) {
  switch (a.x.dtype) {
    case NVSUBQ_F32: return run_pairs<float>(a, stream);
    case NVSUBQ_F16: return run_pairs<f16>(a, stream);
    default: return run_pairs<bf16>(a, stream);
  }
}

}  // namespace nvsubq
