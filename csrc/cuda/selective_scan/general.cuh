// `selective_scan`, the kernels that serve every call: several lanes share the states of a channel.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_GENERAL_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_GENERAL_CUH

#include "common.cuh"
#include "numbers.cuh"

namespace nvsubq::selective {

constexpr int kThreads = 128;

template <class T>
__device__ __forceinline__ T softplus_of(T x) {
  return x > T(20) ? x : log1p(exp(x));
}
template <class T>
__device__ __forceinline__ T sigmoid_of(T x) {
  return T(1) / (T(1) + exp(-x));
}

template <class T, bool CX>
__device__ __forceinline__ Number<T, CX> read_number(const nvsubq_tensor& t, int64_t offset) {
  if constexpr (CX) {
    if (is_complex(t)) return {read_any<T>(t, 2 * offset), read_any<T>(t, 2 * offset + 1)};
    return {read_any<T>(t, offset), T(0)};
  } else {
    return read_any<T>(t, offset);
  }
}
template <class T, bool CX>
__device__ __forceinline__ void write_number(const nvsubq_tensor& t, int64_t offset, Number<T, CX> x) {
  constexpr int parts = CX ? 2 : 1;
  for (int i = 0; i < parts; ++i) write_any<T>(t, offset * parts + i, part(x, i));
}
template <class T, bool CX>
__device__ __forceinline__ void put_number(T* to, Number<T, CX> x) {
  to[0] = part(x, 0);
  if constexpr (CX) to[1] = part(x, 1);
}
template <class T, bool CX>
__device__ __forceinline__ Number<T, CX> get_number(const T* from) {
  if constexpr (CX)
    return {from[0], from[1]};
  else
    return from[0];
}

// A lane's place: channel `channel` of a row, and of its states those at `lane`, `lane` + `lanes`, ...
struct Place {
  int64_t row, group, chunk, channel;
  int lane, lanes;
  bool there;  // false: beyond the last channel
};

// What a channel's step reads.
template <class T>
struct Step {
  T u, raw, d, da, w;
};

template <class T>
struct Channel {
  T bias = 0, rate = 0, skip = 0;

  __device__ __forceinline__ Channel(const Selective& a, int64_t channel) {
    if (has(a.delta_bias)) bias = read_any<T>(a.delta_bias, channel * a.delta_bias.stride[0]);
    if (has(a.timesteps)) rate = read_any<T>(a.delta_a, channel * a.delta_a.stride[0]);
    if (has(a.D)) skip = read_any<T>(a.D, channel * a.D.stride[0]);
  }
  __device__ __forceinline__ Step<T> read(const Selective& a, const Place& p, int64_t cell) const {
    Step<T> s;
    s.u = read_any<T>(a.u, at(a.u, p.row, cell) + p.channel);
    s.raw = read_any<T>(a.delta, at(a.delta, p.row, cell) + p.channel) + bias;
    s.d = a.flags & NVSUBQ_SOFTPLUS ? softplus_of(s.raw) : s.raw;
    s.w = scales_input(a.discretization) ? s.d * s.u : s.u;
    s.da = s.d;
    if (has(a.timesteps))
      s.da = rate * read_any<T>(a.timesteps, at(a.timesteps, p.row, cell));
    else if (has(a.delta_a))
      s.da = read_any<T>(a.delta_a, at(a.delta_a, p.row, cell) + p.channel);
    return s;
  }
};

// The coefficients of one state and step. The decay is without the gate; `scale` is the input's beside w, `by_d` the
// slope of d times it in d, `by_a` its slope in A.
template <class T, bool CX>
struct Coefficients {
  using Num = Number<T, CX>;
  Num decay, scale, by_d, by_a;

  __device__ __forceinline__ Coefficients(int64_t kind, const Step<T>& s, bool same, Num A) {
    const Num one = real_number<T, CX>(T(1));
    decay = scale = by_d = by_a = one;
    if (kind == NVSUBQ_MAMBA || kind == NVSUBQ_DIRAC) {
      decay = exp_of(s.da, A);
    } else if (kind == NVSUBQ_ZOH) {
      Num slope;
      by_d = exp_of(s.d, A);
      expm1_over<T, CX>(A * s.d, by_d, &scale, &slope);
      by_a = slope * s.d;
      decay = same ? by_d : exp_of(s.da, A);
    } else if (kind == NVSUBQ_BILINEAR) {
      scale = inverse(one - A * (s.d * T(0.5)));
      by_d = scale * scale;
      by_a = by_d * (s.d * T(0.5));
      const Num half = A * (s.da * T(0.5));
      decay = (one + half) * (same ? scale : inverse(one - half));
    } else {
      decay = A;
    }
  }
};

template <class T, bool CX>
__device__ __forceinline__ Number<T, CX> read_by_state(const nvsubq_tensor& t, const Selective& a, int64_t fixed,
                                                       const Place& p, int64_t cell, int64_t n) {
  return read_number<T, CX>(t, by_state(t, a.flags & fixed, p.row, cell, p.group, p.channel, n));
}

// Sums over the lanes of a channel, the same in each of them.
template <class T>
__device__ __forceinline__ T over_lanes(T x, int lanes) {
  for (int by = 1; by < lanes; by *= 2) x += __shfl_xor_sync(~0u, x, by);
  return x;
}

// Lanes of one channel, and how many states each has at most.
inline int lanes_of(int64_t states) {
  int lanes = 1;
  while (lanes < 32 && lanes < states) lanes *= 2;
  return lanes;
}

}  // namespace nvsubq::selective

#endif
