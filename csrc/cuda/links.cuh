// First-order recurrences: how blocks hand on the state from tile to tile.
//
// A block knows what its tile does to a state, (P, H), before it knows the state that enters: it publishes that, takes
// the nearest state before it that is known, applies the tiles between in order, and publishes the state that leaves.
// However many tiles that are, the same products and sums are made in the same order, so the bits do not depend on
// timing. A block's tile is its index: blocks begin in that order (CUB's scans rely on it too), so what one waits for
// belongs to one that already runs.
#ifndef NVSUBQ_CUDA_LINKS_CUH
#define NVSUBQ_CUDA_LINKS_CUH

#include "overlap.cuh"
#include "tiling.cuh"

namespace nvsubq {

// s after steps that together are (product, sum). A sequence that starts on the way has product 0 and takes nothing
// from before, not even what is not finite.
template <class N>
NVSUBQ_BOTH N fold(N product, N sum, N s) {
  return is_zero(product) ? sum : fused(product, s, sum);
}

// What a run of chunks does to a state.
template <class N>
struct Link {
  N product, sum;
  NVSUBQ_BOTH Link() : product(number<N>(1)), sum() {}
  NVSUBQ_BOTH N after(N s) const { return fold(product, sum, s); }
  NVSUBQ_BOTH void add(N next_product, N next_sum) {
    sum = fold(next_product, next_sum, sum);
    product = is_zero(next_product) ? N{} : product * next_product;
  }
};

// What blocks tell each other, by tile and channel: X, whose parts are of type T, in words that are written and read at
// once. Before a launch all bits are set: a part that is written has others, so that no fence is needed.
template <class X, class T>
struct Told {
  using Word = std::conditional_t<sizeof(X) == 4, uint32_t, uint64_t>;
  static constexpr int kWords = int(sizeof(X) / sizeof(Word));
  Word* words;  // [tile][word][column]
  int64_t columns;

  NVSUBQ_BOTH void tell(int rank, int64_t column, const X& x) const {
    constexpr uint32_t kNoNumber = 0x7fffffff;  // in place of a NaN whose bits are all set
    Word* const to = words + int64_t(rank) * kWords * columns + column;
    Word parts[kWords];
    memcpy(parts, &x, sizeof x);
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      uint32_t low = uint32_t(parts[w]), high = uint32_t(uint64_t(parts[w]) >> 32);
      if constexpr (sizeof(T) == 8) {
        if (low == ~0u && high == ~0u) high = kNoNumber;
      } else {
        if (low == ~0u) low = kNoNumber;
        if (high == ~0u) high = kNoNumber;
      }
      if constexpr (sizeof(Word) == 8)
        asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to + w * columns), "l"(uint64_t(high) << 32 | low)
                     : "memory");
      else
        asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to + w * columns), "r"(low) : "memory");
    }
  }
  // Whether it is there.
  NVSUBQ_BOTH bool ask(int rank, int64_t column, X* x) const {
    const Word* const from = words + int64_t(rank) * kWords * columns + column;
    Word parts[kWords];
    bool there = true;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      if constexpr (sizeof(Word) == 8) {
        asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(parts[w]) : "l"(from + w * columns) : "memory");
        const uint32_t low = uint32_t(parts[w]), high = uint32_t(parts[w] >> 32);
        there = there && (sizeof(T) == 8 ? (low & high) != ~0u : low != ~0u && high != ~0u);
      } else {
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(parts[w]) : "l"(from + w * columns) : "memory");
        there = there && parts[w] != ~0u;
      }
    }
    memcpy(x, parts, sizeof *x);
    return there;
  }
};

// Where they tell it, first in the workspace: what each tile does to a state, and the state that leaves it.
struct Links {
  void *of_steps, *of_states;
  int64_t columns, bytes;

  template <class N, class Args>
  static Links in(Arena& arena, const Args& a, const Tiling& t) {
    Links links;
    links.columns = a.batch * t.groups * 32 * t.lanes;
    const int64_t told = t.tiles > 1 ? links.columns * t.tiles * int64_t(sizeof(N)) : 0;
    links.of_steps = arena.take<char>(2 * told), links.of_states = arena.take<char>(told);
    links.bytes = arena.bytes();
    return links;
  }
  template <class N>
  NVSUBQ_BOTH auto steps() const {
    using Steps = Told<Link<N>, typename PartsOf<N>::type>;
    return Steps{static_cast<typename Steps::Word*>(of_steps), columns};
  }
  template <class N>
  NVSUBQ_BOTH auto states() const {
    using States = Told<N, typename PartsOf<N>::type>;
    return States{static_cast<typename States::Word*>(of_states), columns};
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
      known[i] = links.states<N>().ask(from, column, &state[i]);
      if (i + 1 < REACH) linked[i] = links.steps<N>().ask(from, column, &step[i]);
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
      if (i < use) s = step[i].after(s);
    return s;
  }
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
  auto* const words = static_cast<ulonglong2*>(links.of_steps);
  if (const int status = launch(name, clear_words<kThreads>, few, kThreads, 0, stream, words, count)) return status;
  return launch_next(name, kernel, grid, block, stream, given...);
}

}  // namespace nvsubq

#endif
