// `selective_scan`: partial sums of a backward into gradients, one thread for each number, always in the same order.
#include "common.cuh"

namespace nvsubq::selective {
namespace {

constexpr int kThreads = 128;

// Sums over chunks, by cell. `all`: groups of the gradient, 1 or as many as there are.
template <class T>
__global__ void __launch_bounds__(kThreads)
    selective_add_cells(const __grid_constant__ Partials<T> partials, typename Partials<T>::Cells from,
                        const __grid_constant__ nvsubq_tensor to, int64_t all, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t run = partials.states * from.parts, each = partials.chunks / all;
  const int64_t within = i % run, group = i / run % all, cell = i / run / all % partials.length;
  const int64_t row = i / run / all / partials.length;
  const T* first = partials.of(from, row, cell, group * each, 0) + within;
  T sum = 0;
  for (int64_t chunk = 0; chunk < each; ++chunk) sum += first[chunk * run];
  const int64_t n = within / from.parts;
  const int64_t offset = row * to.stride[0] + cell * to.stride[1] + group * to.stride[2] + n * to.stride[3];
  write_any<T>(to, offset * from.parts + within % from.parts, sum);
}

// Sums over pieces of walks, by channel; a tensor [D] counts as one state. A slice of threads has every eighth piece.
constexpr int kColumns = 32, kSlices = 8;
template <class T>
__global__ void __launch_bounds__(kColumns* kSlices)
    selective_add_channels(const T* __restrict__ from, const __grid_constant__ nvsubq_tensor to, int64_t pieces,
                           int64_t states, int64_t parts, int64_t count) {
  __shared__ T slices[kSlices][kColumns];
  const int64_t i = int64_t(blockIdx.x) * kColumns + threadIdx.x;
  T sum = 0;
  if (i < count) {
#pragma unroll 4
    for (int64_t piece = threadIdx.y; piece < pieces; piece += kSlices) sum += from[piece * count + i];
  }
  slices[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y || i >= count) return;
#pragma unroll
  for (int slice = 1; slice < kSlices; ++slice) sum += slices[slice][threadIdx.x];
  const int64_t channel = i / (states * parts), n = i / parts % states;
  write_any<T>(to, (channel * to.stride[0] + n * to.stride[1]) * parts + i % parts, sum);
}

template <class T>
int add_cells(const Partials<T>& partials, const typename Partials<T>::Cells& from, const nvsubq_tensor& to,
              int64_t batch, int64_t groups, cudaStream_t stream) {
  if (!from.parts || !has(to)) return NVSUBQ_OK;
  const int64_t all = to.stride[2] == 0 ? 1 : groups;
  const int64_t count = batch * partials.length * all * partials.states * from.parts;
  const dim3 grid(unsigned(ceil_div(count, kThreads)));
  return launch("selective_scan sums by cell", selective_add_cells<T>, grid, kThreads, 0, stream, partials, from, to,
                all, count);
}

template <class T>
int add_channels(const Partials<T>& partials, const T* from, const nvsubq_tensor& to, int64_t states, int64_t parts,
                 cudaStream_t stream) {
  if (!parts || !has(to)) return NVSUBQ_OK;
  const int64_t count = partials.width * states * parts;
  return launch("selective_scan sums by channel", selective_add_channels<T>, dim3(unsigned(ceil_div(count, kColumns))),
                dim3(kColumns, kSlices), 0, stream, from, to, partials.pieces, states, parts, count);
}

}  // namespace

template <class T>
int add_up(const Selective& a, const Partials<T>& p, int64_t groups, cudaStream_t stream) {
  const struct {
    const typename Partials<T>::Cells& from;
    const nvsubq_tensor& to;
  } cells[] = {{p.B, a.d_B}, {p.C, a.d_C}, {p.gate, a.d_decay_gate}};
  for (const auto& sum : cells)
    if (const int status = add_cells(p, sum.from, sum.to, a.batch, groups, stream)) return status;
  const struct {
    const T* from;
    const nvsubq_tensor& to;
    int64_t states, parts;
  } channels[] = {{p.A.sums, a.d_A, p.states, p.A.parts},
                  {p.fixed_B.sums, a.d_B, p.states, p.fixed_B.parts},
                  {p.fixed_C.sums, a.d_C, p.states, p.fixed_C.parts},
                  {p.fixed_gate.sums, a.d_decay_gate, p.states, p.fixed_gate.parts},
                  {p.D, a.d_D, 1, 1},
                  {p.bias, a.d_delta_bias, 1, 1},
                  {p.step, a.d_delta_a, 1, has(a.timesteps) ? 1 : 0}};
  for (const auto& sum : channels)
    if (const int status = add_channels(p, sum.from, sum.to, sum.states, sum.parts, stream)) return status;
  if (!has(a.timesteps)) return NVSUBQ_OK;
  Partials<T> times = p;  // [B, L]: as of one state
  times.states = 1;
  nvsubq_tensor to = a.d_timesteps;
  to.stride[2] = to.stride[3] = 0;
  return add_cells(times, typename Partials<T>::Cells{p.times, 1}, to, a.batch, groups, stream);
}

template int add_up<float>(const Selective&, const Partials<float>&, int64_t, cudaStream_t);
template int add_up<double>(const Selective&, const Partials<double>&, int64_t, cudaStream_t);

}  // namespace nvsubq::selective
