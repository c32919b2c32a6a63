// First-order recurrences: how a walk is cut into tiles, and tiles are spread over blocks.
#ifndef NVSUBQ_CUDA_TILING_CUH
#define NVSUBQ_CUDA_TILING_CUH

#include "columns.cuh"
#include "entry.h"

namespace nvsubq {

// Borders between tiles of this many steps.
__host__ __device__ __forceinline__ int64_t borders(int64_t length, int tile) {
  return length > tile ? (length - 1) / tile : 0;
}

// Division of 0 .. 2^31 - 1 by a number that the host knows.
struct Divisor {
  uint32_t by, factor, shift;

  Divisor() = default;
  explicit Divisor(int64_t number) : by(number > 0 && number <= INT32_MAX ? uint32_t(number) : 1), shift(0) {
    while ((uint32_t(1) << shift) < by) ++shift;
    factor = uint32_t((uint64_t(1) << (31 + shift)) / by + 1);
  }
  __device__ __forceinline__ uint32_t quotient(uint32_t x) const { return __umulhi(2 * x, factor) >> shift; }
};

// How channels, rows and steps are spread over blocks.
struct Tiling {
  int64_t run;                         // channels of one block of the walk
  int groups_of_block, groups, tiles;  // groups of 32 lanes; tiles of a walk
  int warps;                           // of a CUDA block, each with its chunk
  int lanes;                           // neighbouring channels of a lane
  Divisor by_rank, by_row, by_block;   // blocks of a rank, groups of a row, and of a block of the walk

  // Tiles of at most `warps` chunks of `steps` steps, all alike if they are `even`. A rule of the length alone.
  template <class Args>
  static Tiling of(const Args& a, int warps, int steps, bool even, int lanes = 1) {
    Tiling t;
    t.run = a.width / a.blocks;
    t.lanes = lanes;
    t.groups_of_block = int(ceil_div(t.run, 32 * lanes));
    t.groups = t.groups_of_block * int(a.blocks);
    const int64_t chunks = ceil_div(a.length < 1 ? 1 : a.length, steps);
    t.tiles = int(ceil_div(chunks, warps));
    t.warps = even || t.tiles == 1 ? int(ceil_div(chunks, t.tiles)) : warps;
    t.by_rank = Divisor(a.batch * t.groups), t.by_row = Divisor(t.groups), t.by_block = Divisor(t.groups_of_block);
    return t;
  }
  template <class Args>
  int64_t count(const Args& a) const {
    return a.batch * groups * tiles;
  }
};

// Whether walks are so many that none has to be fast, for kernels that are built with both reaches of `look_back`.
template <class Args>
bool many_walks(const Args& a, const Tiling& t) {
  return a.batch * t.groups >= 10;
}

template <class Args>
int check_tiling(const Args& a, const Tiling& t) {
  constexpr int64_t kMost = INT32_MAX - 65536;
  if (a.length > kMost || a.width > kMost || t.count(a) > kMost)
    return fail(NVSUBQ_UNSUPPORTED, "batch, length, width (=%lld, %lld, %lld): too large for one call",
                (long long)a.batch, (long long)a.length, (long long)a.width);
  return NVSUBQ_OK;
}

// A block's tile, and this thread's place in it. In 32 bits, which `check_tiling` sees to: registers are scarce.
struct TilePlace {
  int row, group, block, rank;  // group: of lanes; rank: of the tile in the order of the chain
  uint32_t abreast;             // among the tiles of its rank
  int channel;                  // the first of this lane
  bool live;                    // whether there is such a channel

  __device__ __forceinline__ explicit TilePlace(const Tiling& t) {
    const uint32_t of_rank = t.by_rank.quotient(blockIdx.x);
    abreast = blockIdx.x - of_rank * t.by_rank.by, rank = int(of_rank);
    const uint32_t of_row = t.by_row.quotient(abreast);
    row = int(of_row), group = int(abreast - of_row * t.by_row.by);
    block = int(t.by_block.quotient(uint32_t(group)));
    const int within = ((group - block * t.groups_of_block) * 32 + int(threadIdx.x & 31)) * t.lanes;
    live = within < t.run;
    channel = block * int(t.run) + within;
  }
  // Among what is told of the tiles of one rank.
  __device__ __forceinline__ int64_t column(int which = 0, int lanes = 1) const {
    return (int64_t(abreast) * lanes + which) * 32 + (threadIdx.x & 31);
  }
};

}  // namespace nvsubq

#endif
