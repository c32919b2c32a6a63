// One token of S5 up to its states: B u, the discretization, the recurrence.
#ifndef NVSUBQ_CUDA_S5_STEP_STATES_CUH
#define NVSUBQ_CUDA_S5_STEP_STATES_CUH

#include "../step/functions.cuh"
#include "../step/product.cuh"

namespace nvsubq::s5 {

// The discretization is done in fp64: phases reach hundreds of radians.
using Complex = Cx<double>;

template <class T>
struct States {
  nvsubq_tensor u, A, B, log_dt, timesteps, state;
  int64_t batch, width, states, discretization;
  double step_rescale;
  T kappa;
  T* read;  // [B][2N], kappa (Re s, -Im s)
};

__device__ __forceinline__ Complex decay_of(double dt, Complex rate, int64_t discretization) {
  if (discretization != NVSUBQ_BILINEAR) return power_of(dt, rate);
  const Complex half = rate * (0.5 * dt), one = {1.0, 0.0};
  return (one + half) * inverse(one - half);
}

// `decay` is that of dt alone.
__device__ __forceinline__ Complex gamma_of(double dt, Complex rate, Complex decay, int64_t discretization) {
  const Complex z = rate * dt, one = {1.0, 0.0};
  if (discretization == NVSUBQ_DIRAC) return one;
  if (discretization == NVSUBQ_BILINEAR) return inverse(one - z * 0.5) * dt;
  return expm1_over<double, Complex>(z, decay).value * dt;
}

// Adds the products of a thread's share of a row of pairs (Re B, Im B) with real vectors: Re to the first NB sums, Im
// to the others.
template <class T, class S, int V, int NB>
__device__ __forceinline__ void multiply_pairs(RowShare<S, V>& share, const S* const (&vectors)[NB],
                                               T (&sums)[2 * NB]) {
  for (int from = 0; from < share.packs; from += kHeld * share.threads) {
    if (from) share.fetch(from);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int p = from + share.at + i * share.threads;
      if (p >= share.packs) continue;
      keep_narrow(share.held[i]);
#pragma unroll
      for (int b = 0; b < NB; ++b) {
        const S* u = vectors[b] + int64_t(p) * V / 2;
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const T weight = widen<T>(share.held[i].lane[j]), x = widen<T>(u[j / 2]);
          const bool imaginary = V == 1 ? p % 2 : j % 2;
          if (imaginary)
            sums[NB + b] = fma_of(weight, x, sums[NB + b]);
          else
            sums[b] = fma_of(weight, x, sums[b]);
        }
      }
    }
  }
}

template <class T, class S, int V, int NB>
__global__ void __launch_bounds__(kStepThreads) states_kernel(States<T> a, int warps) {
  let_the_next_start();
  const RowPlace place(warps);
  const int64_t n = place.row;
  const bool valid = n < a.states;
  RowShare<S, V> share(static_cast<const S*>(a.B.data), 2 * a.width, place);
  if (valid) share.fetch();
  const int64_t batch = NB == 1 ? 1 : a.batch;
  const bool writes = valid && place.leads && place.lane < NB;
  Complex rate = {}, decay = {}, gamma = {};
  double dt = 0.0;
  if (writes) {
    rate = {read_any<double>(a.A, 2 * n), read_any<double>(a.A, 2 * n + 1)};
    dt = exp(read_any<double>(a.log_dt, n)) * a.step_rescale;
    decay = decay_of(dt, rate, a.discretization);
    gamma = gamma_of(dt, rate, decay, a.discretization);
  }
  for (int64_t first = blockIdx.y * NB; first < batch; first += gridDim.y * NB) {
    const int64_t b = first + place.lane;
    const bool mine = writes && b < batch;
    if (mine && present(a.timesteps))
      decay = decay_of(dt * read_any<double>(a.timesteps, b * a.timesteps.stride[0]), rate, a.discretization);
    T sums[2 * NB] = {};
    if (valid) {
      if (first != blockIdx.y * NB) share.fetch_again();
      const S* vectors[NB];
      vectors_of<S, NB>(static_cast<const S*>(a.u.data), a.u.stride[0], first, batch, vectors);
      multiply_pairs<T, S, V, NB>(share, vectors, sums);
    }
    const T in_re = whole_sum(sums, place), in_im = __shfl_down_sync(kAllLanes, in_re, NB);
    if (mine) {
      Cx<T>* state = static_cast<Cx<T>*>(a.state.data) + b * a.states + n;
      const Cx<T> keep = {T(decay.re), T(decay.im)}, factor = {T(gamma.re), T(gamma.im)}, in = {in_re, in_im};
      const Cx<T> now = fused(keep, *state, factor * in);
      *state = now;
      T* read = a.read + (b * a.states + n) * 2;
      read[0] = a.kappa * now.re;
      read[1] = -a.kappa * now.im;
    }
    if (NB > 1) __syncthreads();
  }
}

}  // namespace nvsubq::s5

#endif
