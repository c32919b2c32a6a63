// `linear_scan`: how the decay and the factor of the input are made, and their gradients.
#ifndef NVSUBQ_CUDA_LINEAR_SCAN_DECAY_CUH
#define NVSUBQ_CUDA_LINEAR_SCAN_DECAY_CUH

#include "../chain.cuh"

namespace nvsubq {

using Linear = nvsubq_linear_scan_args;

// Where the decay comes from: `a` [D], `a` [B, L, D], or a rate [D] and the time of a cell.
enum Mode { kFixed, kVarying, kTimed };

// Steps of a chunk, of the forward and of the backward, and chunks of a tile. A forward keeps the states that enter
// the tiles of the backward.
template <class T, bool CX>
struct LinearSizes {
  static constexpr int words = int(sizeof(Number<T, CX>) / 4), warps = 8, steps = 16 / words;
  static constexpr int warps_back = words == 1 ? 8 : 16, steps_back = 8 / words, tile_back = warps_back * steps_back;
  // Of a multiprocessor at least, so that loads hide behind waiting: what the registers of each mode allow.
  static constexpr int blocks(Mode mode) { return mode != kTimed && words == 1 ? 3 : 1; }
};

// Calls `todo` with the kind of a call as a type.
template <class T, bool CX, Mode MODE>
struct LinearKind {
  using Real = T;
  static constexpr bool complex = CX;
  static constexpr Mode mode = MODE;
};
template <class T, bool CX, class F>
auto for_mode(const Linear& a, F todo) {
  if (present(a.dt)) return todo(LinearKind<T, CX, kTimed>());
  return a.flags & NVSUBQ_FIXED_A ? todo(LinearKind<T, CX, kFixed>()) : todo(LinearKind<T, CX, kVarying>());
}
template <class F>
auto for_linear(const Linear& a, F todo) {
  const bool complex = (a.a.flags | a.b.flags) & NVSUBQ_COMPLEX;
  if (a.flags & NVSUBQ_DOUBLE) return complex ? for_mode<double, true>(a, todo) : for_mode<double, false>(a, todo);
  return complex ? for_mode<float, true>(a, todo) : for_mode<float, false>(a, todo);
}

int64_t linear_workspace(const Linear& a);
int linear_forward(const Linear& a, cudaStream_t stream);
int linear_backward(const Linear& a, cudaStream_t stream);

// Decay and factor from a time and a rate.
template <class T, bool CX>
struct Timed {
  using N = Number<T, CX>;
  N z, power, inverted, decay, scale;  // power: e^z, inverted: 1/(1 - z/2), where they are needed

  NVSUBQ_BOTH Timed(const Linear& a, T dt, N rate) : z(rate * dt), power(), inverted(), scale() {
    const N one = number<N>(T(1)), half = z * T(0.5);
    const bool bilinear = a.discretization == NVSUBQ_BILINEAR;
    if (!bilinear || a.input_scale == NVSUBQ_SCALE_ZOH) power = power_of(dt, rate);
    if (bilinear || a.input_scale == NVSUBQ_SCALE_BILINEAR) inverted = inverse(one - half);
    decay = bilinear ? (one + half) * inverted : power;
    if (a.input_scale == NVSUBQ_SCALE_ZOH)
      scale = expm1_over<T>(z, power).value * dt;
    else if (a.input_scale == NVSUBQ_SCALE_BILINEAR)
      scale = inverted * dt;
    else if (a.input_scale == NVSUBQ_SCALE_SQRT)
      scale = number<N>(bounded_root(inside(a)).value);
  }

  // 1 - |decay|^2: for the bilinear form |1 - z/2|^2 - |1 + z/2|^2 = -2 Re z, over |1 - z/2|^2.
  NVSUBQ_BOTH T inside(const Linear& a) const {
    if (a.discretization == NVSUBQ_BILINEAR) return T(-2) * re(z) * square_of(inverted);
    return -expm1(T(2) * re(z));
  }
};

// Gradients of the rate and the time from those of decay and factor. A gradient g of a complex number is d/d re + i
// d/d im, so what multiplies comes back conjugated.
template <class T, bool CX>
struct TimedGradient {
  using N = Number<T, CX>;
  N rate;
  T dt;

  NVSUBQ_BOTH TimedGradient(const Linear& a, const Timed<T, CX>& made, T time, N given, N d_decay, N d_scale)
      : rate(), dt(0) {
    const bool bilinear = a.discretization == NVSUBQ_BILINEAR;
    N d_z = conj(bilinear ? made.inverted * made.inverted : made.decay) * d_decay;
    if (a.input_scale == NVSUBQ_SCALE_ZOH) {  // dt f(z), f = (e^z - 1)/z: e^z by dt, dt^2 f' by the rate
      rate = conj(expm1_over<T>(made.z, made.power).slope) * d_scale * (time * time);
      dt = re(conj(made.power) * d_scale);
    } else if (a.input_scale == NVSUBQ_SCALE_BILINEAR) {  // dt q, q = 1/(1 - z/2): q^2 by dt, dt^2 q^2/2 by the rate
      const N square = conj(made.inverted * made.inverted) * d_scale;
      rate = square * (time * time * T(0.5));
      dt = re(square);
    } else if (a.input_scale == NVSUBQ_SCALE_SQRT) {
      const T d_inside = re(d_scale) * bounded_root(made.inside(a)).slope;
      d_z = d_z + inside_by_z(bilinear, made) * d_inside;
    }
    rate = rate + d_z * time;
    dt = dt + re(conj(given) * d_z);
  }

  // The derivatives of 1 - |decay|^2 in the two parts of z.
  static NVSUBQ_BOTH N inside_by_z(bool bilinear, const Timed<T, CX>& made) {
    if (!bilinear) return number<N>(T(-2) * square_of(made.power));
    const T over = square_of(made.inverted), x = re(made.z);
    N by_z = number<N>(T(-2) * over - T(2) * x * (T(1) - x * T(0.5)) * over * over);
    if constexpr (CX) by_z.im = x * made.z.im * over * over;
    return by_z;
  }
};

// A chunk of one channel: its decays, its inputs, and what they were made of.
template <class T, bool CX, Mode MODE>
struct LinearChannel {
  using N = Number<T, CX>;
  int channel;
  N rate;         // of kFixed the decay
  Slope<T> root;  // of kFixed with NVSUBQ_SCALE_SQRT

  __device__ __forceinline__ LinearChannel(const Linear& a, const TilePlace& place)
      : channel(place.channel), rate(), root() {
    if (MODE == kVarying || !place.live) return;
    read_number(a.a, channel * a.a.stride[0], &rate);
    if (MODE == kFixed) root = bounded_root(one_minus_square(rate));
  }

  template <int R>
  __device__ __forceinline__ void load_times(const Linear& a, const Chunk<R>& chunk, T (&dt)[R]) const {
    load(a.dt, chunk, a.flags & NVSUBQ_SHARED_DT ? 0 : channel, dt);
  }

  // Steps that are not visited keep the state: their decay is 1, their input 0. `more` asks for further columns.
  template <int R, class More>
  __device__ __forceinline__ void make(const Linear& a, const Chunk<R>& chunk, N (&decay)[R], N (&in)[R],
                                       More more) const {
    T dt[MODE == kTimed ? R : 1];
    if constexpr (MODE == kTimed) load_times(a, chunk, dt);
    if constexpr (MODE == kVarying) load(a.a, chunk, channel, decay);
    load(a.b, chunk, channel, in);
    more();
    if constexpr (MODE == kTimed) open(a.dt, dt);
    if constexpr (MODE == kVarying) open(a.a, decay);
    open(a.b, in);
    if constexpr (MODE == kTimed) {
#pragma unroll
      for (int j = 0; j < R; ++j) {
        const Timed<T, CX> timed(a, dt[j], rate);
        decay[j] = timed.decay;
        if (a.input_scale != NVSUBQ_SCALE_NONE) in[j] = timed.scale * in[j];
      }
    } else if (a.input_scale == NVSUBQ_SCALE_SQRT) {
#pragma unroll
      for (int j = 0; j < R; ++j)
        in[j] = in[j] * (MODE == kFixed ? root.value : bounded_root(one_minus_square(decay[j])).value);
    }
    if constexpr (MODE == kFixed) {
#pragma unroll
      for (int j = 0; j < R; ++j) decay[j] = rate;
    }
    if (chunk.visited >= R) return;
#pragma unroll
    for (int j = 0; j < R; ++j)
      if (j >= chunk.visited) decay[j] = number<N>(T(1)), in[j] = N{};
  }
};

}  // namespace nvsubq

#endif
