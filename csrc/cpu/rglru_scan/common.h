// `rglru_scan`: what the forward and the backward share: one cell of one tile of channels.
#ifndef NVSUBQ_CPU_RGLRU_SCAN_COMMON_H
#define NVSUBQ_CPU_RGLRU_SCAN_COMMON_H

#include "../channel_walk.h"
#include "../op.h"
#include "../simd_math.h"

namespace {

using Rglru = nvsubq_rglru_scan_args;

inline double sharpness(const Rglru& a) {
  double c;
  memcpy(&c, &a.c_bits, sizeof c);
  return c;
}

// Of one tile: c log sigmoid(a_log), the biases, and the state.
template <class T>
struct Channel {
  Vec<T> rate, r_bias, i_bias, state;

  void read(const Rglru& a, const Place<T>& place, int tile) {
    rate = T(sharpness(a)) * log_sigmoid<T>(read_parameter<T>(a.a_log, place, tile));
    r_bias = read_parameter<T>(a.r_bias, place, tile);
    i_bias = read_parameter<T>(a.i_bias, place, tile);
  }
};

// The state [B, D] of a tile, or zeros where it is absent.
template <class T>
inline Vec<T> read_state(const nvsubq_tensor& t, const Place<T>& place, int tile) {
  if (!has(t)) return Vec<T>{};
  return read_spaced<T>(t, at(t, place.row, place.channel(tile)), t.stride[1], place.lanes(tile));
}
template <class T>
inline void write_state(const nvsubq_tensor& t, const Place<T>& place, int tile, Vec<T> state) {
  if (has(t)) write_spaced<T>(t, at(t, place.row, place.channel(tile)), t.stride[1], place.lanes(tile), state);
}

// Where the states that enter segment s >= 1 are kept, [B][borders][D].
template <class T>
inline T* saved_states(const Rglru& a, const Place<T>& place, int64_t segment, int tile) {
  return static_cast<T*>(a.saved) + (place.row * borders(a.length) + segment - 1) * a.width + place.channel(tile);
}

// Whether nothing came before a step and its input is taken as it is.
inline bool is_unscaled(const Rglru& a, int64_t step, bool start) {
  return (a.flags & NVSUBQ_UNSCALED_FIRST) && (start || (step == 0 && !has(a.initial_state)));
}

// The decay, (1 - decay^2)^(1/2) and the two gates of one cell.
template <class T>
struct Opened {
  Vec<T> decay, norm;
  Gate<T> r, i;

  Opened(Vec<T> r_logit, Vec<T> i_logit, Vec<T> rate) : r(gate_of<T>(r_logit)), i(gate_of<T>(i_logit)) {
    const Vec<T> less = expm1v<T>(rate * r.open);  // decay - 1
    decay = less + T(1);
    norm = sqrtv(-less * (decay + T(1)));
  }
};

}  // namespace
#endif
