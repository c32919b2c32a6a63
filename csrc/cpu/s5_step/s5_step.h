// One token of S5: B u, the recurrence, and C s + D u.
#ifndef NVSUBQ_CPU_S5_STEP_H
#define NVSUBQ_CPU_S5_STEP_H

#include <math.h>

#include "../step.h"

namespace {

using S5Args = nvsubq_s5_step_args;

// Complex numbers of the discretization, in fp64: phases reach hundreds of radians.
struct Complex {
  double re, im;
};
inline Complex operator*(Complex x, Complex y) { return {x.re * y.re - x.im * y.im, x.re * y.im + x.im * y.re}; }
inline Complex operator*(double x, Complex y) { return {x * y.re, x * y.im}; }
inline Complex operator/(Complex x, Complex y) {
  const double square = y.re * y.re + y.im * y.im;
  return {(x.re * y.re + x.im * y.im) / square, (x.im * y.re - x.re * y.im) / square};
}
inline Complex plus(double x, Complex y) { return {x + y.re, y.im}; }

inline Complex exponential(Complex z) {
  const double size = exp(z.re);
  return {size * cos(z.im), size * sin(z.im)};
}

// (exp(z) - 1)/z, by series near 0.
inline Complex expm1_over(Complex z) {
  if (z.re * z.re + z.im * z.im > 0.09) return plus(-1, exponential(z)) / z;
  Complex sum = {1, 0};
  for (int n = 14; n > 1; --n) sum = plus(1, (1.0 / n) * (z * sum));
  return sum;
}

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
    for (int64_t n = first; n < first + count; ++n) {
      const Complex rate = {read_one<double>(a.A, 2 * n), read_one<double>(a.A, 2 * n + 1)};
      const double dt = exp(read_one<double>(a.log_dt, n)) * a.step_rescale;
      const Complex z = dt * rate;
      const bool timed = has(a.timesteps);
      Complex decay = timed ? Complex{} : decay_of(z);
      const Complex gamma = gamma_of(z, dt, decay, !timed);
      for (int64_t b = 0; b < a.batch; ++b) {
        if (timed) decay = decay_of(read_one<double>(a.timesteps, at(a.timesteps, b)) * z);
        T *state = static_cast<T*>(a.state.data) + b * row + 2 * n, *in = inputs + b * row + 2 * n;
        const T ar = T(decay.re), ai = T(decay.im), gr = T(gamma.re), gi = T(gamma.im), re = state[0], im = state[1];
        state[0] = ar * re - ai * im + (gr * in[0] - gi * in[1]);
        state[1] = ar * im + ai * re + (gr * in[1] + gi * in[0]);
        read[b * row + 2 * n] = T(a.kappa) * state[0];
        read[b * row + 2 * n + 1] = -T(a.kappa) * state[1];
      }
    }
  }

  Complex decay_of(Complex z) const {
    if (a.discretization != NVSUBQ_BILINEAR) return exponential(z);
    const Complex half = 0.5 * z;
    return plus(1, half) / plus(1, -1.0 * half);
  }

  // `decay` is exp(z) already where `known`.
  Complex gamma_of(Complex z, double dt, Complex decay, bool known) const {
    if (a.discretization == NVSUBQ_DIRAC) return {1, 0};
    if (a.discretization == NVSUBQ_BILINEAR) return Complex{dt, 0} / plus(1, -0.5 * z);
    if (known && z.re * z.re + z.im * z.im > 0.09) return dt * (plus(-1, decay) / z);
    return dt * expm1_over(z);
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
