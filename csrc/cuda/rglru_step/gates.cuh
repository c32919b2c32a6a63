// One token of the RG-LRU between the projections: both gates' products, the recurrence, the GELU gate.
#ifndef NVSUBQ_CUDA_RGLRU_STEP_GATES_CUH
#define NVSUBQ_CUDA_RGLRU_STEP_GATES_CUH

#include "../step/functions.cuh"
#include "../step/product.cuh"

namespace nvsubq::rglru {

template <class T>
struct Gates {
  nvsubq_tensor r_weight, r_bias, i_weight, i_bias, a_log, state;
  int64_t batch, width;
  T c;
  const T *u, *in;  // [B][D], [B][2D], whose second half is the gate's logits
  T* y;             // [B][D]
};

__device__ __forceinline__ float below(float x) { return normcdff(x); }
__device__ __forceinline__ double below(double x) { return normcdf(x); }

template <class T, class S, int V, int NB>
__global__ void __launch_bounds__(kStepThreads) gates_kernel(Gates<T> a, int warps) {
  let_the_next_start();
  const RowPlace place(warps);
  const int64_t channel = place.row;
  const bool valid = channel < a.width;
  RowShare<S, V> r_share(static_cast<const S*>(a.r_weight.data), a.width, place);
  RowShare<S, V> i_share(static_cast<const S*>(a.i_weight.data), a.width, place);
  if (valid) {
    r_share.fetch();
    i_share.fetch();
  }
  const int64_t batch = NB == 1 ? 1 : a.batch;
  const bool writes = valid && place.leads && place.lane < NB;
  T log_a = T(0), r_bias = T(0), i_bias = T(0);
  if (writes) {
    log_a = -a.c * softplus(-read_any<T>(a.a_log, channel));
    r_bias = read_any<T>(a.r_bias, channel);
    i_bias = read_any<T>(a.i_bias, channel);
  }
  wait_for_the_last();
  for (int64_t first = blockIdx.y * NB; first < batch; first += gridDim.y * NB) {
    const int64_t b = first + place.lane;
    T sums[2 * NB] = {};
    if (valid) {
      if (first != blockIdx.y * NB) r_share.fetch_again(), i_share.fetch_again();
      const T* vectors[NB];
      vectors_of<T, NB>(a.u, a.width, first, batch, vectors);
      T r[NB] = {}, i[NB] = {};
      r_share.multiply(vectors, r);
      i_share.multiply(vectors, i);
#pragma unroll
      for (int k = 0; k < NB; ++k) sums[k] = r[k], sums[NB + k] = i[k];
    }
    const T r_sum = whole_sum(sums, place), i_sum = __shfl_down_sync(kAllLanes, r_sum, NB);
    if (writes && b < batch) {
      const int64_t at = b * a.width + channel;
      T* state = static_cast<T*>(a.state.data) + at;
      const T r = sigmoid_exact(r_sum + r_bias), i = sigmoid_exact(i_sum + i_bias), exponent = r * log_a;
      const T rest = -expm1(T(2) * exponent);  // 1 - a^2 with all its digits where a is close to 1
      const T gate = a.in[at + (b + 1) * a.width];
      const T now = fused(exp(exponent), *state, sqrt(rest > T(0) ? rest : T(0)) * i * a.u[at]);
      *state = now;
      a.y[at] = now * (gate * below(gate));
    }
    if (NB > 1) __syncthreads();
  }
}

}  // namespace nvsubq::rglru

#endif
