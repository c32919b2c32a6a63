// `selective_scan`: the loops over states of the calls that are hot. fp32, real, the decay an exponential, B and C by
// cell, no gate: one pass does it all, several states at a time in registers.
#ifndef NVSUBQ_CPU_SELECTIVE_SCAN_FUSED_H
#define NVSUBQ_CPU_SELECTIVE_SCAN_FUSED_H

#include "adjoints.h"

namespace {

struct Fused {
  using T = float;
  static constexpr bool CX = false;
  using V = Vec<T>;
  static constexpr T rate_unit = T(kLog2E), slope_unit = T(kLn2);  // decays are powers of 2
  static constexpr int kForward = sizeof(V) == 64 ? 8 : 4;         // states that fit into registers
  static constexpr int kBackward = 4;

  static bool serves(const Selective& a) {
    const int64_t fixed = NVSUBQ_FIXED_B | NVSUBQ_FIXED_C | NVSUBQ_FIXED_GATE;
    return !(a.flags & (NVSUBQ_DOUBLE | fixed)) && !is_complex(a.A) && !has(a.decay_gate) &&
           (a.discretization == NVSUBQ_MAMBA || a.discretization == NVSUBQ_DIRAC);
  }

  // Of some states over a segment: states and decays by step, then the adjoints of B and C, summed over tiles.
  struct Memory {
    V state[kMaxCells * kBackward], decay[kMaxCells * kBackward];
    V dB[kMaxCells * kBackward], dC[kMaxCells * kBackward];
  };

  static void advance(int64_t, const Tile<T>& x, const Segment& segment, const Coefficients<T, CX>& given, int tile,
                      V* state, V* out, Ahead& ahead, Memory&) {
    if (segment.any_starts)
      advance_all<true>(x, segment, given, tile, state, out, ahead);
    else
      advance_all<false>(x, segment, given, tile, state, out, ahead);
  }

  static void gradients(Adjoints<Fused>& g) {
    if (g.segment.any_starts)
      all_gradients<true>(g);
    else
      all_gradients<false>(g);
  }

 private:
  template <bool STARTS>
  static void advance_all(const Tile<T>& x, const Segment& segment, const Coefficients<T, CX>& given, int tile,
                          V* state, V* out, Ahead& ahead) {
    const int64_t states = given.B.states;
    int64_t n = 0;
    for (; n + kForward <= states; n += kForward)
      advance_some<kForward, STARTS>(x, segment, given, tile, n, state + n, out, ahead);
    for (; n < states; ++n) advance_some<1, STARTS>(x, segment, given, tile, n, state + n, out, ahead);
  }

  template <int NB, bool STARTS>
  static void advance_some(const Tile<T>& x, const Segment& segment, const Coefficients<T, CX>& given, int tile,
                           int64_t n, V* state, V* out, Ahead& ahead) {
    const int64_t states = given.B.states;
    const T *B = given.B.cells + n, *C = given.C.cells + n;
    V s[NB], rate[NB];
    for (int j = 0; j < NB; ++j) s[j] = state[j], rate[j] = given.rates[tile * states + n + j];
    for (int t = 0; t < segment.cells; ++t, B += states, C += states) {
      if (n == 0) ahead.ask();
      if (STARTS && segment.starts[t])
        for (int j = 0; j < NB; ++j) s[j] = V{};
      const V da = x.da[t], w = x.w[t];
      V sum = out[t];
#pragma GCC unroll 8
      for (int j = 0; j < NB; ++j) {
        s[j] = exp2v(da * rate[j]) * s[j] + w * B[j];
        sum = sum + s[j] * C[j];
      }
      out[t] = sum;
    }
    for (int j = 0; j < NB; ++j) state[j] = s[j];
  }

  template <bool STARTS>
  static void all_gradients(Adjoints<Fused>& g) {
    int64_t n = 0;
    for (; n + kBackward <= g.states; n += kBackward) some_gradients<kBackward, STARTS>(g, n);
    for (; n < g.states; ++n) some_gradients<1, STARTS>(g, n);
  }

  template <int NB, bool STARTS>
  static void some_gradients(Adjoints<Fused>& g, int64_t n) {
    Memory& m = *g.memory;
    for (int i = 0; i < g.segment.cells * NB; ++i) m.dB[i] = m.dC[i] = V{};
    for (int tile = 0; tile < g.place.tiles; ++tile) {
      if (g.gated_output)
        recompute<NB, STARTS, true>(g, tile, n, m);
      else
        recompute<NB, STARTS, false>(g, tile, n, m);
      adjoint<NB, STARTS>(g, tile, n, m);
    }
    for (int t = 0; t < g.segment.cells; ++t) {
      T* dB = g.partial.of(g.partial.B, g.place.row, g.segment.cell[t], g.place.chunk, n);
      T* dC = g.partial.of(g.partial.C, g.place.row, g.segment.cell[t], g.place.chunk, n);
      if (NB == 4) {
        sum_lanes_of_4(m.dB[t * 4], m.dB[t * 4 + 1], m.dB[t * 4 + 2], m.dB[t * 4 + 3], dB);
        sum_lanes_of_4(m.dC[t * 4], m.dC[t * 4 + 1], m.dC[t * 4 + 2], m.dC[t * 4 + 3], dC);
        continue;
      }
      for (int j = 0; j < NB; ++j) {
        dB[j] = sum_lanes<T>(m.dB[t * NB + j]);
        dC[j] = sum_lanes<T>(m.dC[t * NB + j]);
      }
    }
  }

  template <int NB, bool STARTS, bool GATED>
  static void recompute(Adjoints<Fused>& g, int tile, int64_t n, Memory& m) {
    const Tile<T>& x = g.tile[tile];
    const TileAdjoints<T>& grad = g.grad[tile];
    const int64_t from = tile * g.states + n;
    const T *B = g.given.B.cells + n, *C = g.given.C.cells + n;
    V s[NB], rate[NB];
    for (int j = 0; j < NB; ++j) s[j] = g.entering[from + j], rate[j] = g.given.rates[from + j];
    for (int t = 0; t < g.segment.cells; ++t, B += g.states, C += g.states) {
      if (n == 0) g.ahead.ask();
      if (STARTS && g.segment.starts[t])
        for (int j = 0; j < NB; ++j) s[j] = V{};
      const V da = x.da[t], w = x.w[t], out = grad.out[t];
      V sum = GATED ? grad.y[t] : V{};
#pragma GCC unroll 4
      for (int j = 0; j < NB; ++j) {
        const V a = exp2v(da * rate[j]);
        s[j] = a * s[j] + w * B[j];
        m.state[t * NB + j] = s[j];
        m.decay[t * NB + j] = a;
        m.dC[t * NB + j] += out * s[j];
        if (GATED) sum = sum + s[j] * C[j];
      }
      if (GATED) grad.y[t] = sum;
    }
  }

  template <int NB, bool STARTS>
  static void adjoint(Adjoints<Fused>& g, int tile, int64_t n, Memory& m) {
    const Tile<T>& x = g.tile[tile];
    const TileAdjoints<T>& grad = g.grad[tile];
    const int64_t from = tile * g.states + n;
    V h[NB], rate[NB], by_rate[NB];
    for (int j = 0; j < NB; ++j)
      h[j] = g.arriving[from + j], rate[j] = g.given.rates[from + j], by_rate[j] = g.d_rate[from + j];
    for (int t = g.segment.cells - 1; t >= 0; --t) {
      const T *b = g.given.B.cells + t * g.states + n, *c = g.given.C.cells + t * g.states + n;
      const bool start = STARTS && g.segment.starts[t];
      const V da = x.da[t], w = x.w[t], out = grad.out[t];
      const V* before = t ? m.state + (t - 1) * NB : g.entering + from;
      V by_w = grad.by_w[t], by_da = grad.by_da[t];
#pragma GCC unroll 4
      for (int j = 0; j < NB; ++j) {
        h[j] = h[j] + out * c[j];
        m.dB[t * NB + j] += h[j] * w;
        by_w = by_w + h[j] * b[j];
        h[j] = h[j] * m.decay[t * NB + j];
        const V l = h[j] * (start ? V{} : before[j]);
        by_da = by_da + l * rate[j];
        by_rate[j] = by_rate[j] + l * da;
        if (start) h[j] = V{};
      }
      grad.by_w[t] = by_w;
      grad.by_da[t] = by_da;
    }
    for (int j = 0; j < NB; ++j) g.arriving[from + j] = h[j], g.d_rate[from + j] = by_rate[j];
  }
};

}  // namespace
#endif
