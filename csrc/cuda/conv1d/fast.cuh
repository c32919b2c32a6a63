// Four taps side by side: a thread walks some steps of V channels with the last inputs in registers.
#ifndef NVSUBQ_CUDA_CONV1D_FAST_CUH
#define NVSUBQ_CUDA_CONV1D_FAST_CUH

#include <type_traits>

#include "common.cuh"

namespace nvsubq {

constexpr int kTaps = 4, kPast = kTaps - 1;

// Calls `todo` with whether a call has no sequences and no states: its kernels need fewer registers.
template <class F>
int for_plain(const Conv& a, F todo) {
  const bool plain = !present(a.segment) && !present(a.count) && !present(a.initial_state) && !present(a.d_final_state) &&
                     !present(a.d_initial_state);
  return plain ? todo(std::true_type()) : todo(std::false_type());
}

// How threads share a call: `x` of a block are packs of channels side by side, `y` pieces of the walk, each `piece`
// steps long. Blocks are numbered by row, then along the walk, then by channels.
struct Tiling {
  int64_t groups, tiles, packs;
  int piece;
  dim3 block;
  unsigned grid;

  Tiling(const Conv& a, int lanes, int steps, int across, int threads) : piece(steps) {
    packs = a.width / lanes;
    const int64_t x = packs < across ? packs : across;
    block = dim3(unsigned(x < 1 ? 1 : x), unsigned(threads / (x < 1 ? 1 : x)));
    tiles = ceil_div(packs, block.x);
    const int64_t pieces = a.length > 0 ? ceil_div(a.length, piece) : 1;
    groups = ceil_div(pieces, block.y);
    grid = unsigned(a.batch * groups * tiles);
  }
};

// A thread's part of a call.
struct Place {
  int64_t row, group, channel;
  int begin;  // step; they fit in 32 bits
  bool there;

  __device__ __forceinline__ Place(const Tiling& t, int lanes, int64_t length) {
    const unsigned tile = blockIdx.x % unsigned(t.tiles), rest = blockIdx.x / unsigned(t.tiles);
    group = rest % unsigned(t.groups);
    row = rest / unsigned(t.groups);
    const int64_t pack = int64_t(tile) * blockDim.x + threadIdx.x;
    channel = pack * lanes;
    const int64_t first = (group * blockDim.y + threadIdx.y) * t.piece;
    there = pack < t.packs && (first < length || first == 0);
    begin = there ? int(first) : 0;
  }
};

constexpr int kMostChannels = 128;  // of a block

// A walk in 32 bits, as all sizes of a call that `is_fast` are.
template <bool PLAIN>
struct Path {
  const int64_t* index;
  const int32_t* segment;
  int index_stride, segment_stride, count, length;

  __device__ __forceinline__ explicit Path(const Steps& s)
      : index(s.index), segment(PLAIN ? nullptr : s.segment), index_stride(int(s.index_stride)),
        segment_stride(int(s.segment_stride)), count(PLAIN ? int(s.length) : int(s.count)), length(int(s.length)) {}
  __device__ __forceinline__ int cell(int step) const {
    if (!index) return step;
    const int64_t found = __ldg(index + int64_t(step) * index_stride);
    return uint64_t(found) < uint64_t(length) ? int(found) : 0;
  }
  __device__ __forceinline__ int32_t number(int step) const {
    return !PLAIN && segment ? __ldg(segment + int64_t(step < 0 ? 0 : step) * segment_stride) : 0;
  }
};

// The taps of V channels, oldest first, and their bias. A block's threads read those of all its channels together.
template <class T, int V>
struct Taps {
  T weight[kTaps][V], bias[V];

  __device__ __forceinline__ Taps(const Conv& a, const Tiling& tiling, T (&shared)[kTaps + 1][kMostChannels]) {
    const int channels = int(blockDim.x) * V;
    const int64_t first = int64_t(blockIdx.x % unsigned(tiling.tiles)) * channels;
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < channels * (kTaps + 1); i += blockDim.x * blockDim.y) {
      const int tap = i % (kTaps + 1), within = i / (kTaps + 1);
      const int64_t channel = first + within;
      if (channel >= a.width) continue;
      if (tap < kTaps)
        shared[tap][within] = read_any<T>(a.weight, at(a.weight, channel, tap));
      else
        shared[tap][within] = present(a.bias) ? read_any<T>(a.bias, channel * a.bias.stride[0]) : T(0);
    }
    __syncthreads();
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int j = 0; j < kTaps; ++j) weight[j][v] = shared[j][threadIdx.x * V + v];
      bias[v] = shared[kTaps][threadIdx.x * V + v];
    }
  }
};

// The last inputs of a walk, newest last, and the numbers of their sequences. PLAIN: there is one, and no state.
template <class T, int V, bool PLAIN>
struct Window {
  T x[kPast][V];
  int32_t number[kPast];

  // `first` is the channels' place at cell 0.
  template <class S>
  __device__ __forceinline__ Window(const Conv& a, const Path<PLAIN>& path, const S* first, int stride, const Place& place) {
#pragma unroll
    for (int i = 0; i < kPast; ++i) {
      const int step = place.begin - kPast + i;
      number[i] = path.number(step);
      if (step >= 0) {
        const auto pack = load_pack<S, V>(first + int64_t(path.cell(step)) * stride);
#pragma unroll
        for (int v = 0; v < V; ++v) x[i][v] = widen<T>(pack.lane[v]);
      } else {
#pragma unroll
        for (int v = 0; v < V; ++v) x[i][v] = PLAIN ? T(0) : before<T>(a, place.row, place.channel + v, step);
      }
    }
  }

  // The taps' sum at the step that comes next, whose input and sequence are given.
  __device__ __forceinline__ void sum(const Taps<T, V>& taps, const T (&now)[V], int32_t its, T (&y)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) y[v] = taps.bias[v];
#pragma unroll
    for (int i = 0; i < kPast; ++i)
      if (PLAIN || number[i] == its) {
#pragma unroll
        for (int v = 0; v < V; ++v) y[v] = fma(taps.weight[i][v], x[i][v], y[v]);
      }
#pragma unroll
    for (int v = 0; v < V; ++v) y[v] = fma(taps.weight[kPast][v], now[v], y[v]);
  }

  __device__ __forceinline__ void push(const T (&now)[V], int32_t its) {
#pragma unroll
    for (int i = 0; i < kPast; ++i) {
      number[i] = i + 1 < kPast ? number[i + 1] : its;
#pragma unroll
      for (int v = 0; v < V; ++v) x[i][v] = i + 1 < kPast ? x[i + 1][v] : now[v];
    }
  }
};

// Zeros at the cells of a thread's steps that are not there.
template <class S, int V>
__device__ __forceinline__ void clear(const Path<false>& path, S* first, int stride, int begin, int end) {
  Pack<S, V> zero;
#pragma unroll
  for (int v = 0; v < V; ++v) zero.lane[v] = narrow<S>(0.0f);
  for (int k = max(begin, path.count); k < end; ++k)
    store_pack<S, V>(first + int64_t(path.cell(k)) * stride, zero);
}

}  // namespace nvsubq

#endif
