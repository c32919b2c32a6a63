// One token of S5: B u, the recurrence, and C s + D u.
#ifndef NVSUBQ_CPU_S5_STEP_H
#define NVSUBQ_CPU_S5_STEP_H

#include "../complex.h"
#include "../step.h"

namespace {

using S5Args = nvsubq_s5_step_args;

// The discretization is done in fp64: phases reach hundreds of radians.
constexpr int kLanes = Simd<double>::W;
using Complex = Cx<double>;

template <class T>
struct S5Step {
  using V = Vec<T>;
  static constexpr int W = Simd<T>::W;
  static constexpr int64_t kStates = 16;  // of a task
  const S5Args& a;
  T *pairs, *inputs, *read;  // [B][2C] u twice each, [B][2N] B u, [B][2N] kappa (Re s, -Im s)
  int64_t used;

  explicit S5Step(const S5Args& args) : a(args) {
    Arena arena(a.workspace);
    pairs = arena.take<T>(a.batch * 2 * a.width);
    inputs = arena.take<T>(a.batch * 2 * a.states);
    read = arena.take<T>(a.batch * 2 * a.states);
    used = arena.bytes();
  }

  int64_t bytes() const { return used; }

  void run() const {
    T row[kChunk];
    for (int64_t b = 0; b < a.batch; ++b)
      for (int64_t c = 0; c < a.width; c += kChunk) {
        const int64_t n = least(kChunk, a.width - c);
        read_row<T>(a.u, at(a.u, b) + c, n, row);
        T* to = pairs + (b * a.width + c) * 2;
        for (int64_t i = 0; i < n; ++i) to[2 * i] = to[2 * i + 1] = row[i];
      }
    const int64_t work = 2 * a.batch * a.width * a.states;
    auto recur = [&](int64_t task, int64_t) { recur_chunk(task * kStates); };
    run_phase(a.threads, chunks_of(a.states, kStates), work, recur);
    auto leave = [&](int64_t task, int64_t) { leave_chunk(task * kChunk); };
    run_phase(a.threads, chunks_of(a.width), work, leave);
  }

  // The states from `first` on, for all rows.
  void recur_chunk(int64_t first) const {
    const int64_t count = least(kStates, a.states - first), row = 2 * a.states;
    matvec<T, PairSum>(a.B, 2 * a.width, first, count,
                       {pairs, 2 * a.width, a.batch, 2 * a.width, inputs + 2 * first, row});
    const T kappa = T(real_of(a.kappa));
    for (int64_t n = first; n < first + count; n += kLanes) {
      const int lanes = int(least(kLanes, first + count - n));
      const Complex rate = {read_column<double>(a.A, 2 * n, 2, lanes), read_column<double>(a.A, 2 * n + 1, 2, lanes)};
      double log_dt[kLanes] = {};
      read_row<double>(a.log_dt, n, lanes, log_dt);
      const VecD dt = expv<double>(load<double>(log_dt, kLanes)) * real_of(a.step_rescale);
      const bool timed = has(a.timesteps);
      Complex decay = decay_of(dt, rate);
      const Complex gamma = gamma_of(dt, rate, decay);
      for (int64_t b = 0; b < a.batch; ++b) {
        if (timed) decay = decay_of(dt * read_one<double>(a.timesteps, at(a.timesteps, b)), rate);
        T* state = static_cast<T*>(a.state.data) + b * row + 2 * n;
        const T* in = inputs + b * row + 2 * n;
        T* to = read + b * row + 2 * n;
        for (int i = 0; i < lanes; ++i) {
          const T ar = T(decay.re[i]), ai = T(decay.im[i]), gr = T(gamma.re[i]), gi = T(gamma.im[i]);
          const T old_re = state[2 * i], old_im = state[2 * i + 1], in_re = in[2 * i], in_im = in[2 * i + 1];
          state[2 * i] = ar * old_re - ai * old_im + (gr * in_re - gi * in_im);
          state[2 * i + 1] = ar * old_im + ai * old_re + (gr * in_im + gi * in_re);
          to[2 * i] = kappa * state[2 * i];
          to[2 * i + 1] = -kappa * state[2 * i + 1];
        }
      }
    }
  }

  Complex decay_of(VecD dt, Complex rate) const {
    if (a.discretization != NVSUBQ_BILINEAR) return exp_of<double>(dt, rate);
    const Complex half = rate * (dt * 0.5);
    return Complex{half.re + 1.0, half.im} * inverse(Complex{1.0 - half.re, -half.im});
  }

  // `decay` is that of dt alone.
  Complex gamma_of(VecD dt, Complex rate, Complex decay) const {
    const Complex z = rate * dt;
    if (a.discretization == NVSUBQ_DIRAC) return {splat<double>(1.0), VecD{}};
    if (a.discretization == NVSUBQ_BILINEAR) return inverse(Complex{1.0 - z.re * 0.5, -(z.im * 0.5)}) * dt;
    Complex value, slope;
    expm1_over<double>(z, decay, &value, &slope);
    return value * dt;
  }

  // The outputs from c on, for all rows.
  void leave_chunk(int64_t c) const {
    const int64_t n = least(kChunk, a.width - c), row = 2 * a.states;
    T skip[kChunk] = {}, y[4 * kChunk];
    read_row<T>(a.D, c, n, skip);
    for (int64_t first = 0; first < a.batch; first += 4) {
      const int64_t some = least(4, a.batch - first);
      matvec<T>(a.C, row, c, n, {read + first * row, row, some, row, y, kChunk});
      for (int64_t b = 0; b < some; ++b) {
        const T* u = pairs + ((first + b) * a.width + c) * 2;
        for (int64_t i = 0; i < n; ++i) y[b * kChunk + i] += skip[i] * u[2 * i];
        write_row<T>(a.y, at(a.y, first + b) + c, n, y + b * kChunk);
      }
    }
  }
};

}  // namespace
#endif
