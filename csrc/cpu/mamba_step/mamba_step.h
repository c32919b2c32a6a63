// One token of Mamba between its projections in and out: convolution, x_proj, dt_proj, scan and gate.
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
  T *u, *projected, *B, *C;   // [B][D], [B][R + 2N] and its last parts, padded with zeros
  int64_t shared_bytes, slot_bytes;

  struct Scratch {
    typename ConvStep<T>::Scratch conv;
    T *A, *delta, *delta_a, *y;
    Scratch(Arena& arena, const MambaArgs& a, int64_t lanes) : conv(arena, a.taps) {
      A = arena.take<T>(kChunk * lanes);
      delta = arena.take<T>(kChunk * a.batch);
      delta_a = arena.take<T>(kChunk);
      y = arena.take<T>(kChunk);
    }
  };

  explicit MambaStep(const MambaArgs& args)
      : a(args), rows(args.rank + 2 * args.states), lanes(padded<T>(args.states)) {
    Arena shared(a.workspace), slot(nullptr);
    u = shared.take<T>(a.batch * a.width);
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
    const ConvStep<T> conv = {a.xz, a.conv_state, a.conv_weight, a.conv_bias, 0, a.batch, a.width, a.taps, true, u};
    auto convolve = [&](int64_t task, int64_t slot) { conv.run(task, scratch(slot).conv); };
    run_phase(a.threads, conv.tasks(), conv.work(), convolve);
    auto project = [&](int64_t task, int64_t) {
      const int64_t first = task * 16;
      matvec<T>(a.x_proj, a.width, first, least(16, rows - first), {u, a.width, a.batch, a.width, projected + first, rows});
    };
    run_phase(a.threads, chunks_of(rows, 16), a.batch * rows * a.width, project);
    for (int64_t b = 0; b < a.batch; ++b)
      for (int64_t n = 0; n < lanes; ++n) {
        B[b * lanes + n] = n < a.states ? projected[b * rows + a.rank + n] : T(0);
        C[b * lanes + n] = n < a.states ? projected[b * rows + a.rank + a.states + n] : T(0);
      }
    auto scan = [&](int64_t task, int64_t slot) { scan_chunk(task * kChunk, scratch(slot)); };
    run_phase(a.threads, chunks_of(a.width), a.batch * a.width * (a.rank + 8 * a.states), scan);
  }

  // The channels from c on, for all rows.
  void scan_chunk(int64_t c, const Scratch& s) const {
    const int64_t n = least(kChunk, a.width - c);
    matvec<T>(a.dt_weight, a.rank, c, n, {projected, rows, a.batch, a.rank, s.delta, kChunk});
    T bias[kChunk] = {}, skip[kChunk] = {}, z[kChunk] = {};
    read_row<T>(a.dt_bias, c, n, bias);
    read_row<T>(a.D, c, n, skip);
    for (int64_t d = 0; d < n; ++d) {
      T* A = s.A + d * lanes;
      read_row<T>(a.A_log, (c + d) * a.states, a.states, A);
      for (int64_t i = a.states; i < lanes; ++i) A[i] = 0;
      for (int64_t i = 0; i < lanes; i += W) store<T>(A + i, W, -expv<T>(load<T>(A + i, W)));
    }
    for (int64_t b = 0; b < a.batch; ++b) {
      T* delta = s.delta + b * kChunk;
      const T *x = u + b * a.width + c, *delta_a = delta;
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
        s.y[d] = advance(state + d * a.states, s.A + d * lanes, B + b * lanes, C + b * lanes, delta[d], delta_a[d], x[d]);
      read_row<T>(a.xz, at(a.xz, b) + a.width + c, n, z);
      for (int64_t i = 0; i < n; i += W) {
        const V gate = load<T>(z + i, W), y = load<T>(s.y + i, W) + load<T>(skip + i, W) * load<T>(x + i, n - i);
        store<T>(s.y + i, W, y * gate * sigmoid<T>(gate));
      }
      write_row<T>(a.y, at(a.y, b) + c, n, s.y);
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
