// `selective_scan`: the loops over states that serve every call, real or complex, one state at a time. What depends
// on the discretization is laid out by step first; the recurrence itself knows nothing of it.
#ifndef NVSUBQ_CPU_SELECTIVE_SCAN_GENERAL_H
#define NVSUBQ_CPU_SELECTIVE_SCAN_GENERAL_H

#include "adjoints.h"

namespace {

template <class T_, bool CX_>
struct General {
  using T = T_;
  static constexpr bool CX = CX_;
  using V = Vec<T>;
  using Num = Number<T, CX>;
  static constexpr T rate_unit = 1, slope_unit = 1;  // A as it is

  // Of one state, by step. The decay is without the gate; `scale` is the input's beside w, `by_d` the slope of d times
  // it in d, `by_a` its slope in A.
  struct Memory {
    Num decay[kMaxCells], scale[kMaxCells], by_d[kMaxCells], by_a[kMaxCells];
    Num state[kMaxCells], h[kMaxCells];  // and the whole cotangent of a state
    Num dB[kMaxCells], dC[kMaxCells];
    V d_gate[kMaxCells];
  };

  static Num one() { return number<T, CX>(splat<T>(T(1))); }

  template <bool SLOPES>
  static void discretize(int64_t kind, const Tile<T>& x, int cells, Num A, Memory& m) {
    switch (kind) {
      case NVSUBQ_MAMBA:
      case NVSUBQ_DIRAC:
        for (int t = 0; t < cells; ++t) m.decay[t] = exp_of(x.da[t], A);
        return;
      case NVSUBQ_ZOH:
        for (int t = 0; t < cells; ++t) {
          const Num e = exp_of(x.d[t], A);
          Num slope;
          expm1_over<T>(A * x.d[t], e, &m.scale[t], &slope);
          if (SLOPES) m.by_d[t] = e, m.by_a[t] = slope * x.d[t];
          m.decay[t] = e;
        }
        if (x.same) return;
        for (int t = 0; t < cells; ++t) m.decay[t] = exp_of(x.da[t], A);
        return;
      case NVSUBQ_BILINEAR:
        for (int t = 0; t < cells; ++t) {
          const Num q = inverse(one() - A * (x.d[t] * T(0.5)));
          m.scale[t] = q;
          if (SLOPES) m.by_d[t] = q * q, m.by_a[t] = q * q * (x.d[t] * T(0.5));
          const Num half = A * (x.da[t] * T(0.5));
          m.decay[t] = (one() + half) * (x.same ? q : inverse(one() - half));
        }
        return;
      default:
        for (int t = 0; t < cells; ++t) m.decay[t] = A;
    }
  }

  // Advances a tile's states over a segment and adds Re(C s) to `out`.
  static void advance(int64_t kind, const Tile<T>& x, const Segment& segment, const Coefficients<T, CX>& given,
                      int tile, Num* state, V* out, Ahead& ahead, Memory& m) {
    const bool scaled = has_scale(kind);
    for (int64_t n = 0; n < given.B.states; ++n) {
      discretize<false>(kind, x, segment.cells, given.rates[tile * given.B.states + n], m);
      if (given.gated) {
        const Along<T, false> gate = given.gate.of(tile, n);
        for (int t = 0; t < segment.cells; ++t) m.decay[t] = m.decay[t] * gate[t];
      }
      const Along<T, CX> B = given.B.of(tile, n), C = given.C.of(tile, n);
      Num s = state[n];
      for (int t = 0; t < segment.cells; ++t) {
        if (n == 0) ahead.ask();
        if (segment.starts[t]) s = Num{};
        Num in = B[t] * x.w[t];
        if (scaled) in = in * m.scale[t];
        s = m.decay[t] * s + in;
        out[t] = out[t] + re(C[t] * s);
      }
      state[n] = s;
    }
  }

  static void gradients(Adjoints<General>& g) {
    Memory& m = *g.memory;
    const int cells = g.segment.cells;
    for (int64_t n = 0; n < g.states; ++n) {
      for (int t = 0; t < cells; ++t) m.dB[t] = m.dC[t] = Num{}, m.d_gate[t] = V{};
      for (int tile = 0; tile < g.place.tiles; ++tile) {
        discretize<true>(g.kind, g.tile[tile], cells, g.given.rates[tile * g.states + n], m);
        recompute(g, tile, n, m);
        recur_back(g, tile, n, m);
        differentiate(g, tile, n, m);
        const int64_t i = tile * g.states + n;
        if (!g.given.B.cells) fold(m.dB, cells, g.d_fixed_B[i]);
        if (!g.given.C.cells) fold(m.dC, cells, g.d_fixed_C[i]);
        if (g.given.gated && !g.given.gate.cells) fold(m.d_gate, cells, g.d_fixed_gate[i]);
      }
      if (g.given.B.cells) g.keep(g.partial.B, n, m.dB);
      if (g.given.C.cells) g.keep(g.partial.C, n, m.dC);
      if (g.given.gated && g.given.gate.cells) g.keep(g.partial.gate, n, m.d_gate);
    }
  }

 private:
  // Of a real output 2 Re(C s) the cotangent counts twice.
  static constexpr T kReal = CX ? 2 : 1;

  template <class X>
  static void fold(X* by_step, int cells, X& sum) {
    for (int t = 0; t < cells; ++t) sum = sum + by_step[t], by_step[t] = X{};
  }

  static void recompute(Adjoints<General>& g, int tile, int64_t n, Memory& m) {
    const Tile<T>& x = g.tile[tile];
    const TileAdjoints<T>& grad = g.grad[tile];
    const bool scaled = has_scale(g.kind);
    const Along<T, CX> B = g.given.B.of(tile, n), C = g.given.C.of(tile, n);
    Along<T, false> gate = {};
    if (g.given.gated) gate = g.given.gate.of(tile, n);
    Num s = g.entering[tile * g.states + n];
    for (int t = 0; t < g.segment.cells; ++t) {
      if (n == 0) g.ahead.ask();
      if (g.segment.starts[t]) s = Num{};
      Num in = B[t] * x.w[t], a = m.decay[t];
      if (scaled) in = in * m.scale[t];
      if (g.given.gated) a = a * gate[t];
      s = a * s + in;
      m.state[t] = s;
      m.dC[t] = m.dC[t] + conj(s) * (grad.out[t] * kReal);
      if (g.gated_output) grad.y[t] = grad.y[t] + re(C[t] * s);
    }
  }

  static void recur_back(Adjoints<General>& g, int tile, int64_t n, Memory& m) {
    const TileAdjoints<T>& grad = g.grad[tile];
    const Along<T, CX> C = g.given.C.of(tile, n);
    Along<T, false> gate = {};
    if (g.given.gated) gate = g.given.gate.of(tile, n);
    Num h = g.arriving[tile * g.states + n];
    for (int t = g.segment.cells - 1; t >= 0; --t) {
      h = h + conj(C[t]) * (grad.out[t] * kReal);
      m.h[t] = h;
      Num a = m.decay[t];
      if (g.given.gated) a = a * gate[t];
      h = h * conj(a);
      if (g.segment.starts[t]) h = Num{};
    }
    g.arriving[tile * g.states + n] = h;
  }

  // From the cotangents of the states to those of what made them.
  static void differentiate(Adjoints<General>& g, int tile, int64_t n, Memory& m) {
    const Tile<T>& x = g.tile[tile];
    const TileAdjoints<T>& grad = g.grad[tile];
    const bool scaled = has_scale(g.kind), exponential = is_exponential(g.kind);
    const Along<T, CX> B = g.given.B.of(tile, n);
    Along<T, false> gate = {};
    if (g.given.gated) gate = g.given.gate.of(tile, n);
    const Num A = g.given.rates[tile * g.states + n];
    Num by_rate = g.d_rate[tile * g.states + n];
    for (int t = 0; t < g.segment.cells; ++t) {
      const Num b = conj(B[t]);
      Num h = m.h[t];
      if (scaled) {
        const Num hb = h * b;
        grad.by_d[t] = grad.by_d[t] + re(hb * conj(m.by_d[t]));
        by_rate = by_rate + hb * conj(m.by_a[t]) * x.w[t];
        h = h * conj(m.scale[t]);
      }
      m.dB[t] = m.dB[t] + h * x.w[t];
      grad.by_w[t] = grad.by_w[t] + re(h * b);

      const Num before = g.segment.starts[t] ? Num{} : t ? m.state[t - 1] : g.entering[tile * g.states + n];
      Num l = m.h[t] * conj(before);  // the cotangent of the gated decay
      if (g.given.gated) {
        m.d_gate[t] = m.d_gate[t] + re(l * conj(m.decay[t]));
        l = l * gate[t];
      }
      if (exponential) {
        l = l * conj(m.decay[t]);
      } else if (scaled) {  // bilinear
        const Num q = x.same ? m.scale[t] : inverse(one() - A * (x.da[t] * T(0.5)));
        l = l * conj(q * q);
      } else {
        by_rate = by_rate + l;
        continue;
      }
      grad.by_da[t] = grad.by_da[t] + re(l * conj(A));
      by_rate = by_rate + l * x.da[t];
    }
    g.d_rate[tile * g.states + n] = by_rate;
  }
};

}  // namespace
#endif
