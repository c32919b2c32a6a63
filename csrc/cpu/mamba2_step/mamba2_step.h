// One token of Mamba2: projection in, convolution, heads, gate and norm, the MLP beside them, projection out.
#ifndef NVSUBQ_CPU_MAMBA2_STEP_H
#define NVSUBQ_CPU_MAMBA2_STEP_H

#include <math.h>

#include "../step.h"

namespace {

using Mamba2Args = nvsubq_mamba2_step_args;

template <class T>
struct Mamba2Step {
  using V = Vec<T>;
  static constexpr int W = Simd<T>::W;
  const Mamba2Args& a;
  const int64_t conv_width, head_width, lanes;  // lanes: states, padded
  const int64_t x_at, dt_at, in_width, out_width;  // columns of what the projection in gives, out takes
  T *outer, *in, *u, *y, *out;                     // [B][M], [B][in_width], [B][conv_width], [B][D], [B][out_width]
  T *BC, *delta, *decay;                           // [B][2G][lanes], [B][H] each
  int64_t shared_bytes, slot_bytes;

  explicit Mamba2Step(const Mamba2Args& args)
      : a(args), conv_width(args.width + 2 * args.groups * args.states), head_width(args.width / args.heads),
        lanes(padded<T>(args.states)), x_at(2 * args.mlp + args.width), dt_at(x_at + conv_width),
        in_width(dt_at + args.heads), out_width(args.mlp + args.width) {
    Arena shared(a.workspace), slot(nullptr);
    outer = shared.take<T>(a.batch * a.model);
    in = shared.take<T>(a.batch * in_width);
    u = shared.take<T>(a.batch * conv_width);
    y = shared.take<T>(a.batch * a.width);
    out = shared.take<T>(a.batch * out_width);
    BC = shared.take<T>(a.batch * 2 * a.groups * lanes);
    delta = shared.take<T>(a.batch * a.heads);
    decay = shared.take<T>(a.batch * a.heads);
    shared_bytes = shared.bytes();
    typename ConvStep<T>::Scratch(slot, a.taps);
    slot_bytes = slot.bytes();
  }

  int64_t bytes() const { return shared_bytes + slot_bytes * a.threads; }

  void run() const {
    project_in(a.in_weight, a.in_bias, a.x, a.threads, a.batch, a.model, in_width, outer, in);
    const ConvStep<T> conv = {in + x_at, in_width, a.conv_state, a.conv_weight, a.conv_bias,
                              a.batch,   conv_width, a.taps,     true,          u};
    auto convolve = [&](int64_t task, int64_t slot) {
      Arena arena(static_cast<char*>(a.workspace) + shared_bytes + slot * slot_bytes);
      conv.run(task, typename ConvStep<T>::Scratch(arena, a.taps));
    };
    run_phase(a.threads, conv.tasks(), conv.work(), convolve);
    for (int64_t b = 0; b < a.batch; ++b) spread(b);
    auto heads = [&](int64_t task, int64_t) { head(task / a.heads, task % a.heads); };
    run_phase(a.threads, a.batch * a.heads, 4 * a.batch * a.width * a.states, heads);
    auto finish = [&](int64_t b, int64_t) { leave(b); };
    run_phase(a.threads, a.batch, 16 * a.batch * (a.width + a.mlp), finish);
    project_out(a.out_weight, a.out_bias, a.y, a.threads, a.batch, a.model, out_width, out, outer);
  }

  // B and C of a row by padded groups, and the step sizes and decays of its heads.
  void spread(int64_t b) const {
    for (int64_t g = 0; g < 2 * a.groups; ++g)
      for (int64_t n = 0; n < lanes; ++n)
        BC[(b * 2 * a.groups + g) * lanes + n] = n < a.states ? u[b * conv_width + a.width + g * a.states + n] : T(0);
    T bias[W] = {}, rate[W] = {};
    for (int64_t h = 0; h < a.heads; h += W) {
      const int64_t n = least(W, a.heads - h);
      read_row<T>(a.dt_bias, h, n, bias);
      read_row<T>(a.A_log, h, n, rate);
      V dt = softplus<T>(load<T>(in + b * in_width + dt_at + h, n) + load<T>(bias, W));
      const T low = T(real_of(a.dt_low)), high = T(real_of(a.dt_high));
      dt = dt < low ? splat<T>(low) : dt;
      dt = dt > high ? splat<T>(high) : dt;
      store<T>(delta + b * a.heads + h, n, dt);
      store<T>(decay + b * a.heads + h, n, expv<T>(-dt * expv<T>(load<T>(rate, W))));
    }
  }

  void head(int64_t b, int64_t h) const {
    const T dt = delta[b * a.heads + h], keep = decay[b * a.heads + h];
    const int64_t group = h / (a.heads / a.groups), first = h * head_width;
    const T *B = BC + (b * 2 * a.groups + group) * lanes, *C = B + a.groups * lanes;
    const T* x = u + b * conv_width + first;
    T* to = y + b * a.width + first;
    T* state = static_cast<T*>(a.state.data) + (b * a.width + first) * a.states;
    int64_t p = 0;
    for (; p + 4 <= head_width; p += 4) advance<4>(state + p * a.states, B, C, keep, dt, x + p, to + p);
    for (; p < head_width; ++p) advance<1>(state + p * a.states, B, C, keep, dt, x + p, to + p);
  }

  // The states of P channels, and sum_n C_n s_n of each.
  template <int P>
  void advance(T* state, const T* B, const T* C, T keep, T dt, const T* x, T* to) const {
    V sums[P] = {};
    T scaled[P];
    for (int p = 0; p < P; ++p) scaled[p] = dt * x[p];
    for (int64_t i = 0; i < lanes; i += W) {
      const V b = load<T>(B + i, W), c = load<T>(C + i, W);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        T* s = state + p * a.states + i;
        const V now = keep * load<T>(s, a.states - i) + scaled[p] * b;
        store<T>(s, a.states - i, now);
        sums[p] = sums[p] + c * now;
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) to[p] = sum_lanes<T>(sums[p]);
  }

  // Calls todo(offset, count, z) for the chunks of a part of a row; z are its gates, before SiLU.
  template <class F>
  void gated(int64_t b, int64_t z_at, int64_t from, int64_t to, F todo) const {
    T z[kChunk] = {};
    const T* raw = in + b * in_width + z_at;
    for (int64_t c = from; c < to; c += kChunk) {
      const int64_t n = least(kChunk, to - c);
      for (int64_t i = 0; i < n; i += W) {
        const V v = load<T>(raw + c + i, n - i);
        store<T>(z + i, W, v * sigmoid<T>(v));
      }
      todo(c, n, z);
    }
  }

  void leave(int64_t b) const {
    gated(b, 0, 0, a.mlp, [&](int64_t c, int64_t n, const T* z) {
      const T* x0 = in + b * in_width + a.mlp + c;
      for (int64_t i = 0; i < n; ++i) out[b * out_width + c + i] = x0[i] * z[i];
    });
    const int64_t group_width = a.width / a.groups;
    for (int64_t first = 0; first < a.width; first += group_width) leave_group(b, first, first + group_width);
  }

  // y + D x, gate, norm (either may come first), for the channels of one group.
  void leave_group(int64_t b, int64_t from, int64_t to) const {
    const bool norm = has(a.norm_weight), gate_first = !a.norm_before_gate;
    T* row = y + b * a.width;
    V squares = {};
    gated(b, 2 * a.mlp, from, to, [&](int64_t c, int64_t n, const T* z) {
      T skip[kChunk] = {};
      read_skip(c, n, skip);
      for (int64_t i = 0; i < n; i += W) {
        V v = load<T>(row + c + i, n - i) + load<T>(skip + i, W) * load<T>(u + b * conv_width + c + i, n - i);
        if (gate_first) v = v * load<T>(z + i, W);
        store<T>(row + c + i, n - i, v);
        squares = squares + v * v;  // lanes past the row's end are 0
      }
    });
    const T scale = norm ? T(1) / T(sqrt(double(sum_lanes<T>(squares)) / double(to - from) + real_of(a.norm_eps))) : T(1);
    gated(b, 2 * a.mlp, from, to, [&](int64_t c, int64_t n, const T* z) {
      T weight[kChunk] = {};
      T* to = out + b * out_width + a.mlp + c;
      if (norm) read_row<T>(a.norm_weight, c, n, weight);
      for (int64_t i = 0; i < n; i += W) {
        V v = load<T>(row + c + i, n - i);
        if (norm) v = v * scale * load<T>(weight + i, W);
        if (!gate_first) v = v * load<T>(z + i, W);
        store<T>(to + i, n - i, v);
      }
    });
  }

  // D of each channel; by heads it is the same for all of a head.
  void read_skip(int64_t c, int64_t n, T* to) const {
    if (a.channel_skip) return read_row<T>(a.D, c, n, to);
    for (int64_t i = 0; i < n; ++i) to[i] = read_one<T>(a.D, (c + i) / head_width);
  }
};

}  // namespace
#endif
