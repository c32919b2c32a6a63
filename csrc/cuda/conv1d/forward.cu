// The forward of four taps side by side.
#include "fast.cuh"

namespace nvsubq {
namespace {

// Measured on an H100: threads that have few channels and many neighbours hide memory best, more steps of each make
// up for what it reads before its first one.
constexpr int kThreads = 256, kAcross = 32;             // of a block; of these at most along the channels
constexpr int kMostLanes = 4, kAhead = 8, kBlocks = 2;  // channels and inputs of a thread; blocks on a multiprocessor
constexpr int64_t kLongest = 64, kPlenty = 80000;       // steps of a thread; threads that are enough

// Inputs of some steps, asked for together. Past the end it is the last one again, which goes nowhere.
template <class S, int V, bool PLAIN>
struct Batch {
  Pack<S, V> packs[kAhead];
  int cells[kAhead];
  int32_t numbers[kAhead];

  __device__ __forceinline__ void load(const Path<PLAIN>& path, const S* from, int stride, int begin, int end) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int step = min(begin + i, end - 1);
      cells[i] = path.cell(step);
      packs[i] = load_once<S, V>(from + int64_t(cells[i]) * stride);
      numbers[i] = number_at<PLAIN>(path, step);
    }
  }
};

template <class S, int V, class Known>
__global__ void __launch_bounds__(kThreads, sizeof(S) == 8 ? 1 : kBlocks)
    conv1d_forward(const __grid_constant__ Conv a, const __grid_constant__ Walk walk,
                   const __grid_constant__ Tiling tiling) {
  using T = typename ComputeOf<S>::type;
  constexpr bool PLAIN = Known::plain;
  const Place place(tiling, V, a.length);
  if (!place.there) return;
  const Path<PLAIN> path(walk.steps(place.row, block_of(a, place.channel)));
  const S* from = Rows<S>(a.x).at(place.row, place.channel);
  const int from_stride = int(a.x.stride[1]), to_stride = int(a.y.stride[1]);
  const int stop = min(place.begin + tiling.piece, path.length), end = min(stop, path.count);
  S* to = Rows<S>(a.y).at(place.row, place.channel);
  if (place.begin < end) {
    Batch<S, V, PLAIN> batch, next;
    batch.load(path, from, from_stride, place.begin, end);
    const Taps<T, V> taps(a, place.channel);
    Window<T, V, PLAIN> window;
    window.load(a, path, from, from_stride, place);
    const bool gated = Known::gated(a);
    for (int k = place.begin; k < end; k += kAhead) {
      if (k + kAhead < end) next.load(path, from, from_stride, k + kAhead, end);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        T now[V], sum[V];
#pragma unroll
        for (int v = 0; v < V; ++v) now[v] = widen<T>(batch.packs[i].lane[v]);
        window.sum(taps, now, batch.numbers[i], sum);
        Pack<S, V> out;
#pragma unroll
        for (int v = 0; v < V; ++v) out.lane[v] = narrow<S>(gated ? silu(sum[v]) : sum[v]);
        if (k + i < end) store_once<S, V>(to + int64_t(batch.cells[i]) * to_stride, out);
        window.push(now, batch.numbers[i]);
      }
      batch = next;
    }
  }
  if constexpr (!PLAIN) clear<S, V>(path, to, to_stride, place.begin, stop);
}

template <class S, int V>
int launch_forward(const Conv& a, cudaStream_t stream) {
  const int64_t threads = a.batch * (a.width / V);
  int64_t piece = kLongest;
  while (piece > 8 && threads * ceil_div(a.length, piece) < kPlenty) piece /= 2;
  const Tiling tiling(a, V, int(piece), kAcross, kThreads);
  return for_known(a, [&](auto known) {
    const auto kernel = conv1d_forward<S, V, decltype(known)>;
    return launch("conv1d forward", kernel, tiling.grid, tiling.block, 0, stream, a, Walk(a), tiling);
  });
}

}  // namespace

int forward_fast(const Conv& a, cudaStream_t stream) {
  if (a.y.dtype != a.x.dtype) return fail(NVSUBQ_UNSUPPORTED, "y must have the dtype of x");
  return for_dtype(a.x.dtype, [&](auto kind) {
    using S = decltype(kind);
    constexpr int V = kLanes<S> < kMostLanes ? kLanes<S> : kMostLanes;
    const bool packs = a.width / a.blocks % V == 0 && packs_fit(a.x, V) && packs_fit(a.y, V);
    return packs ? launch_forward<S, V>(a, stream) : launch_forward<S, 1>(a, stream);
  });
}

}  // namespace nvsubq
