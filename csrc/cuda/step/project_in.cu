// The projection in of a step, with the step of the convolution on some of its rows.
#include "functions.cuh"
#include "product.cuh"
#include "step.h"

namespace nvsubq {
namespace {

constexpr int kTaps = 4;  // so many are read while the row's weights are under way

// One channel of the convolution.
template <class T>
struct Taps {
  T weight[kTaps], seen[kTaps], bias;

  static __device__ __forceinline__ bool are_few(const ConvStep<T>& conv) { return conv.taps <= kTaps; }
  static __device__ __forceinline__ int64_t state_at(const ConvStep<T>& conv, int64_t b, int64_t channel) {
    return (b * conv.width + channel) * conv.taps;
  }

  __device__ __forceinline__ void read_weights(const ConvStep<T>& conv, int64_t channel) {
    bias = present(conv.bias) ? read_any<T>(conv.bias, channel) : T(0);
#pragma unroll
    for (int j = 0; j < kTaps; ++j)
      if (are_few(conv) && j < conv.taps) weight[j] = read_any<T>(conv.weight, channel * conv.taps + j);
  }

  __device__ __forceinline__ void read_state(const ConvStep<T>& conv, int64_t b, int64_t channel) {
    const int64_t state = state_at(conv, b, channel);
#pragma unroll
    for (int j = 1; j < kTaps; ++j)
      if (are_few(conv) && j < conv.taps) seen[j - 1] = read_any<T>(conv.state, state + j);
  }

  // Moves the state on by x, and writes the output.
  __device__ __forceinline__ void push(const ConvStep<T>& conv, int64_t b, int64_t channel, T x) const {
    const int64_t state = state_at(conv, b, channel), last = conv.taps - 1;
    T y = bias;
    if (are_few(conv)) {
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        if (j > last) continue;
        const T now = j == last ? x : seen[j];
        y = fma_of(weight[j], now, y);
        write_any<T>(conv.state, state + j, now);
      }
    } else {
      for (int64_t j = 0; j <= last; ++j) {
        const T now = j == last ? x : read_any<T>(conv.state, state + j + 1);
        y = fma_of(read_any<T>(conv.weight, channel * conv.taps + j), now, y);
        write_any<T>(conv.state, state + j, now);
      }
    }
    conv.u[b * conv.width + channel] = conv.silu ? silu_exact(y) : y;
  }
};

template <class T, class S, int V, int NB>
__global__ void __launch_bounds__(kStepThreads, NB == 1 ? 8 : 4)
    project_in_kernel(ProjectIn<T> p, ConvStep<T> conv, int warps) {
  let_the_next_start();
  const RowPlace place(warps);
  const bool more = place.row >= p.rows, valid = place.row < p.rows + p.more;
  RowPlace in_matrix = place;
  if (more) in_matrix.row -= p.rows;
  RowShare<S, V> share(static_cast<const S*>(more ? p.weight_more.data : p.weight.data), p.columns, in_matrix);
  if (valid) share.fetch();

  const int64_t channel = place.row - conv.from, batch = NB == 1 ? 1 : p.batch;
  const bool writes = valid && place.leads && place.lane < NB;
  const bool convolved = writes && channel >= 0 && channel < conv.width;
  Taps<T> taps;
  T bias = T(0);
  if (convolved) taps.read_weights(conv, channel);
  if (writes) {
    const nvsubq_tensor& biases = more ? p.bias_more : p.bias;
    if (present(biases)) bias = read_any<T>(biases, in_matrix.row);
  }
  for (int64_t first = 0; first < batch; first += NB) {
    const int64_t b = first + place.lane;
    const bool mine = writes && b < batch;
    if (mine && convolved) taps.read_state(conv, b, channel);
    T sum[NB] = {};
    if (valid) {
      if (first) share.fetch_again();
      const S* vectors[NB];
      vectors_of<S, NB>(static_cast<const S*>(p.x.data), p.x.stride[0], first, batch, vectors);
      share.multiply(vectors, sum);
    }
    const T x = whole_sum(sum, place) + bias;
    if (mine && convolved)
      taps.push(conv, b, channel, x);
    else if (mine)
      p.to[b * (p.rows + p.more) + place.row] = x;
    if (NB > 1) __syncthreads();
  }
}

}  // namespace

template <class T, class S>
int project_in(const ProjectIn<T>& p, const ConvStep<T>& conv, cudaStream_t stream) {
  const bool fits = rows_are_packs(p.columns, sizeof(S), p.weight.data, p.weight_more.data, p.x.data) &&
                    p.x.stride[0] * int64_t(sizeof(S)) % 16 == 0;
  return for_packs<S>(fits, p.batch, [&](auto v, auto nb) {
    constexpr int V = decltype(v)::value, NB = decltype(nb)::value;
    const int64_t rows = p.rows + p.more;
    const int warps = warps_of_row(rows, p.columns / V);
    return launch("project_in", project_in_kernel<T, S, V, NB>, grid_of_rows(rows, warps),
                  dim3(kStepThreads), 0, stream, p, conv, warps);
  });
}

template int project_in<float, float>(const ProjectIn<float>&, const ConvStep<float>&, cudaStream_t);
template int project_in<float, f16>(const ProjectIn<float>&, const ConvStep<float>&, cudaStream_t);
template int project_in<float, bf16>(const ProjectIn<float>&, const ConvStep<float>&, cudaStream_t);
template int project_in<double, double>(const ProjectIn<double>&, const ConvStep<double>&, cudaStream_t);

}  // namespace nvsubq
