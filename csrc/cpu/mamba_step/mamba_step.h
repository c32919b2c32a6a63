// One token of Mamba: projection in, convolution, x_proj, dt_proj, scan, gate, projection out.
#ifndef NVSUBQ_CPU_MAMBA_STEP_H
#define NVSUBQ_CPU_MAMBA_STEP_H

#include "../step.h"

namespace {

using MambaArgs = nvsubq_mamba_step_args;

template <class T>
struct MambaStep {
  using V = Vec<T>;
  static constexpr int W = Simd<T>::W;
  const MambaArgs& a;
  const int64_t rows, lanes;  // of x_proj; states, padded
  T *outer, *xz, *u, *y;      // [B][M], [B][2D], [B][D] each
  T *projected, *B, *C;       // [B][R + 2N], and its last parts, padded with zeros
  int64_t shared_bytes, slot_bytes;

  struct Scratch {
    typename ConvStep<T>::Scratch conv;
    T *A, *delta, *delta_a;
    Scratch(Arena& arena, const MambaArgs& a, int64_t lanes) : conv(arena, a.taps) {
      A = arena.take<T>(kChunk * lanes);
      delta = arena.take<T>(kChunk * a.batch);
      delta_a = arena.take<T>(kChunk);
    }
  };

  explicit MambaStep(const MambaArgs& args)
      : a(args), rows(args.rank + 2 * args.states), lanes(padded<T>(args.states)) {
    Arena shared(a.workspace), slot(nullptr);
    outer = shared.take<T>(a.batch * a.model);
    xz = shared.take<T>(a.batch * 2 * a.width);
    u = shared.take<T>(a.batch * a.width);
    y = shared.take<T>(a.batch * a.width);
    projected = shared.take<T>(a.batch * rows);
    B = shared.take<T>(a.batch * lanes);
    C = shared.take<T>(a.batch * lanes);
    shared_bytes = shared.bytes();
    Scratch(slot, a, lanes);
    slot_bytes = slot.bytes();
  }

  int64_t bytes() const { return shared_bytes + slot_bytes * a.threads; }
  Scratch scratch(int64_t slot) const {
    Arena arena(static_cast<char*>(a.workspace) + shared_bytes + slot * slot_bytes);
    return Scratch(arena, a, lanes);
  }

  void run() const {
    project_in(a.in_weight, a.in_bias, a.x, a.threads, a.batch, a.model, 2 * a.width, outer, xz);
    const ConvStep<T> conv = {xz, 2 * a.width, a.conv_state, a.conv_weight, a.conv_bias, a.batch, a.width, a.taps, true, u};
    auto convolve = [&](int64_t task, int64_t slot) { conv.run(task, scratch(slot).conv); };
    run_phase(a.threads, conv.tasks(), conv.work(), convolve);
    project<T>(a.threads, a.x_proj, nullptr, a.batch, a.width, rows, u, projected);
    for (int64_t b = 0; b < a.batch; ++b)
      for (int64_t n = 0; n < lanes; ++n) {
        B[b * lanes + n] = n < a.states ? projected[b * rows + a.rank + n] : T(0);
        C[b * lanes + n] = n < a.states ? projected[b * rows + a.rank + a.states + n] : T(0);
      }
    auto scan = [&](int64_t task, int64_t slot) { scan_chunk(task * kChunk, scratch(slot)); };
    run_phase(a.threads, chunks_of(a.width), a.batch * a.width * (a.rank + 8 * a.states), scan);
    project_out(a.out_weight, a.out_bias, a.y, a.threads, a.batch, a.model, a.width, y, outer);
  }

  // The channels from c on, for all rows.
  void scan_chunk(int64_t c, const Scratch& s) const {
    const int64_t n = least(kChunk, a.width - c);
    matvec<T>(a.dt_weight, a.rank, c, n, {projected, rows, a.batch, a.rank, s.delta, kChunk});
    T bias[kChunk] = {}, skip[kChunk] = {};
    read_row<T>(a.dt_bias, c, n, bias);
    read_row<T>(a.D, c, n, skip);
    for (int64_t d = 0; d < n; ++d) {
      T* A = s.A + d * lanes;
      read_row<T>(a.A_log, (c + d) * a.states, a.states, A);
      for (int64_t i = a.states; i < lanes; ++i) A[i] = 0;
      for (int64_t i = 0; i < lanes; i += W) store<T>(A + i, W, -expv<T>(load<T>(A + i, W)));
    }
    for (int64_t b = 0; b < a.batch; ++b) {
      T *delta = s.delta + b * kChunk, *to = y + b * a.width + c;
      const T *x = u + b * a.width + c, *z = xz + (2 * b + 1) * a.width + c, *delta_a = delta;
      const bool event = has(a.timesteps);
      const T timestep = event ? read_one<T>(a.timesteps, at(a.timesteps, b)) : T(0);
      for (int64_t i = 0; i < n; i += W) {
        const V shift = load<T>(bias + i, W);
        store<T>(delta + i, W, softplus<T>(load<T>(delta + i, n - i) + shift));
        if (event) store<T>(s.delta_a + i, W, timestep * softplus<T>(shift));
      }
      if (event) delta_a = s.delta_a;
      T* state = static_cast<T*>(a.state.data) + (b * a.width + c) * a.states;
      for (int64_t d = 0; d < n; ++d)
        to[d] = advance(state + d * a.states, s.A + d * lanes, B + b * lanes, C + b * lanes, delta[d], delta_a[d], x[d]);
      for (int64_t i = 0; i < n; i += W) {
        const V gate = load<T>(z + i, n - i);
        const V v = load<T>(to + i, n - i) + load<T>(skip + i, W) * load<T>(x + i, n - i);
        store<T>(to + i, n - i, v * gate * sigmoid<T>(gate));
      }
    }
  }

  // The states of one channel, and sum_n C_n s_n.
  T advance(T* state, const T* A, const T* B_, const T* C_, T delta, T delta_a, T x) const {
    V sum = {};
    for (int64_t i = 0; i < lanes; i += W) {
      const V rate = load<T>(A + i, W), old = load<T>(state + i, a.states - i);
      V decay, factor;
      if (a.discretization == NVSUBQ_BILINEAR) {
        const V half = delta_a * T(0.5) * rate;
        decay = (T(1) + half) / (T(1) - half);
        factor = delta / (T(1) - delta * T(0.5) * rate);
      } else {
        decay = expv<T>(delta_a * rate);
        factor = splat<T>(a.discretization == NVSUBQ_DIRAC ? T(1) : delta);
        if (a.discretization == NVSUBQ_ZOH) {
          const V exponent = delta * rate;
          V value, slope;
          expm1_over<T>(exponent, expv<T>(exponent), &value, &slope);
          factor = factor * value;
        }
      }
      const V now = decay * old + factor * (x * load<T>(B_ + i, W));
      store<T>(state + i, a.states - i, now);
      sum = sum + load<T>(C_ + i, W) * now;
    }
    return sum_lanes<T>(sum);
  }
};

}  // namespace
#endif
