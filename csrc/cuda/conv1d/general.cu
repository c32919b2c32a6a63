// Any number of taps, any dilation, tensors of any dtypes: a thread per channel and step, inputs read for each tap.
#include "common.cuh"

namespace nvsubq {
namespace {

constexpr int kThreads = 256;

// Steps of rows and channels of a call, channels fastest, one for each thread.
struct Element {
  int64_t row, step, channel;
  bool there;

  __device__ __forceinline__ explicit Element(const Conv& a, int64_t columns, int64_t width) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    there = i < a.batch * columns * width;
    channel = i % width;
    step = i / width % columns;
    row = i / width / columns;
  }
};
inline dim3 grid_of(int64_t elements) { return dim3(unsigned(ceil_div(elements, kThreads))); }

template <class T>
__device__ T sum_at(const Conv& a, const Steps& steps, int64_t row, int64_t channel, int64_t step) {
  T y = present(a.bias) ? read_any<T>(a.bias, channel * a.bias.stride[0]) : T(0);
  for (int64_t j = 0; j < a.taps; ++j) {
    const int64_t past = step - (a.taps - 1 - j) * a.dilation;
    if (!steps.together(step, past)) continue;
    y = fma(read_any<T>(a.weight, at(a.weight, channel, j)), input<T>(a, steps, row, channel, past), y);
  }
  return y;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    general_forward(const __grid_constant__ Conv a, const __grid_constant__ Walk walk) {
  const Element e(a, a.length, a.width);
  if (!e.there) return;
  const Steps steps = walk.steps(e.row, block_of(a, e.channel));
  T y = 0;
  if (e.step < steps.count) {
    y = sum_at<T>(a, steps, e.row, e.channel, e.step);
    if (a.flags & NVSUBQ_SILU) y = silu(y);
  }
  write_any<T>(a.y, at(a.y, e.row, steps.cell(e.step), e.channel), y);
}

// The cotangents before the activation, by steps.
template <class T>
__global__ void __launch_bounds__(kThreads)
    general_cotangents(const __grid_constant__ Conv a, const __grid_constant__ Walk walk, T* __restrict__ kept) {
  const Element e(a, a.length, a.width);
  if (!e.there) return;
  const Steps steps = walk.steps(e.row, block_of(a, e.channel));
  T g = 0;
  if (e.step < steps.count) {
    g = read_any<T>(a.d_y, at(a.d_y, e.row, steps.cell(e.step), e.channel));
    if (a.flags & NVSUBQ_SILU) g *= silu_slope(sum_at<T>(a, steps, e.row, e.channel, e.step));
  }
  kept[(e.row * a.length + e.step) * a.width + e.channel] = g;
}

template <class T>
__device__ T gradient(const Conv& a, const Steps& steps, const T* kept, int64_t row, int64_t channel, int64_t step) {
  T sum = from_final<T>(a, steps, row, channel, step);
  for (int64_t j = 0; j < a.taps; ++j) {
    const int64_t later = step + (a.taps - 1 - j) * a.dilation;
    if (later < 0 || later >= steps.count || !steps.together(step, later)) continue;
    sum = fma(read_any<T>(a.weight, at(a.weight, channel, j)), kept[(row * a.length + later) * a.width + channel], sum);
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    general_inputs(const __grid_constant__ Conv a, const __grid_constant__ Walk walk, const T* __restrict__ kept) {
  const Element e(a, a.length, a.width);
  if (!e.there) return;
  const Steps steps = walk.steps(e.row, block_of(a, e.channel));
  const T sum = e.step < steps.count ? gradient(a, steps, kept, e.row, e.channel, e.step) : T(0);
  write_any<T>(a.d_x, at(a.d_x, e.row, steps.cell(e.step), e.channel), sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    general_state(const __grid_constant__ Conv a, const __grid_constant__ Walk walk, const T* __restrict__ kept) {
  const Element e(a, a.state_width, a.width);
  if (!e.there) return;
  const Steps steps = walk.steps(e.row, block_of(a, e.channel));
  write_any<T>(a.d_initial_state, at(a.d_initial_state, e.row, e.channel, e.step),
               gradient(a, steps, kept, e.row, e.channel, e.step - a.state_width));
}

// One tap (or the bias, after them) and channel of one part of the walk.
template <class T>
__global__ void __launch_bounds__(kThreads)
    general_sums(const __grid_constant__ Conv a, const __grid_constant__ Walk walk, const T* __restrict__ kept,
                 T* __restrict__ sums, int64_t part_steps, int64_t chunks) {
  const int64_t columns = (a.taps + 1) * a.width, i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t part = i / columns, tap = i % columns / a.width, channel = i % a.width, row = part / chunks;
  if (row >= a.batch) return;
  const Steps steps = walk.steps(row, block_of(a, channel));
  const int64_t begin = part % chunks * part_steps, end = min(begin + part_steps, steps.count);
  const int64_t lag = (a.taps - 1 - tap) * a.dilation;
  T sum = 0;
  for (int64_t k = begin; k < end; ++k) {
    const T g = kept[(row * a.length + k) * a.width + channel];
    if (tap == a.taps)
      sum += g;
    else if (steps.together(k, k - lag))
      sum = fma(g, input<T>(a, steps, row, channel, k - lag), sum);
  }
  sums[i] = sum;
}

template <class T>
int forward_in(const Conv& a, cudaStream_t stream) {
  const dim3 grid = grid_of(a.batch * a.length * a.width);
  return launch("conv1d forward", general_forward<T>, grid, kThreads, 0, stream, a, Walk(a));
}

template <class T>
int backward_in(const Conv& a, const Partials& p, T* sums, T* kept, cudaStream_t stream) {
  const Walk walk(a);
  const dim3 cells = grid_of(a.batch * a.length * a.width), states = grid_of(a.batch * a.state_width * a.width);
  int status = launch("conv1d cotangents", general_cotangents<T>, cells, kThreads, 0, stream, a, walk, kept);
  if (!status) status = launch("conv1d inputs", general_inputs<T>, cells, kThreads, 0, stream, a, walk, kept);
  if (!status && present(a.d_initial_state))
    status = launch("conv1d state", general_state<T>, states, kThreads, 0, stream, a, walk, kept);
  const dim3 parts = grid_of(p.parts * (a.taps + 1) * a.width);
  if (!status)
    status = launch("conv1d parts", general_sums<T>, parts, kThreads, 0, stream, a, walk, kept, sums, p.steps,
                    p.chunks);
  return status;
}

}  // namespace

int forward_general(const Conv& a, cudaStream_t stream) {
  return a.flags & NVSUBQ_DOUBLE ? forward_in<double>(a, stream) : forward_in<float>(a, stream);
}

int backward_general(const Conv& a, const Partials& p, void* sums, void* kept, cudaStream_t stream) {
  if (a.flags & NVSUBQ_DOUBLE)
    return backward_in<double>(a, p, static_cast<double*>(sums), static_cast<double*>(kept), stream);
  return backward_in<float>(a, p, static_cast<float*>(sums), static_cast<float*>(kept), stream);
}

}  // namespace nvsubq
