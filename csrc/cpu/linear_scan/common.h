// `linear_scan`: what the forward and the backward share: how the decay and the factor of the input are made.
#ifndef NVSUBQ_CPU_LINEAR_SCAN_COMMON_H
#define NVSUBQ_CPU_LINEAR_SCAN_COMMON_H

#include "../channel_walk.h"
#include "../complex_storage.h"
#include "../op.h"
#include "../simd_math.h"

namespace {

using Linear = nvsubq_linear_scan_args;

// Where the decay comes from: `a` [D], `a` [B, L, D], or a rate [D] and the time of a cell.
enum Mode { kFixed, kVarying, kTimed };

inline Mode mode_of(const Linear& a) { return has(a.dt) ? kTimed : a.flags & NVSUBQ_FIXED_A ? kFixed : kVarying; }
inline bool is_complex(const Linear& a) { return is_complex(a.a) || is_complex(a.b); }

template <class T>
inline Vec<T> square_of(Vec<T> x) {
  return x * x;
}
template <class T>
inline Vec<T> square_of(Cx<T> x) {
  return x.re * x.re + x.im * x.im;
}

// 1 - |a|^2 without cancellation.
template <class T>
inline Vec<T> one_minus_square(Vec<T> a) {
  return (T(1) - a) * (T(1) + a);
}
template <class T>
inline Vec<T> one_minus_square(Cx<T> a) {
  using V = Vec<T>;
  const V re = absolute<T>(a.re), im = absolute<T>(a.im), p = re > im ? re : im, q = re > im ? im : re;
  const V less = T(1) - p, more = T(1) + p, product = less * more;
  const V rest = fused(less, more, -product) + less * (p - (more - T(1)));
  return fused(-q, q, product) + rest;
}

// The square root of what is not negative, and its derivative, at most 1000: it is infinite where the decay is 1.
template <class T>
inline Slope<T> bounded_root(Vec<T> x) {
  const Vec<T> zero = {}, root = sqrtv(x < T(0) ? zero : x), twice = T(2) * root, low = splat<T>(T(1e-3));
  return {root, x < T(0) ? zero : T(1) / (twice < low ? low : twice)};
}

// Decay and factor from a time and a rate. `power` is exp(dt rate), where one of them needs it.
template <class T, bool CX>
struct Timed {
  using V = Vec<T>;
  using N = Number<T, CX>;
  N z, power, inverted, decay, scale;  // inverted: 1/(1 - z/2)

  static N power_of(const Linear& a, V dt, N rate) {
    return a.discretization != NVSUBQ_BILINEAR || a.input_scale == NVSUBQ_SCALE_ZOH ? exp_of(dt, rate) : N{};
  }

  Timed(const Linear& a, V dt, N rate, N given) : z(rate * dt), power(given), inverted(), scale() {
    const V half = splat<T>(T(0.5));
    const N one = number<T, CX>(splat<T>(T(1)));
    const bool bilinear = a.discretization == NVSUBQ_BILINEAR;
    if (bilinear || a.input_scale == NVSUBQ_SCALE_BILINEAR) inverted = inverse(one - z * half);
    decay = bilinear ? (one + z * half) * inverted : power;
    if (a.input_scale == NVSUBQ_SCALE_ZOH) {
      N slope;
      expm1_over_of(&scale, &slope);
      scale = scale * dt;
    } else if (a.input_scale == NVSUBQ_SCALE_BILINEAR) {
      scale = inverted * dt;
    } else if (a.input_scale == NVSUBQ_SCALE_SQRT) {
      scale = number<T, CX>(bounded_root<T>(inside(a)).value);
    }
  }

  void expm1_over_of(N* value, N* slope) const {
    if constexpr (CX)
      expm1_over(z, power, value, slope);
    else
      expm1_over<T>(z, power, value, slope);
  }

  // 1 - |decay|^2: for the bilinear form |1 - z/2|^2 - |1 + z/2|^2 = -2 Re z, over |1 - z/2|^2.
  V inside(const Linear& a) const {
    if (a.discretization == NVSUBQ_BILINEAR) return T(-2) * re(z) * square_of<T>(inverted);
    return -expm1v<T>(T(2) * re(z));
  }
};

// The state of a tile [B, D], or zeros where it is absent.
template <class T, bool CX>
inline Number<T, CX> read_state(const nvsubq_tensor& t, const Place<T>& place, int tile) {
  if (!has(t)) return Number<T, CX>{};
  return read_spaced_numbers<T, CX>(t, at(t, place.row, place.channel(tile)), t.stride[1], place.lanes(tile));
}
template <class T, class Numbers>
inline void write_state(const nvsubq_tensor& t, const Place<T>& place, int tile, Numbers x) {
  if (has(t)) write_spaced_numbers<T>(t, at(t, place.row, place.channel(tile)), t.stride[1], place.lanes(tile), x);
}
// A parameter [D].
template <class T, bool CX>
inline Number<T, CX> read_rate(const nvsubq_tensor& t, const Place<T>& place, int tile) {
  return read_spaced_numbers<T, CX>(t, at(t, place.channel(tile)), t.stride[0], place.lanes(tile));
}

// Where a part of the states that enter segment s >= 1 is kept, [B][borders][parts][D].
template <class T, bool CX>
inline T* saved_states(const Linear& a, const Place<T>& place, int64_t segment, int which, int tile) {
  const int64_t border = place.row * borders(a.length) + segment - 1;
  return static_cast<T*>(a.saved) + (border * (CX ? 2 : 1) + which) * a.width + place.channel(tile);
}

// The time of a cell at some channels.
template <class T>
inline Vec<T> read_time(const Linear& a, int64_t offset, int c, int n) {
  return a.flags & NVSUBQ_SHARED_DT ? splat<T>(read_one<T>(a.dt, offset)) : read_lanes<T>(a.dt, offset + c, n);
}
inline int64_t time_at(const Linear& a, int64_t row, int64_t cell, int64_t first) {
  return a.flags & NVSUBQ_SHARED_DT ? at(a.dt, row, cell) : at(a.dt, row, cell, first);
}

}  // namespace
#endif
