// First-order recurrences s <- P s + H in one pass over memory: a walk is cut into tiles, a tile into one chunk for
// each warp, and tiles are linked in the order of the walk.
//
// A block knows what its tile does to a state, (P, H), before it knows the state that enters: it publishes that, takes
// the nearest state before it that is known, applies the tiles between in order, and publishes the state that leaves.
// However many tiles that are, the same products and sums are made in the same order, so the bits do not depend on
// timing. A block's tile is its index: blocks begin in that order (CUB's scans rely on it too), so what one waits for
// belongs to one that already runs.
#ifndef NVSUBQ_CUDA_CHAIN_CUH
#define NVSUBQ_CUDA_CHAIN_CUH

#include "columns.cuh"
#include "entry.h"
#include "overlap.cuh"

namespace nvsubq {

// s after steps that together are (product, sum). A sequence that starts on the way has product 0 and takes nothing
// from before, not even what is not finite.
template <class N>
NVSUBQ_BOTH N fold(N product, N sum, N s) {
  return is_zero(product) ? sum : fused(product, s, sum);
}

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

// What a run of chunks does to a state.
template <class N>
struct Link {
  N product, sum;
  NVSUBQ_BOTH Link() : product(number<N>(1)), sum() {}
  NVSUBQ_BOTH void add(N next_product, N next_sum) {
    sum = fold(next_product, next_sum, sum);
    product = is_zero(next_product) ? N{} : product * next_product;
  }
};

// What blocks tell each other of a tile, for each channel: numbers with parts of type T, in words that are written and
// read at once. Before a launch all bits are set: a part that is written has others, so that no fence is needed.
template <class X, class T>
struct Told {
  using Word = std::conditional_t<sizeof(X) == 4, uint32_t, uint64_t>;
  static constexpr int kWords = int(sizeof(X) / sizeof(Word));

  static NVSUBQ_BOTH void tell(Word* to, int64_t between, const X& x) {
    constexpr uint32_t kNoNumber = 0x7fffffff;  // in place of a NaN whose bits are all set
    Word words[kWords];
    memcpy(words, &x, sizeof x);
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      uint32_t low = uint32_t(words[w]), high = uint32_t(uint64_t(words[w]) >> 32);
      if constexpr (sizeof(T) == 8) {
        if (low == ~0u && high == ~0u) high = kNoNumber;
      } else {
        if (low == ~0u) low = kNoNumber;
        if (high == ~0u) high = kNoNumber;
      }
      if constexpr (sizeof(Word) == 8)
        asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to + w * between), "l"(uint64_t(high) << 32 | low)
                     : "memory");
      else
        asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to + w * between), "r"(low) : "memory");
    }
  }
  // Whether it is there.
  static NVSUBQ_BOTH bool ask(const Word* from, int64_t between, X* x) {
    Word words[kWords];
    bool there = true;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      if constexpr (sizeof(Word) == 8) {
        asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(words[w]) : "l"(from + w * between) : "memory");
        const uint32_t low = uint32_t(words[w]), high = uint32_t(words[w] >> 32);
        there = there && (sizeof(T) == 8 ? (low & high) != ~0u : low != ~0u && high != ~0u);
      } else {
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(words[w]) : "l"(from + w * between) : "memory");
        there = there && words[w] != ~0u;
      }
    }
    memcpy(x, words, sizeof *x);
    return there;
  }
};

// Where they tell it, first in the workspace: what each tile does to a state, and the state that leaves it.
struct Links {
  void *steps, *states;
  int64_t columns, bytes;

  template <class N, class Args>
  static Links in(Arena& arena, const Args& a, const Tiling& t) {
    Links links;
    links.columns = a.batch * t.groups * 32 * t.lanes;
    const int64_t told = t.tiles > 1 ? links.columns * t.tiles * int64_t(sizeof(N)) : 0;
    links.steps = arena.take<char>(2 * told), links.states = arena.take<char>(told);
    links.bytes = arena.bytes();
    return links;
  }
  template <class X, class N>
  NVSUBQ_BOTH auto* at(void* of_all, int rank, int64_t column) const {
    using Of = Told<X, typename PartsOf<N>::type>;
    return static_cast<typename Of::Word*>(of_all) + int64_t(rank) * Of::kWords * columns + column;
  }
  template <class N>
  NVSUBQ_BOTH void tell_step(int rank, int64_t column, const Link<N>& x) const {
    Told<Link<N>, typename PartsOf<N>::type>::tell(at<Link<N>, N>(steps, rank, column), columns, x);
  }
  template <class N>
  NVSUBQ_BOTH void tell_state(int rank, int64_t column, const N& x) const {
    Told<N, typename PartsOf<N>::type>::tell(at<N, N>(states, rank, column), columns, x);
  }
  template <class N>
  NVSUBQ_BOTH bool ask_step(int rank, int64_t column, Link<N>* x) const {
    return Told<Link<N>, typename PartsOf<N>::type>::ask(at<Link<N>, N>(steps, rank, column), columns, x);
  }
  template <class N>
  NVSUBQ_BOTH bool ask_state(int rank, int64_t column, N* x) const {
    return Told<N, typename PartsOf<N>::type>::ask(at<N, N>(states, rank, column), columns, x);
  }
};

// The state that enters the tile of this rank (1 or more); `initial` enters that of rank 0. Looks at REACH tiles at
// once: few walks hang on how fast a state goes along one, many on the registers that looking takes.
template <int REACH, class N>
__device__ __forceinline__ N look_back(const Links& links, int rank, int64_t column, N initial) {
  for (;;) {
    N state[REACH];
    Link<N> step[REACH];
    bool known[REACH], linked[REACH];
#pragma unroll
    for (int i = 0; i < REACH; ++i) {
      const int from = rank - 1 - i;
      known[i] = linked[i] = false;
      if (from < 0) {
        known[i] = from == -1, state[i] = initial;
        continue;
      }
      known[i] = links.ask_state(from, column, &state[i]);
      if (i + 1 < REACH) linked[i] = links.ask_step(from, column, &step[i]);
    }
    int use = -1;
    bool open = true;
    N s = initial;
#pragma unroll
    for (int i = 0; i < REACH; ++i) {
      if (use < 0 && open && known[i]) use = i, s = state[i];
      open = open && linked[i];
    }
    if (use < 0) continue;
#pragma unroll
    for (int i = REACH - 2; i >= 0; --i)
      if (i < use) s = fold(step[i].product, step[i].sum, s);
    return s;
  }
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
  // Among the places of links of one rank and kind.
  __device__ __forceinline__ int64_t column(int which = 0, int lanes = 1) const {
    return (int64_t(abreast) * lanes + which) * 32 + (threadIdx.x & 31);
  }
};

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
  if (tile.rank && !last) links.tell_step(tile.rank, column, all);
  if (tile.rank) s = look_back<REACH>(links, tile.rank, column, s);
  if (!last) links.tell_state(tile.rank, column, fold(all.product, all.sum, s));
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
  return fold(before.product, before.sum, memory.entering[lane]);
}

// Sets the bits of what blocks will tell each other, while the kernel that needs it fetches its inputs.
template <int THREADS>
__global__ void __launch_bounds__(THREADS) clear_words(ulonglong2* words, int64_t count) {
  let_the_next_start();
  const int64_t step = int64_t(gridDim.x) * THREADS;
  for (int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x; i < count; i += step) words[i] = {~0ull, ~0ull};
}
// Queues a kernel whose blocks are linked.
template <class... Parameters, class... Given>
int launch_linked(const char* name, void (*kernel)(Parameters...), const Links& links, dim3 grid, dim3 block,
                  cudaStream_t stream, const Given&... given) {
  if (!links.bytes) return launch(name, kernel, grid, block, 0, stream, given...);
  constexpr int kThreads = 512;
  constexpr int64_t kMostBlocks = 256;  // which all start at once, so that the next kernel does soon
  const int64_t count = links.bytes / int64_t(sizeof(ulonglong2)), blocks = ceil_div(count, kThreads);
  const dim3 few(unsigned(blocks < kMostBlocks ? blocks : kMostBlocks));
  auto* const words = static_cast<ulonglong2*>(links.steps);
  if (const int status = launch(name, clear_words<kThreads>, few, kThreads, 0, stream, words, count)) return status;
  return launch_next(name, kernel, grid, block, stream, given...);
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
