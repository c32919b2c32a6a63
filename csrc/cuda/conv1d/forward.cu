// The forward of four taps side by side.
#include "fast.cuh"

namespace nvsubq {
namespace {

constexpr int kMostLanes = 8, kAhead = 4, kBlocks = 2;  // channels and inputs in flight of a thread; blocks on a multiprocessor
constexpr int64_t kLongest = 32;  // steps of a thread

template <class S, int V, bool PLAIN>
__global__ void __launch_bounds__(256, sizeof(S) == 8 ? 1 : kBlocks) conv1d_forward(const __grid_constant__ Conv a, const __grid_constant__ Walk walk,
                                                      const __grid_constant__ Tiling tiling) {
  using T = typename ComputeOf<S>::type;
  const Place place(tiling, V, a.length);
  if (!place.there) return;
  const Steps steps = walk.steps(place.row, block_of(a, place.channel));
  const Rows<S> x(a.x), y(a.y);
  const S* from = x.at(place.row, place.channel);
  S* to = y.at(place.row, place.channel);
  const int stop = min(place.begin + tiling.piece, int(steps.length)), end = PLAIN ? stop : min(stop, int(steps.count));
  if (place.begin < end) {
    const Taps<T, V> taps(a, place.channel);
    Window<T, V, PLAIN> window(a, steps, x, place);
    const bool gated = a.flags & NVSUBQ_SILU;
    for (int k = place.begin; k < end; k += kAhead) {
      Pack<S, V> packs[kAhead];
      int cells[kAhead];
      int32_t numbers[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {  // past the end the last input again: it goes nowhere
        const int step = min(k + i, end - 1);
        cells[i] = int(steps.cell(step));
        packs[i] = load_pack<S, V>(from + cells[i] * x.cell);
        numbers[i] = number_at<PLAIN>(steps, step);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        T now[V], sum[V];
#pragma unroll
        for (int v = 0; v < V; ++v) now[v] = widen<T>(packs[i].lane[v]);
        window.sum(taps, now, numbers[i], sum);
        Pack<S, V> out;
#pragma unroll
        for (int v = 0; v < V; ++v) out.lane[v] = narrow<S>(gated ? silu(sum[v]) : sum[v]);
        if (k + i < end) store_pack<S, V>(to + cells[i] * y.cell, out);
        window.push(now, numbers[i]);
      }
    }
  }
  if (!PLAIN) clear<S, V>(steps, to, y.cell, place.begin, stop);
}

template <class S, int V>
int launch_forward(const Conv& a, cudaStream_t stream) {
  // Long pieces read few inputs twice; short ones make more threads.
  const int64_t threads = a.batch * (a.width / V), plenty = 1 << 18;
  int64_t piece = kLongest;
  while (piece > kAhead && threads * ceil_div(a.length, piece) < plenty) piece /= 2;
  const Tiling tiling(a, V, int(piece), 32, 256);
  return for_plain(a, [&](auto plain) {
    const auto kernel = conv1d_forward<S, V, plain.value>;
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
