// `selective_scan`, forward and backward, against loops over cells, channels and states.
#include "harness.h"

namespace {

struct Case {
  const char* name;
  int64_t batch, length, width, states, groups;
  int kind;
  bool reverse, wide;
  int64_t threads;
};

// The decay a and the input's factor f, with their slopes in delta and A.
struct Discrete {
  double a, a_d, a_A, f, f_d, f_A;
};

Discrete discrete(int kind, double d, double A) {
  const double e = exp(d * A), q = 1 / (1 - d * A / 2), f = expm1(d * A) / A;
  switch (kind) {
    case NVSUBQ_MAMBA: return {e, e * A, e * d, d, 1, 0};
    case NVSUBQ_ZOH: return {e, e * A, e * d, f, e, (d * e - f) / A};
    case NVSUBQ_BILINEAR: return {(1 + d * A / 2) * q, A * q * q, d * q * q, d * q, q * q, d * d / 2 * q * q};
    default: return {e, e * A, e * d, 1, 0, 0};
  }
}

void run(const Case& c, int64_t level) {
  const int64_t Bn = c.batch, L = c.length, D = c.width, N = c.states, G = c.groups, per = D / G;
  const bool w = c.wide;
  Tensor u({Bn, L, D}, w), delta({Bn, L, D}, w), A({D, N}, w), B({Bn, L, G, N}, w), C({Bn, L, G, N}, w), skip({D}, w);
  Tensor z({Bn, L, D}, w), bias({D}, w), start({Bn, D, N}, w), y({Bn, L, D}, w), end({Bn, D, N}, w);
  Tensor dy({Bn, L, D}, w), dend({Bn, D, N}, w), du({Bn, L, D}, w), ddelta({Bn, L, D}, w), dA({D, N}, w);
  Tensor dB({Bn, L, G, N}, w), dC({Bn, L, G, N}, w), dskip({D}, w), dz({Bn, L, D}, w), dbias({D}, w), dstart({Bn, D, N}, w);
  for (Tensor* t : {&u, &delta, &B, &C, &skip, &z, &bias, &start, &dy, &dend}) t->draw();
  A.draw(0.5);
  for (double& v : A.values) v -= 1.0;  // a decay, away from 0
  A.give();

  for (int64_t b = 0; b < Bn; ++b)
    for (int64_t ch = 0; ch < D; ++ch) {
      const auto cell = [&](int64_t k) { return b * L + (c.reverse ? L - 1 - k : k); };
      const auto wide = [&](int64_t k) { return size_t(cell(k) * D + ch); };
      const auto low = [&](int64_t k, int64_t n) { return size_t((cell(k) * G + ch / per) * N + n); };
      std::vector<double> raw(L), d(L), states((L + 1) * N), before(L);
      for (int64_t n = 0; n < N; ++n) states[n] = start.values[(b * D + ch) * N + n];
      for (int64_t k = 0; k < L; ++k) {
        raw[k] = delta.values[wide(k)] + bias.values[ch];
        d[k] = log1p(exp(raw[k]));
        before[k] = skip.values[ch] * u.values[wide(k)];
        for (int64_t n = 0; n < N; ++n) {
          const Discrete q = discrete(c.kind, d[k], A.values[ch * N + n]);
          const double s = q.a * states[k * N + n] + q.f * B.values[low(k, n)] * u.values[wide(k)];
          states[(k + 1) * N + n] = s;
          before[k] += C.values[low(k, n)] * s;
        }
        y.values[wide(k)] = before[k] * silu_of(z.values[wide(k)]);
      }
      std::vector<double> g(N);
      for (int64_t n = 0; n < N; ++n) {
        end.values[(b * D + ch) * N + n] = states[L * N + n];
        g[n] = dend.values[(b * D + ch) * N + n];
      }
      for (int64_t k = L; k-- > 0;) {
        const double in = u.values[wide(k)], gate = z.values[wide(k)], out = dy.values[wide(k)] * silu_of(gate);
        dz.values[wide(k)] = dy.values[wide(k)] * before[k] * silu_slope(gate);
        dskip.values[ch] += out * in;
        double d_u = out * skip.values[ch], d_d = 0;
        for (int64_t n = 0; n < N; ++n) {
          const double b_n = B.values[low(k, n)], past = states[k * N + n];
          const Discrete q = discrete(c.kind, d[k], A.values[ch * N + n]);
          dC.values[low(k, n)] += out * states[(k + 1) * N + n];
          g[n] += out * C.values[low(k, n)];
          d_u += g[n] * q.f * b_n;
          dB.values[low(k, n)] += g[n] * q.f * in;
          d_d += g[n] * (q.a_d * past + q.f_d * b_n * in);
          dA.values[ch * N + n] += g[n] * (q.a_A * past + q.f_A * b_n * in);
          g[n] *= q.a;
        }
        du.values[wide(k)] = d_u;
        ddelta.values[wide(k)] = d_d * sigmoid_of(raw[k]);
        dbias.values[ch] += d_d * sigmoid_of(raw[k]);
      }
      for (int64_t n = 0; n < N; ++n) dstart.values[(b * D + ch) * N + n] = g[n];
    }

  nvsubq_selective_scan_args a = {};
  a.batch = Bn, a.length = L, a.width = D, a.states = N, a.groups = G, a.blocks = 1;
  a.flags = NVSUBQ_SOFTPLUS | (w ? NVSUBQ_DOUBLE : 0), a.discretization = c.kind;
  a.u = u.tensor(), a.delta = delta.tensor(), a.A = A.tensor(), a.B = B.tensor(), a.C = C.tensor(), a.D = skip.tensor();
  a.z = z.tensor(), a.delta_bias = bias.tensor(), a.initial_state = start.tensor();
  a.y = y.tensor(), a.final_state = end.tensor(), a.d_y = dy.tensor(), a.d_final_state = dend.tensor();
  a.d_u = du.tensor(), a.d_delta = ddelta.tensor(), a.d_A = dA.tensor(), a.d_B = dB.tensor(), a.d_C = dC.tensor();
  a.d_D = dskip.tensor(), a.d_z = dz.tensor(), a.d_delta_bias = dbias.tensor(), a.d_initial_state = dstart.tensor();
  std::vector<int64_t> index(size_t(L) + 1);
  if (c.reverse) {
    for (int64_t k = 0; k < L; ++k) index[k] = L - 1 - k;
    a.index.data = index.data(), a.index.dtype = NVSUBQ_I64, a.index.flags = NVSUBQ_PRESENT;
    a.index.stride[1] = a.index.stride[2] = 1;
  }
  CALL(selective_scan, a, level, c.threads);
  char call[96];
  snprintf(call, sizeof call, "selective_scan, %s, %s", nvsubq_level_name(level), c.name);
  y.expect(call, "y"), end.expect(call, "final_state"), du.expect(call, "d_u"), ddelta.expect(call, "d_delta");
  dA.expect(call, "d_A"), dB.expect(call, "d_B"), dC.expect(call, "d_C"), dskip.expect(call, "d_D");
  dz.expect(call, "d_z"), dbias.expect(call, "d_delta_bias"), dstart.expect(call, "d_initial_state");
}

const Case cases[] = {
    {"one cell", 1, 1, 1, 1, 1, NVSUBQ_MAMBA, false, false, 1},
    {"odd sizes", 2, 67, 37, 5, 1, NVSUBQ_MAMBA, false, false, 1},
    {"16 states, two threads", 1, 200, 70, 16, 1, NVSUBQ_MAMBA, false, false, 2},
    {"groups, reverse", 2, 65, 34, 4, 2, NVSUBQ_MAMBA, true, false, 1},
    {"zoh", 1, 66, 19, 3, 1, NVSUBQ_ZOH, false, false, 1},
    {"bilinear", 1, 66, 19, 3, 1, NVSUBQ_BILINEAR, true, false, 1},
    {"dirac", 1, 66, 19, 3, 1, NVSUBQ_DIRAC, false, false, 1},
    {"fp64", 2, 67, 13, 5, 1, NVSUBQ_MAMBA, true, true, 2},
    {"fp64 zoh", 1, 35, 9, 2, 1, NVSUBQ_ZOH, false, true, 1},
};

}  // namespace

void check_scan(int64_t level) {
  for (const Case& c : cases) run(c, level);
}
