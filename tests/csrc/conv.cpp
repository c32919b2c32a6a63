// `causal_conv1d`, forward and backward, against loops over cells, channels and taps.
#include "harness.h"

namespace {

struct Case {
  const char* name;
  int64_t batch, length, width, taps, dilation;
  bool silu, reverse, wide;
  int64_t threads;
};

void run(const Case& c, int64_t level) {
  const int64_t Bn = c.batch, L = c.length, D = c.width, K = c.taps, reach = (K - 1) * c.dilation;
  const bool w = c.wide;
  Tensor x({Bn, L, D}, w), weight({D, K}, w), bias({D}, w), start({Bn, D, reach}, w), y({Bn, L, D}, w), end({Bn, D, reach}, w);
  Tensor dy({Bn, L, D}, w), dend({Bn, D, reach}, w), dx({Bn, L, D}, w), dweight({D, K}, w), dbias({D}, w), dstart({Bn, D, reach}, w);
  for (Tensor* t : {&x, &weight, &bias, &start, &dy, &dend}) t->draw();

  for (int64_t b = 0; b < Bn; ++b)
    for (int64_t ch = 0; ch < D; ++ch) {
      const auto cell = [&](int64_t k) { return size_t((b * L + (c.reverse ? L - 1 - k : k)) * D + ch); };
      std::vector<double> in(reach + L), d_in(reach + L);  // the state, then the walk
      for (int64_t i = 0; i < reach; ++i) in[i] = start.values[(b * D + ch) * reach + i];
      for (int64_t k = 0; k < L; ++k) in[reach + k] = x.values[cell(k)];
      for (int64_t i = 0; i < reach; ++i) {
        end.values[(b * D + ch) * reach + i] = in[L + i];
        d_in[L + i] = dend.values[(b * D + ch) * reach + i];
      }
      for (int64_t k = 0; k < L; ++k) {
        double sum = bias.values[ch];
        for (int64_t j = 0; j < K; ++j) sum += weight.values[ch * K + j] * in[k + j * c.dilation];
        y.values[cell(k)] = c.silu ? silu_of(sum) : sum;
        const double g = dy.values[cell(k)] * (c.silu ? silu_slope(sum) : 1.0);
        dbias.values[ch] += g;
        for (int64_t j = 0; j < K; ++j) {
          dweight.values[ch * K + j] += g * in[k + j * c.dilation];
          d_in[k + j * c.dilation] += g * weight.values[ch * K + j];
        }
      }
      for (int64_t i = 0; i < reach; ++i) dstart.values[(b * D + ch) * reach + i] = d_in[i];
      for (int64_t k = 0; k < L; ++k) dx.values[cell(k)] = d_in[reach + k];
    }

  nvsubq_conv1d_args a = {};
  a.batch = Bn, a.length = L, a.width = D, a.taps = K, a.dilation = c.dilation, a.state_width = reach, a.blocks = 1;
  a.flags = (w ? NVSUBQ_DOUBLE : 0) | (c.silu ? NVSUBQ_SILU : 0);
  a.x = x.tensor(), a.weight = weight.tensor(), a.bias = bias.tensor(), a.initial_state = start.tensor();
  a.y = y.tensor(), a.final_state = end.tensor(), a.d_y = dy.tensor(), a.d_final_state = dend.tensor();
  a.d_x = dx.tensor(), a.d_weight = dweight.tensor(), a.d_bias = dbias.tensor(), a.d_initial_state = dstart.tensor();
  std::vector<int64_t> index(size_t(L) + 1);
  if (c.reverse) {
    for (int64_t k = 0; k < L; ++k) index[k] = L - 1 - k;
    a.index.data = index.data(), a.index.dtype = NVSUBQ_I64, a.index.flags = NVSUBQ_PRESENT;
    a.index.stride[1] = a.index.stride[2] = 1;
  }
  CALL(conv1d, a, level, c.threads);
  char call[96];
  snprintf(call, sizeof call, "causal_conv1d, %s, %s", nvsubq_level_name(level), c.name);
  y.expect(call, "y"), end.expect(call, "final_state"), dx.expect(call, "d_x"), dweight.expect(call, "d_weight");
  dbias.expect(call, "d_bias"), dstart.expect(call, "d_initial_state");
}

const Case cases[] = {
    {"one cell", 1, 1, 1, 1, 1, false, false, false, 1},
    {"odd sizes", 2, 67, 37, 4, 1, true, false, false, 1},
    {"dilated, reverse", 2, 300, 19, 3, 4, true, true, false, 2},
    {"shorter than its reach", 1, 3, 17, 5, 2, false, false, false, 1},
    {"fp64", 1, 131, 21, 4, 1, true, true, true, 2},
};

}  // namespace

void check_conv(int64_t level) {
  for (const Case& c : cases) run(c, level);
}

// Claims one row more than there is memory for: a sanitizer has to end the program here.
void overrun() {
  const int64_t L = 9, D = 5;
  Tensor x({1, L, D}, false), weight({D, 2}, false), y({1, L - 1, D}, false);
  x.draw(), weight.draw();
  nvsubq_conv1d_args a = {};
  a.size = sizeof a, a.abi = NVSUBQ_ABI, a.threads = 1;
  a.batch = 1, a.length = L, a.width = D, a.taps = 2, a.dilation = 1, a.blocks = 1;
  a.x = x.tensor(), a.weight = weight.tensor(), a.y = y.tensor();
  a.workspace_bytes = nvsubq_conv1d_workspace(&a);
  a.workspace = malloc(size_t(a.workspace_bytes));
  nvsubq_conv1d_forward(&a);
  free(a.workspace);
}
