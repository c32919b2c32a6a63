// First-order recurrences s <- P s + H in one pass over memory: a walk is cut into tiles, a tile into one chunk for
// each warp, and tiles are linked in the order of the walk.
#ifndef NVSUBQ_CUDA_CHAIN_CUH
#define NVSUBQ_CUDA_CHAIN_CUH

#include "links.cuh"

namespace nvsubq {

// What the warps of a block tell each other, by chunk and channel: what a chunk does to a state.
template <class N, int WARPS>
struct TileMemory {
  N product[WARPS][32], sum[WARPS][32], entering[32];
};

// The chunks of this tile before `end` (BACK: after it), in the order of the chain. A chain from the end of the walk on
// multiplies by the products' conjugates.
template <bool BACK, class N, int WARPS>
__device__ __forceinline__ Link<N> chunks_before(const TileMemory<N, WARPS>& memory, const Tiling& t, int end) {
  const int lane = int(threadIdx.x) & 31;
  Link<N> link;
  if (BACK) {
#pragma unroll 4
    for (int w = t.warps - 1; w > end; --w) link.add(conj(memory.product[w][lane]), memory.sum[w][lane]);
  } else {
#pragma unroll 4
    for (int w = 0; w < end; ++w) link.add(memory.product[w][lane], memory.sum[w][lane]);
  }
  return link;
}

// The state that enters the tile, in a column of the links; `s` enters the walk. Blocks that follow get what leaves it.
template <bool BACK, int REACH = 2, class N, int WARPS>
__device__ __forceinline__ N linked(const TileMemory<N, WARPS>& memory, const Tiling& t, const Links& links,
                                    const TilePlace& tile, int64_t column, N s) {
  if (t.tiles == 1) return s;
  wait_for_the_last();  // which cleared the links
  const Link<N> all = chunks_before<BACK>(memory, t, BACK ? -1 : t.warps);
  const bool last = tile.rank == t.tiles - 1;
  if (tile.rank && !last) links.steps<N>().tell(tile.rank, column, all);
  if (tile.rank) s = look_back<REACH>(links, tile.rank, column, s);
  if (!last) links.states<N>().tell(tile.rank, column, all.after(s));
  return s;
}

// The state that enters the chunk of this warp, once each chunk's product and sum are in `memory`. One warp gets, from
// other blocks, the state that enters the tile; `initial` enters the walk.
template <bool BACK, int REACH = 2, class N, int WARPS>
__device__ __forceinline__ N entering_state(TileMemory<N, WARPS>& memory, const Tiling& t, const Links& links,
                                            const TilePlace& place, const nvsubq_tensor& initial) {
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) / 32;
  Link<N> before;
  if (warp == (BACK ? t.warps - 1 : 0)) {
    const N s = place.live ? read_state<N>(initial, place.row, place.channel) : N{};
    memory.entering[lane] = linked<BACK, REACH>(memory, t, links, place, place.column(), s);
  } else {
    before = chunks_before<BACK>(memory, t, warp);  // while that warp waits
  }
  __syncthreads();
  return before.after(memory.entering[lane]);
}

// Column sums of `from` [rows][columns], in a fixed order whatever the launch: block (32, 32), `done(column, sum)`.
template <class T, class F>
__device__ __forceinline__ void sum_columns(const T* from, int64_t rows, int64_t columns, F done) {
  __shared__ double part[32][33];
  const int64_t column = int64_t(blockIdx.x) * 32 + threadIdx.x;
  double sum = 0;
  if (column < columns)
#pragma unroll 4
    for (int64_t row = threadIdx.y; row < rows; row += 32) sum += double(from[row * columns + column]);
  part[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y || column >= columns) return;
  for (int i = 1; i < 32; ++i) sum += part[i][threadIdx.x];
  done(column, T(sum));
}

}  // namespace nvsubq

#endif
