// `selective_scan`: partial sums of a backward into gradients, always in the same order, all by one kernel: small calls
// would else wait longer for launches than for sums.
#include "common.cuh"

namespace nvsubq::selective {
namespace {

// Blocks of sums over pieces have kColumns numbers, each added up by kSlices threads; in others a thread has one number,
// or as many as are 16 bytes.
constexpr int kColumns = 32, kSlices = 8, kThreads = kColumns * kSlices;

// Partial sums of one gradient.
template <class T>
struct Sum {
  const T* from;
  nvsubq_tensor to;
  bool by_cell;  // over chunks of channels; else over pieces of walks
  int64_t states, parts, terms, groups, count;  // terms of each number; numbers
  int64_t at_once = 1, end = 0;                 // of a thread; blocks up to this one's last
};
template <class T>
constexpr int kAtOnce = 16 / int(sizeof(T));
template <class T>
struct Sums {
  static constexpr int kMost = 11;
  Sum<T> of[kMost];
  int64_t length;
  int count = 0;

  void add(Sum<T> sum) {
    if (sum.by_cell && sum.states * sum.parts % kAtOnce<T> == 0) sum.at_once = kAtOnce<T>;
    const int64_t blocks = ceil_div(sum.count, sum.by_cell ? kThreads * sum.at_once : kColumns);
    sum.end = (count ? of[count - 1].end : 0) + blocks;
    if (blocks) of[count++] = sum;
  }
};

// V neighbouring numbers, of which 16 bytes are read at once.
template <int V, class T>
__device__ __forceinline__ void add_chunks(const Sum<T>& sum, int64_t block, int64_t length) {
  const int64_t i = (block * kThreads + threadIdx.x) * V;
  if (i >= sum.count) return;
  const int64_t run = sum.states * sum.parts, at = i / run, within = i - at * run;
  const T* const first = sum.from + at * sum.terms * run + within;
  T total[V] = {};
#pragma unroll 4
  for (int64_t chunk = 0; chunk < sum.terms; ++chunk) {
    const auto term = load_pack<T, V>(first + chunk * run);
#pragma unroll
    for (int v = 0; v < V; ++v) total[v] += term.lane[v];
  }
  const int64_t line = at / sum.groups, group = at - line * sum.groups, row = line / length, cell = line - row * length;
  const auto& stride = sum.to.stride;
  const int64_t offset = row * stride[0] + cell * stride[1] + group * stride[2];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int n = int(within) + v, parts = int(sum.parts);
    write_any<T>(sum.to, (offset + n / parts * stride[3]) * parts + n % parts, total[v]);
  }
}

// Of a tensor [D, N], or of [D] as of one state.
template <class T>
__device__ __forceinline__ void add_pieces(const Sum<T>& sum, int64_t block, T (&slices)[kSlices][kColumns]) {
  const int column = threadIdx.x % kColumns, slice = threadIdx.x / kColumns;
  const int64_t i = block * kColumns + column;
  T total = 0;
  if (i < sum.count) {
#pragma unroll 4
    for (int64_t piece = slice; piece < sum.terms; piece += kSlices) total += sum.from[piece * sum.count + i];
  }
  slices[slice][column] = total;
  __syncthreads();
  if (slice || i >= sum.count) return;
#pragma unroll
  for (int other = 1; other < kSlices; ++other) total += slices[other][column];
  const int64_t channel = i / (sum.states * sum.parts), n = i / sum.parts % sum.states;
  write_any<T>(sum.to, (channel * sum.to.stride[0] + n * sum.to.stride[1]) * sum.parts + i % sum.parts, total);
}

template <class T>
__global__ void __launch_bounds__(kThreads) selective_add_up(const __grid_constant__ Sums<T> sums) {
  __shared__ T slices[kSlices][kColumns];
  int which = 0;
  while (blockIdx.x >= sums.of[which].end) ++which;
  const Sum<T>& sum = sums.of[which];
  const int64_t block = blockIdx.x - (which ? sums.of[which - 1].end : 0);
  if (sum.by_cell && sum.at_once > 1)
    add_chunks<kAtOnce<T>>(sum, block, sums.length);
  else if (sum.by_cell)
    add_chunks<1>(sum, block, sums.length);
  else
    add_pieces(sum, block, slices);
}

}  // namespace

template <class T>
int add_up(const Selective& a, const Partials<T>& p, int64_t groups, cudaStream_t stream) {
  Sums<T> sums;
  sums.length = p.length;
  const auto cells = [&](const typename Partials<T>::Cells& from, const nvsubq_tensor& to, int64_t states) {
    if (!from.parts || !has(to)) return;
    const int64_t all = to.stride[2] == 0 ? 1 : groups;  // groups of the gradient: 1, or as many as there are
    const int64_t count = a.batch * p.length * all * states * from.parts;
    sums.add({from.sums, to, true, states, from.parts, p.chunks / all, all, count});
  };
  const auto channels = [&](const T* from, const nvsubq_tensor& to, int64_t states, int64_t parts) {
    if (parts && has(to)) sums.add({from, to, false, states, parts, p.pieces, 1, p.width * states * parts});
  };
  cells(p.B, a.d_B, p.states), cells(p.C, a.d_C, p.states), cells(p.gate, a.d_decay_gate, p.states);
  channels(p.A.sums, a.d_A, p.states, p.A.parts);
  channels(p.fixed_B.sums, a.d_B, p.states, p.fixed_B.parts);
  channels(p.fixed_C.sums, a.d_C, p.states, p.fixed_C.parts);
  channels(p.fixed_gate.sums, a.d_decay_gate, p.states, p.fixed_gate.parts);
  channels(p.D, a.d_D, 1, 1), channels(p.bias, a.d_delta_bias, 1, 1);
  if (has(a.timesteps)) {
    channels(p.step, a.d_delta_a, 1, 1);
    nvsubq_tensor to = a.d_timesteps;  // [B, L]
    to.stride[2] = to.stride[3] = 0;
    cells({p.times, 1}, to, 1);
  }
  if (!sums.count) return NVSUBQ_OK;
  const dim3 grid(unsigned(sums.of[sums.count - 1].end));
  return launch("selective_scan sums", selective_add_up<T>, grid, kThreads, 0, stream, sums);
}

template int add_up<float>(const Selective&, const Partials<float>&, int64_t, cudaStream_t);
template int add_up<double>(const Selective&, const Partials<double>&, int64_t, cudaStream_t);

}  // namespace nvsubq::selective
