// Four taps side by side: a thread walks some steps of V channels with the last inputs in registers.
#ifndef NVSUBQ_CUDA_CONV1D_FAST_CUH
#define NVSUBQ_CUDA_CONV1D_FAST_CUH

#include "common.cuh"

namespace nvsubq {

constexpr int kTaps = 4, kPast = kTaps - 1;

// What is known of a call when its kernel is compiled: PLAIN ones have no sequences and no states, which saves
// registers, and say whether there is an activation.
template <bool PLAIN, bool GATED>
struct Known {
  static constexpr bool plain = PLAIN;
  // Whether there is an activation.
  __device__ __forceinline__ static bool gated(const Conv& a) { return PLAIN ? GATED : bool(a.flags & NVSUBQ_SILU); }
};

// Calls `todo` with what is known of a call.
template <class F>
int for_known(const Conv& a, F todo) {
  bool plain = true;
  for (const nvsubq_tensor* t : {&a.segment, &a.count, &a.initial_state, &a.d_final_state, &a.d_initial_state})
    plain = plain && !present(*t);
  if (!plain) return todo(Known<false, false>());
  return a.flags & NVSUBQ_SILU ? todo(Known<true, true>()) : todo(Known<true, false>());
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
    tiles = packs > across ? ceil_div(packs, across) : 1;
    const unsigned x = packs > 0 ? unsigned(ceil_div(packs, tiles)) : 1;
    block = dim3(x, unsigned(threads) / x);
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
    return __ldg(segment + int64_t(step < 0 ? 0 : step) * segment_stride);
  }
};

// The taps of V channels, oldest first, and their bias.
template <class T, int V>
struct Taps {
  T weight[kTaps][V], bias[V];

  __device__ __forceinline__ Taps(const Conv& a, int64_t channel) {
    // As torch keeps them: the taps of a channel lie in one pack.
    const bool aligned = !(reinterpret_cast<uintptr_t>(a.weight.data) & 15);
    const bool dense = aligned && a.weight.stride[0] == kTaps && a.weight.stride[1] == 1;
    if (dense && a.weight.dtype == NVSUBQ_F32)
      read_packs<float>(a, channel);
    else if (dense && a.weight.dtype == NVSUBQ_BF16)
      read_packs<bf16>(a, channel);
    else
#pragma unroll
      for (int j = 0; j < kTaps; ++j)
#pragma unroll
        for (int v = 0; v < V; ++v) weight[j][v] = read_any<T>(a.weight, at(a.weight, channel + v, j));
#pragma unroll
    for (int v = 0; v < V; ++v)
      bias[v] = present(a.bias) ? read_any<T>(a.bias, (channel + v) * a.bias.stride[0]) : T(0);
  }

 private:
  template <class W>
  __device__ __forceinline__ void read_packs(const Conv& a, int64_t channel) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const auto taps = load_pack<W, kTaps>(static_cast<const W*>(a.weight.data) + (channel + v) * kTaps);
#pragma unroll
      for (int j = 0; j < kTaps; ++j) weight[j][v] = widen<T>(taps.lane[j]);
    }
  }
};

// The number of a step's sequence, 0 where there are none.
template <bool PLAIN, class P>
__device__ __forceinline__ int32_t number_at(const P& path, int step) {
  return !PLAIN && path.segment ? path.number(step) : 0;
}

// The last inputs of a walk, newest last, and the numbers of their sequences. PLAIN: there is one, and no state.
template <class T, int V, bool PLAIN>
struct Window {
  T x[kPast][V];
  int32_t number[kPast];

  // `path` is a Path or the Steps themselves, `first` the channels' place at cell 0.
  template <class P, class S, class I>
  __device__ __forceinline__ void load(const Conv& a, const P& path, const S* first, I stride, const Place& place) {
#pragma unroll
    for (int i = 0; i < kPast; ++i) {
      const int step = place.begin - kPast + i;
      number[i] = number_at<PLAIN>(path, step);
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
template <class S, int V, class P, class I>
__device__ __forceinline__ void clear(const P& path, S* first, I stride, int begin, int end) {
  Pack<S, V> zero;
#pragma unroll
  for (int v = 0; v < V; ++v) zero.lane[v] = narrow<S>(0.0f);
  for (int k = max(begin, int(path.count)); k < end; ++k)
    store_pack<S, V>(first + int64_t(path.cell(k)) * stride, zero);
}

}  // namespace nvsubq

#endif
