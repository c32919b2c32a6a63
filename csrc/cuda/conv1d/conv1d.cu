// `causal_conv1d`: which kernels serve a call, the window that it leaves behind, and the sums over parts of the walk.
#include "../entry.h"
#include "common.cuh"

namespace nvsubq {
namespace {

// One thread follows the window of a channel from its oldest input on: it may lie in the initial state's memory.
template <class T>
__global__ void __launch_bounds__(128) conv1d_final(const __grid_constant__ Conv a, const __grid_constant__ Walk walk) {
  const int64_t per_row = ceil_div(a.width, blockDim.x), row = blockIdx.x / per_row;
  const int64_t channel = blockIdx.x % per_row * blockDim.x + threadIdx.x;
  if (channel >= a.width) return;
  const Steps steps = walk.steps(row, block_of(a, channel));
  for (int64_t i = 0; i < a.state_width; ++i) {
    const int64_t step = steps.count - a.state_width + i;
    const T x = in_final(steps, step) ? input<T>(a, steps, row, channel, step) : T(0);
    write_any<T>(a.final_state, at(a.final_state, row, channel, i), x);
  }
}

// d_weight and d_bias from the sums of the parts, always in the same order.
constexpr int kColumns = 32, kSlices = 32;
template <class T>
__global__ void __launch_bounds__(kColumns* kSlices)
    conv1d_add(const __grid_constant__ Conv a, const T* __restrict__ sums, int64_t parts) {
  __shared__ T slices[kSlices][kColumns + 1];
  const int64_t columns = (a.taps + 1) * a.width, column = int64_t(blockIdx.x) * kColumns + threadIdx.x;
  T sum = 0;
  if (column < columns)
    for (int64_t i = threadIdx.y; i < parts; i += kSlices) sum += sums[i * columns + column];
  slices[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y || column >= columns) return;
  for (int i = 1; i < kSlices; ++i) sum += slices[i][threadIdx.x];
  const int64_t tap = column / a.width, channel = column % a.width;
  if (tap < a.taps)
    write_any<T>(a.d_weight, at(a.d_weight, channel, tap), sum);
  else if (present(a.d_bias))
    write_any<T>(a.d_bias, channel * a.d_bias.stride[0], sum);
}

template <class T>
int write_final(const Conv& a, cudaStream_t stream) {
  const dim3 grid(unsigned(a.batch * ceil_div(a.width, 128)));
  return launch("conv1d final state", conv1d_final<T>, grid, 128, 0, stream, a, Walk(a));
}

template <class T>
int add_parts(const Conv& a, const T* sums, int64_t parts, cudaStream_t stream) {
  const dim3 grid(unsigned(ceil_div((a.taps + 1) * a.width, kColumns)));
  return launch("conv1d sums", conv1d_add<T>, grid, dim3(kColumns, kSlices), 0, stream, a, sums, parts);
}

// The backward's memory: the sums, and what the general kernels keep.
template <class T>
struct Memory {
  T *sums, *kept;
  int64_t bytes;

  Memory(const Conv& a, void* memory) {
    Arena arena(memory);
    sums = arena.take<T>(partials_of(a).parts * (a.taps + 1) * a.width);
    kept = arena.take<T>(is_fast(a) ? 0 : a.batch * a.length * a.width);
    bytes = arena.bytes();
  }
};

bool in_double(const Conv& a) { return a.flags & NVSUBQ_DOUBLE; }

int64_t workspace(const Conv& a) {
  return in_double(a) ? Memory<double>(a, nullptr).bytes : Memory<float>(a, nullptr).bytes;
}

int forward(const Conv& a, cudaStream_t stream) {
  if (const int status = is_fast(a) ? forward_fast(a, stream) : forward_general(a, stream)) return status;
  if (!present(a.final_state) || !a.state_width) return NVSUBQ_OK;
  return in_double(a) ? write_final<double>(a, stream) : write_final<float>(a, stream);
}

template <class T>
int backward_in(const Conv& a, cudaStream_t stream) {
  const Memory<T> memory(a, a.workspace);
  const Partials partials = partials_of(a);
  const int status = is_fast(a) ? backward_fast(a, partials, memory.sums, stream)
                                : backward_general(a, partials, memory.sums, memory.kept, stream);
  return status ? status : add_parts<T>(a, memory.sums, partials.parts, stream);
}

int backward(const Conv& a, cudaStream_t stream) {
  return in_double(a) ? backward_in<double>(a, stream) : backward_in<float>(a, stream);
}

}  // namespace
}  // namespace nvsubq

NVSUBQ_DECLARE(conv1d, nvsubq::Conv)
const nvsubq::Op<nvsubq::Conv> nvsubq::cuda_conv1d = {workspace, nothing_saved<Conv>, forward, backward};
