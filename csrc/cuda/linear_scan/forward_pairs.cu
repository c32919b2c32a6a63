// `linear_scan`, forward, real with a decay for every cell: two channels a lane.
#include "../pairs.cuh"
#include "decay.cuh"

namespace nvsubq {
namespace {

constexpr int kWarps = LinearSizes<float, false>::warps, kSteps = 8;

template <class Raw>
__global__ void __launch_bounds__(kWarps * 32, 3)
    forward_pairs(const __grid_constant__ Linear a, const __grid_constant__ Walk walk,
                  const __grid_constant__ Tiling tiling, const __grid_constant__ Links links) {
  constexpr int R = kSteps;
  __shared__ TileMemory<float, kWarps> memory[2];
  const TilePlace place(tiling, links, &memory[0].tile);
  const int first = (place.rank * tiling.warps + int(threadIdx.x) / 32) * R;
  const Chunk<R> chunk(walk.steps(place.row, place.block), place.row, first, place.live);
  const bool brain = a.b.dtype == NVSUBQ_BF16;
  Raw raw_decay[R], raw_in[R];
  load_pairs(a.a, chunk, place.channel, raw_decay);
  load_pairs(a.b, chunk, place.channel, raw_in);
  float decay[2][R], in[2][R];
#pragma unroll
  for (int j = 0; j < R; ++j) {
    const float2 d = opened(raw_decay[j], brain), b = opened(raw_in[j], brain);
    const bool visited = j < chunk.visited;  // a step that is not keeps the state
    decay[0][j] = visited ? d.x : 1.0f, decay[1][j] = visited ? d.y : 1.0f;
    in[0][j] = b.x, in[1][j] = b.y;
  }
  scan_pairs(a, memory, tiling, links, place, chunk, LinearSizes<float, false>::tile_back, decay, in);
  store_pairs<Raw>(a.y, chunk, place.channel, brain, in);
}

Tiling tiling_of(const Linear& a) { return Tiling::of(a, kWarps, kSteps, true, 2); }

}  // namespace

bool in_pairs(const Linear& a) {
  if (!pairs_up(a) || present(a.dt) || a.flags & NVSUBQ_FIXED_A || a.input_scale != NVSUBQ_SCALE_NONE) return false;
  if (a.b.dtype == NVSUBQ_F64) return false;
  return lies_in_pairs(a.a, a.b.dtype) && lies_in_pairs(a.b, a.b.dtype) && lies_in_pairs(a.y, a.b.dtype);
}

int64_t pairs_workspace(const Linear& a) {
  Arena arena(nullptr);
  return Links::in<float>(arena, a, tiling_of(a)).bytes;
}

int forward_in_pairs(const Linear& a, cudaStream_t stream) {
  const Tiling tiling = tiling_of(a);
  if (const int status = check_tiling(a, tiling)) return status;
  Arena arena(a.workspace);
  const Links links = Links::in<float>(arena, a, tiling);
  if (const int status = clear_links(links, stream)) return status;
  const auto kernel = a.b.dtype == NVSUBQ_F32 ? forward_pairs<uint2> : forward_pairs<uint32_t>;
  return launch("linear_scan forward", kernel, dim3(unsigned(tiling.count(a))), dim3(tiling.warps * 32), 0, stream, a,
                Walk(a), tiling, links);
}

}  // namespace nvsubq
