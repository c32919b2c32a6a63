// A projection of what a step has in its workspace.
#include "functions.cuh"
#include "product.cuh"
#include "step.h"

namespace nvsubq {
namespace {

// Of NB vectors from `first` on, one over the root of the mean square; all threads come here.
template <class T, int NB>
__device__ __forceinline__ void find_scales(const Project<T>& p, int64_t first, T (&scales)[NB]) {
  for (int b = threadIdx.x / 32; b < NB && first + b < p.batch; b += kStepWarps) {
    T sum = T(0);
    for (int64_t i = threadIdx.x % 32; i < p.parts; i += 32) sum += p.squares[(first + b) * p.parts + i];
    sum = sum_over<32>(sum);
    if (threadIdx.x % 32 == 0) scales[b] = T(1) / sqrt(sum / T(p.columns) + p.norm_eps);
  }
  __syncthreads();
}

template <class T, class S, int V, int NB>
__global__ void __launch_bounds__(kStepThreads, NB == 1 ? 8 : 4) project_kernel(Project<T> p, int warps) {
  if (p.to) let_the_next_start();  // what follows the last kernel of a step is no part of it
  const RowPlace place(warps);
  const bool valid = place.row < p.rows;
  RowShare<S, V> share(static_cast<const S*>(p.weight.data), p.columns, place);
  if (valid) share.fetch();
  const int64_t batch = NB == 1 ? 1 : p.batch;
  const bool writes = valid && place.leads && place.lane < NB;
  T bias = T(0), skip = T(0);
  if (writes && present(p.bias)) bias = read_any<T>(p.bias, place.row);
  if (writes && present(p.skip)) skip = read_any<T>(p.skip, place.row);
  wait_for_the_last();
  __shared__ T scales[NB];
  for (int64_t first = blockIdx.y * NB; first < batch; first += gridDim.y * NB) {
    const int64_t b = first + place.lane;
    T sum[NB] = {};
    if (valid) {
      if (first != blockIdx.y * NB) share.fetch_again();
      const T* vectors[NB];
      vectors_of<T, NB>(p.from, p.columns, first, batch, vectors);
      share.multiply(vectors, sum);
    }
    T total = whole_sum(sum, place);
    if (p.squares) find_scales(p, first, scales);
    if (writes && b < batch) {
      if (p.squares) total *= scales[place.lane];
      total += bias;
      if (present(p.skip))
        total = fma_of(skip, widen<T>(static_cast<const S*>(p.x.data)[b * p.x.stride[0] + place.row]), total);
      if (p.to)
        p.to[b * p.rows + place.row] = total;
      else
        static_cast<S*>(p.y.data)[b * p.y.stride[0] + place.row] = narrow<S>(total);
    }
    if (NB > 1) __syncthreads();
  }
}

template <class T, class S>
__global__ void __launch_bounds__(kStepThreads) leave_kernel(Project<T> p) {
  const int64_t c = int64_t(blockIdx.x) * kStepThreads + threadIdx.x, b = blockIdx.y;
  wait_for_the_last();
  if (c < p.columns) static_cast<S*>(p.y.data)[b * p.y.stride[0] + c] = narrow<S>(p.from[b * p.columns + c]);
}

}  // namespace

template <class T, class S>
int project(const Project<T>& p, cudaStream_t stream) {
  if (!present(p.weight)) {
    const dim3 grid(unsigned(ceil_div(p.columns, kStepThreads)), unsigned(p.batch));
    return launch_next("project", leave_kernel<T, S>, grid, dim3(kStepThreads), stream, p);
  }
  return for_packs<S>(rows_are_packs(p.columns, sizeof(S), p.weight.data), p.batch, [&](auto v, auto nb) {
    constexpr int V = decltype(v)::value, NB = decltype(nb)::value;
    const int warps = warps_of_row(p.rows, p.columns / V);
    return launch_next("project", project_kernel<T, S, V, NB>, grid_of_rows(p.rows, warps, ceil_div(p.batch, NB)),
                       dim3(kStepThreads), stream, p, warps);
  });
}

template int project<float, float>(const Project<float>&, cudaStream_t);
template int project<float, f16>(const Project<float>&, cudaStream_t);
template int project<float, bf16>(const Project<float>&, cudaStream_t);
template int project<double, double>(const Project<double>&, cudaStream_t);

}  // namespace nvsubq
