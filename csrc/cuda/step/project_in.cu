// The projection in of a step, with the step of the convolution on some of its rows.
#include "conv.cuh"
#include "product.cuh"

namespace nvsubq {
namespace {

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
  const nvsubq_tensor& biases = more ? p.bias_more : p.bias;
  const bool biased = writes && present(biases);
  Later<T> bias;
  if (convolved) taps.read_weights(conv, channel);
  if (biased) bias.ask(biases, in_matrix.row);
  for (int64_t first = blockIdx.y * NB; first < batch; first += gridDim.y * NB) {
    const int64_t b = first + place.lane;
    const bool mine = writes && b < batch;
    if (mine && convolved) taps.read_state(conv, b, channel);
    T sum[NB] = {};
    if (valid) {
      if (first != blockIdx.y * NB) share.fetch_again();
      const S* vectors[NB];
      vectors_of<S, NB>(static_cast<const S*>(p.x.data), p.x.stride[0], first, batch, vectors);
      share.multiply(vectors, sum);
    }
    T x = whole_sum(sum, place);
    if (biased) x += bias.get(biases);
    if (mine && convolved)
      taps.push(conv, b, channel, x);
    else if (mine)
      p.to[b * (p.rows + p.more) + place.row] = x;
    if (NB > 1) __syncthreads();
  }
}

// Rows that have been projected already: a thread has one of one vector.
template <class T, class S>
__global__ void __launch_bounds__(kStepThreads) enter_kernel(ProjectIn<T> p, ConvStep<T> conv) {
  let_the_next_start();
  const int64_t row = int64_t(blockIdx.x) * kStepThreads + threadIdx.x, b = blockIdx.y, channel = row - conv.from;
  if (row >= p.rows + p.more) return;
  const bool more = row >= p.rows;
  const nvsubq_tensor& given = more ? p.x_more : p.x;
  const T x = widen<T>(static_cast<const S*>(given.data)[b * given.stride[0] + (more ? row - p.rows : row)]);
  if (channel < 0 || channel >= conv.width) {
    p.to[b * (p.rows + p.more) + row] = x;
    return;
  }
  Taps<T> taps;
  taps.read_weights(conv, channel);
  taps.read_state(conv, b, channel);
  taps.push(conv, b, channel, x);
}

}  // namespace

template <class T, class S>
int project_in(const ProjectIn<T>& p, const ConvStep<T>& conv, cudaStream_t stream) {
  if (!present(p.weight)) {
    const dim3 grid(unsigned(ceil_div(p.rows + p.more, kStepThreads)), unsigned(p.batch));
    return launch("project_in", enter_kernel<T, S>, grid, dim3(kStepThreads), 0, stream, p, conv);
  }
  const bool fits = rows_are_packs(p.columns, sizeof(S), p.weight.data, p.weight_more.data, p.x.data) &&
                    p.x.stride[0] * int64_t(sizeof(S)) % 16 == 0;
  return for_packs<S>(fits, p.batch, [&](auto v, auto nb) {
    constexpr int V = decltype(v)::value, NB = decltype(nb)::value;
    const int64_t rows = p.rows + p.more;
    const int warps = warps_of_row(rows, p.columns / V);
    return launch("project_in", project_in_kernel<T, S, V, NB>, grid_of_rows(rows, warps, ceil_div(p.batch, NB)),
                  dim3(kStepThreads), 0, stream, p, conv, warps);
  });
}

template int project_in<float, float>(const ProjectIn<float>&, const ConvStep<float>&, cudaStream_t);
template int project_in<float, f16>(const ProjectIn<float>&, const ConvStep<float>&, cudaStream_t);
template int project_in<float, bf16>(const ProjectIn<float>&, const ConvStep<float>&, cudaStream_t);
template int project_in<double, double>(const ProjectIn<double>&, const ConvStep<double>&, cudaStream_t);

}  // namespace nvsubq
