// The backward of four taps side by side: one pass makes the cotangents before the activation, the gradient of each
// input as soon as the three cotangents after it are there, and the sums for weight and bias.
#include "fast.cuh"

namespace nvsubq {
namespace {

constexpr int kAcross = 32, kAlong = 8;                 // threads of a block
constexpr int kMostLanes = 4, kAhead = 4, kBlocks = 2;  // channels and inputs of a thread; blocks on a multiprocessor
constexpr int64_t kLongest = 64, kPlenty = 1 << 17;     // steps of a thread; threads that are enough

// Gradients of the inputs that the window of cotangents `g` reaches.
template <class S, int V, bool PLAIN>
class Backward {
  using T = typename ComputeOf<S>::type;

 public:
  __device__ __forceinline__ Backward(const Conv& a, const Walk& walk, const Tiling& tiling, const Place& place)
      : a_(a),
        place_(place),
        steps_(walk.steps(place.row, block_of(a, place.channel))),
        x_(a.x),
        dy_(a.d_y),
        dx_(a.d_x) {
    stop_ = min(place.begin + tiling.piece, int(steps_.length));
    end_ = PLAIN ? stop_ : min(stop_, int(steps_.count));
    to_ = dx_.at(place.row, place.channel);
#pragma unroll
    for (int v = 0; v < V; ++v) d_bias[v] = T(0);
#pragma unroll
    for (int j = 0; j < kTaps; ++j)
#pragma unroll
      for (int v = 0; v < V; ++v) d_weight[j][v] = T(0);
  }

  __device__ __forceinline__ void run() {
    if (place_.begin < end_ || (!PLAIN && place_.begin == 0)) walk();
    if constexpr (!PLAIN) clear<S, V>(steps_, to_, dx_.cell, place_.begin, stop_);
  }

  T d_weight[kTaps][V], d_bias[V];

 private:
  __device__ __forceinline__ void walk() {
    const Taps<T, V> taps(a_, place_.channel);
    const S* from = x_.at(place_.row, place_.channel);
    Window<T, V, PLAIN> window;
    window.load(a_, steps_, from, x_.cell, place_);
    const S* cotangents = dy_.at(place_.row, place_.channel);
    const bool gated = a_.flags & NVSUBQ_SILU;
    T g[kPast][V];
#pragma unroll
    for (int i = 0; i < kPast; ++i)
#pragma unroll
      for (int v = 0; v < V; ++v) g[i][v] = T(0);
    int cells[kPast] = {};
    const int count = int(steps_.count);
    for (int k = place_.begin; k < end_ + kPast; k += kAhead) {
      Pack<S, V> inputs[kAhead], grads[kAhead];
      int at_cell[kAhead];
      int32_t numbers[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {  // past the end the last cell again, whose cotangent is not used
        const int step = min(k + i, count - 1);
        at_cell[i] = PLAIN || count > 0 ? int(steps_.cell(step)) : 0;
        if (PLAIN || count > 0) {
          inputs[i] = load_pack<S, V>(from + at_cell[i] * x_.cell);
          grads[i] = load_pack<S, V>(cotangents + at_cell[i] * dy_.cell);
        }
        numbers[i] = k + i < count ? number_at<PLAIN>(steps_, step) : -1;
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        T now[V], latest[V];
#pragma unroll
        for (int v = 0; v < V; ++v) now[v] = widen<T>(inputs[i].lane[v]), latest[v] = widen<T>(grads[i].lane[v]);
        if (gated) {
          T sum[V];
          window.sum(taps, now, numbers[i], sum);
#pragma unroll
          for (int v = 0; v < V; ++v) latest[v] *= silu_slope(sum[v]);
        }
#pragma unroll
        for (int v = 0; v < V; ++v) latest[v] = k + i < count ? latest[v] : T(0);
        if (k + i < end_) add(window, now, latest, numbers[i]);
        emit(taps, window, g, latest, numbers[i], k + i - kPast, cells[0]);
        window.push(now, numbers[i]);
#pragma unroll
        for (int j = 0; j < kPast; ++j) {
          cells[j] = j + 1 < kPast ? cells[j + 1] : at_cell[i];
#pragma unroll
          for (int v = 0; v < V; ++v) g[j][v] = j + 1 < kPast ? g[j + 1][v] : latest[v];
        }
      }
    }
    if (!PLAIN && place_.begin == 0 && present(a_.d_initial_state))  // what no tap reaches
      for (int64_t i = 0; i < a_.state_width - kPast; ++i)
        for (int v = 0; v < V; ++v)
          write_any<T>(a_.d_initial_state, at(a_.d_initial_state, place_.row, place_.channel + v, i),
                       from_final<T>(a_, steps_, place_.row, place_.channel + v, i - a_.state_width));
  }

  // The share of one step in the sums.
  __device__ __forceinline__ void add(const Window<T, V, PLAIN>& window, const T (&now)[V], const T (&latest)[V],
                                      int32_t its) {
#pragma unroll
    for (int v = 0; v < V; ++v) d_bias[v] += latest[v];
#pragma unroll
    for (int i = 0; i < kPast; ++i)
      if (PLAIN || window.number[i] == its) {
#pragma unroll
        for (int v = 0; v < V; ++v) d_weight[i][v] = fma(latest[v], window.x[i][v], d_weight[i][v]);
      }
#pragma unroll
    for (int v = 0; v < V; ++v) d_weight[kPast][v] = fma(latest[v], now[v], d_weight[kPast][v]);
  }

  // The gradient of the window's oldest input, of a step whose cotangents `g` and `latest` are the four from it on.
  __device__ __forceinline__ void emit(const Taps<T, V>& taps, const Window<T, V, PLAIN>& window,
                                       const T (&g)[kPast][V], const T (&latest)[V], int32_t its, int step,
                                       int cell) const {
    if (step >= end_) return;
    if (step < place_.begin && (PLAIN || place_.begin > 0 || !present(a_.d_initial_state))) return;
    T sum[V];
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] = taps.weight[kPast][v] * g[0][v];
#pragma unroll
    for (int m = 1; m < kPast; ++m)
      if (PLAIN || window.number[0] == window.number[m]) {
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] = fma(taps.weight[kPast - m][v], g[m][v], sum[v]);
      }
    if (PLAIN || window.number[0] == its) {
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] = fma(taps.weight[0][v], latest[v], sum[v]);
    }
    if (!PLAIN && present(a_.d_final_state)) {
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += from_final<T>(a_, steps_, place_.row, place_.channel + v, step);
    }
    if (!PLAIN && step < 0) {
      const int64_t i = a_.state_width + step;
      if (i < 0) return;
#pragma unroll
      for (int v = 0; v < V; ++v)
        write_any<T>(a_.d_initial_state, at(a_.d_initial_state, place_.row, place_.channel + v, i), sum[v]);
      return;
    }
    Pack<S, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) out.lane[v] = narrow<S>(sum[v]);
    store_pack<S, V>(to_ + cell * dx_.cell, out);
  }

  const Conv& a_;
  const Place& place_;
  const Steps steps_;
  const Rows<S> x_, dy_, dx_;
  int stop_, end_;
  S* to_;
};

// The sums of a block's threads, which lie along the walk, in the walk's order.
template <class T, int V>
__device__ __forceinline__ void store_sums(const T (&mine)[V], T* slices, T* to, bool there) {
#pragma unroll
  for (int v = 0; v < V; ++v) slices[(threadIdx.y * V + v) * blockDim.x + threadIdx.x] = mine[v];
  __syncthreads();
  for (int v = threadIdx.y; there && v < V; v += blockDim.y) {
    T sum = 0;
    for (unsigned y = 0; y < blockDim.y; ++y) sum += slices[(y * V + v) * blockDim.x + threadIdx.x];
    to[v] = sum;
  }
  __syncthreads();
}

template <class S, int V, bool PLAIN>
__global__ void __launch_bounds__(kAcross* kAlong, sizeof(S) == 8 ? 1 : kBlocks)
    conv1d_backward(const __grid_constant__ Conv a, const __grid_constant__ Walk walk,
                    const __grid_constant__ Tiling tiling, typename ComputeOf<S>::type* __restrict__ sums) {
  using T = typename ComputeOf<S>::type;
  __shared__ T slices[kAcross * kAlong * V];
  const Place place(tiling, V, a.length);
  Backward<S, V, PLAIN> backward(a, walk, tiling, place);
  if (place.there) backward.run();
  const bool there = place.channel < a.width;
  T* to = sums + (place.row * tiling.groups + place.group) * (kTaps + 1) * a.width + place.channel;
#pragma unroll
  for (int j = 0; j < kTaps; ++j) store_sums<T, V>(backward.d_weight[j], slices, to + j * a.width, there);
  store_sums<T, V>(backward.d_bias, slices, to + kTaps * a.width, there);
}

template <class S, int V>
int launch_backward(const Conv& a, const Partials& partials, void* sums, cudaStream_t stream) {
  Tiling tiling(a, V, int(partials.steps / kAlong), kAcross, kAcross * kAlong);
  tiling.block.y = kAlong;  // also where there are fewer channels: the parts are the same for any V
  tiling.groups = partials.chunks;
  tiling.grid = unsigned(a.batch * tiling.groups * tiling.tiles);
  return for_known(a, [&](auto known) {
    const auto kernel = conv1d_backward<S, V, decltype(known)::plain>;
    return launch("conv1d backward", kernel, tiling.grid, tiling.block, 0, stream, a, Walk(a), tiling,
                  static_cast<typename ComputeOf<S>::type*>(sums));
  });
}

}  // namespace

Partials partials_of(const Conv& a) {
  // Long pieces read few inputs twice and leave few sums; short ones make more threads.
  const int64_t quads = a.batch * ceil_div(a.width, 4);
  int64_t piece = kLongest;
  while (piece > 16 && quads * ceil_div(a.length, piece) < kPlenty) piece /= 2;
  Partials p;
  p.steps = piece * kAlong;
  p.chunks = a.length > 0 ? ceil_div(a.length, p.steps) : 1;
  p.parts = a.batch * p.chunks;
  return p;
}

int backward_fast(const Conv& a, const Partials& partials, void* sums, cudaStream_t stream) {
  if (a.d_y.dtype != a.x.dtype || a.d_x.dtype != a.x.dtype)
    return fail(NVSUBQ_UNSUPPORTED, "d_y and d_x must have the dtype of x");
  return for_dtype(a.x.dtype, [&](auto kind) {
    using S = decltype(kind);
    constexpr int V = kLanes<S> < kMostLanes ? kLanes<S> : kMostLanes;
    const bool packs =
        a.width / a.blocks % V == 0 && packs_fit(a.x, V) && packs_fit(a.d_y, V) && packs_fit(a.d_x, V);
    return packs ? launch_backward<S, V>(a, partials, sums, stream) : launch_backward<S, 1>(a, partials, sums, stream);
  });
}

}  // namespace nvsubq
