// `ssd_scan`, forward and backward, against loops over cells, heads, channels and states.
#include "harness.h"

namespace {

struct Case {
  const char* name;
  int64_t batch, length, heads, width, states, groups;
  bool reverse, wide;
  int64_t threads;
};

int64_t bits_of(double x) {
  int64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

void run(const Case& c, int64_t level) {
  const int64_t Bn = c.batch, L = c.length, H = c.heads, P = c.width, N = c.states, G = c.groups;
  const bool w = c.wide;
  Tensor x({Bn, L, H, P}, w), dt({Bn, L, H}, w), A({H}, w), B({Bn, L, G, N}, w), C({Bn, L, G, N}, w), skip({H, P}, w);
  Tensor z({Bn, L, H, P}, w), bias({H}, w), start({Bn, H, P, N}, w), y({Bn, L, H, P}, w), end({Bn, H, P, N}, w);
  Tensor dy({Bn, L, H, P}, w), dend({Bn, H, P, N}, w), dx({Bn, L, H, P}, w), ddt({Bn, L, H}, w), dA({H}, w);
  Tensor dB({Bn, L, G, N}, w), dC({Bn, L, G, N}, w), dskip({H, P}, w), dz({Bn, L, H, P}, w), dbias({H}, w);
  Tensor dstart({Bn, H, P, N}, w);
  for (Tensor* t : {&x, &dt, &B, &C, &skip, &z, &bias, &start, &dy, &dend}) t->draw();
  A.draw(0.5);
  for (double& v : A.values) v -= 1.0;  // a decay, away from 0
  A.give();

  for (int64_t b = 0; b < Bn; ++b)
    for (int64_t h = 0; h < H; ++h) {
      const auto step = [&](int64_t k) { return size_t((b * L + (c.reverse ? L - 1 - k : k)) * H + h); };
      const auto low = [&](int64_t k) { return size_t((int64_t(step(k)) / H * G + h / (H / G)) * N); };
      std::vector<double> d(L), slope(L), d_step(L);
      for (int64_t k = 0; k < L; ++k) {
        const double raw = dt.values[step(k)] + bias.values[h];
        d[k] = log1p(exp(raw)), slope[k] = sigmoid_of(raw);
      }
      for (int64_t p = 0; p < P; ++p) {
        const int64_t lane = (b * H + h) * P + p;
        const auto at = [&](int64_t k) { return step(k) * size_t(P) + size_t(p); };
        std::vector<double> states((L + 1) * N), before(L), g(N);
        for (int64_t n = 0; n < N; ++n) states[n] = start.values[lane * N + n];
        for (int64_t k = 0; k < L; ++k) {
          before[k] = skip.values[h * P + p] * x.values[at(k)];
          for (int64_t n = 0; n < N; ++n) {
            const double in = d[k] * x.values[at(k)] * B.values[low(k) + n];
            const double s = states[(k + 1) * N + n] = exp(d[k] * A.values[h]) * states[k * N + n] + in;
            before[k] += C.values[low(k) + n] * s;
          }
          y.values[at(k)] = before[k] * silu_of(z.values[at(k)]);
        }
        for (int64_t n = 0; n < N; ++n) {
          end.values[lane * N + n] = states[L * N + n];
          g[n] = dend.values[lane * N + n];
        }
        for (int64_t k = L; k-- > 0;) {
          const double in = x.values[at(k)], gate = z.values[at(k)], out = dy.values[at(k)] * silu_of(gate);
          dz.values[at(k)] = dy.values[at(k)] * before[k] * silu_slope(gate);
          dskip.values[h * P + p] += out * in;
          dx.values[at(k)] = out * skip.values[h * P + p];
          for (int64_t n = 0; n < N; ++n) {
            dC.values[low(k) + n] += out * states[(k + 1) * N + n];
            g[n] += out * C.values[low(k) + n];
            dB.values[low(k) + n] += g[n] * d[k] * in;
            dx.values[at(k)] += g[n] * d[k] * B.values[low(k) + n];
            d_step[k] += g[n] * in * B.values[low(k) + n];
            g[n] *= exp(d[k] * A.values[h]);
            d_step[k] += g[n] * states[k * N + n] * A.values[h];
            dA.values[h] += g[n] * states[k * N + n] * d[k];
          }
        }
        for (int64_t n = 0; n < N; ++n) dstart.values[lane * N + n] = g[n];
      }
      for (int64_t k = 0; k < L; ++k) {
        ddt.values[step(k)] = d_step[k] * slope[k];
        dbias.values[h] += ddt.values[step(k)];
      }
    }

  nvsubq_ssd_scan_args a = {};
  a.batch = Bn, a.length = L, a.width = H * P, a.heads = H, a.head_width = P, a.states = N, a.groups = G, a.blocks = 1;
  a.flags = NVSUBQ_SOFTPLUS | (w ? NVSUBQ_DOUBLE : 0), a.lowest = bits_of(0.0), a.highest = bits_of(INFINITY);
  a.x = x.tensor(), a.dt = dt.tensor(), a.A = A.tensor(), a.B = B.tensor(), a.C = C.tensor(), a.D = skip.tensor();
  a.z = z.tensor(), a.dt_bias = bias.tensor(), a.initial_state = start.tensor();
  a.y = y.tensor(), a.final_state = end.tensor(), a.d_y = dy.tensor(), a.d_final_state = dend.tensor();
  a.d_x = dx.tensor(), a.d_dt = ddt.tensor(), a.d_A = dA.tensor(), a.d_B = dB.tensor(), a.d_C = dC.tensor();
  a.d_D = dskip.tensor(), a.d_z = dz.tensor(), a.d_dt_bias = dbias.tensor(), a.d_initial_state = dstart.tensor();
  std::vector<int64_t> index(size_t(L) + 1);
  if (c.reverse) {
    for (int64_t k = 0; k < L; ++k) index[k] = L - 1 - k;
    a.index.data = index.data(), a.index.dtype = NVSUBQ_I64, a.index.flags = NVSUBQ_PRESENT;
    a.index.stride[1] = a.index.stride[2] = 1;
  }
  CALL(ssd_scan, a, level, c.threads);
  char call[96];
  snprintf(call, sizeof call, "ssd_scan, %s, %s", nvsubq_level_name(level), c.name);
  y.expect(call, "y"), end.expect(call, "final_state"), dx.expect(call, "d_x"), ddt.expect(call, "d_dt");
  dA.expect(call, "d_A"), dB.expect(call, "d_B"), dC.expect(call, "d_C"), dskip.expect(call, "d_D");
  dz.expect(call, "d_z"), dbias.expect(call, "d_dt_bias"), dstart.expect(call, "d_initial_state");
}

const Case cases[] = {
    {"one cell", 1, 1, 1, 1, 1, 1, false, false, 1},
    {"odd sizes", 2, 67, 3, 5, 7, 1, false, false, 1},
    {"whole lanes, two threads", 1, 200, 2, 64, 16, 1, false, false, 2},
    {"128 states", 1, 140, 2, 16, 128, 1, true, false, 1},
    {"groups, reverse", 2, 65, 4, 3, 4, 2, true, false, 1},
    {"fp64", 2, 67, 2, 13, 5, 1, true, true, 2},
};

}  // namespace

void check_ssd(int64_t level) {
  for (const Case& c : cases) run(c, level);
}
