// `rglru_scan`: the two gates, the decay and the normaliser of a cell.
#ifndef NVSUBQ_CUDA_RGLRU_SCAN_CELL_CUH
#define NVSUBQ_CUDA_RGLRU_SCAN_CELL_CUH

#include "../chain.cuh"
#include "../math.cuh"

namespace nvsubq {

using Rglru = nvsubq_rglru_scan_args;

// As numerics.SQRT_MAX_DERIVATIVE: the square root's derivative is infinite where the decay is 1.
constexpr double kMaxDerivative = 1000.0;

// Steps of a chunk and chunks of a tile, of the forward and of the backward. A forward keeps the states that enter the
// tiles of the backward.
template <class T>
struct RglruSizes {
  static constexpr int words = int(sizeof(T) / 4), warps = 8, steps = 16 / words;
  static constexpr int warps_back = 8, steps_back = 8 / words, tile_back = warps_back * steps_back;
};

// What is no number stays none, other than with fminf.
NVSUBQ_BOTH float min_or_nan(float x, float y) {
  float z;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}
NVSUBQ_BOTH double min_or_nan(double x, double y) { return x > y ? y : x; }

// exp(x) - 1 from y = x log2(e) <= 0, with a small relative error everywhere. In fp64 from x itself.
NVSUBQ_BOTH float expm1_of(float y) {
  float p = 8.8518359e-3f;  // (2^y - 1) / y between -0.3 and 0, with a relative error of 1.2e-7
  p = fmaf(p, y, 5.5361710e-2f);
  p = fmaf(p, y, 2.4021794e-1f);
  p = fmaf(p, y, 6.9314710e-1f);
  p *= y;
  const float far = exp2_always(y) - 1.0f;
  return y > -0.3f ? p : far;
}
NVSUBQ_BOTH double expm1_of(double x) { return expm1(x); }

// What a logit is multiplied with so that `power_of_scaled` gives exp(-x), and what makes `expm1_of`'s argument.
template <class T>
constexpr T kLogScale = sizeof(T) == 4 ? T(1.4426950408889634074) : T(1);
NVSUBQ_BOTH float power_of_scaled(float x) { return exp2_of(-x); }
NVSUBQ_BOTH double power_of_scaled(double x) { return exp(-x); }

// A sigmoid and, if BOTH, 1 minus it, to full relative accuracy, of x / kLogScale.
template <class T, bool BOTH = true>
struct Gate {
  T open, shut;
  NVSUBQ_BOTH explicit Gate(T scaled) {
    const T e = min_or_nan(power_of_scaled(scaled), T(sizeof(T) == 4 ? 8e37 : 8e307));  // infinity times 0 is no number
    open = reciprocal(T(1) + e);
    shut = e * open;
  }
};
template <class T>
struct Gate<T, false> {
  T open;
  NVSUBQ_BOTH explicit Gate(T scaled) : open(reciprocal(T(1) + power_of_scaled(scaled))) {}
};

// x Phi(x): GELU by the error function, and its derivative.
NVSUBQ_BOTH Slope<float> gelu_erf(float x) {
  const float below = normcdff(x);
  return {x * below, fmaf(x * 0.39894228040143267794f, exp2_of(x * x * -0.72134752044448170368f), below)};
}
NVSUBQ_BOTH Slope<double> gelu_erf(double x) {
  const double below = normcdf(x);
  return {x * below, below + x * 0.39894228040143267794 * exp(-0.5 * x * x)};
}
// x (1 + tanh(q))/2 = x sigmoid(2 q), q = sqrt(2/pi) (x + 0.044715 x^3).
template <class T>
NVSUBQ_BOTH Slope<T> gelu_tanh(T x) {
  constexpr T twice = T(1.5957691216057307118), cubic = T(0.044715);
  const T square = x * x;
  const Gate<T> g(kLogScale<T> * twice * x * (T(1) + cubic * square));
  return {x * g.open, g.open + x * g.open * g.shut * twice * (T(1) + 3 * cubic * square)};
}

// The decay, (1 - decay^2)^(1/2) and the two gates of one cell.
template <class T, bool BOTH = true>
struct Opened {
  Gate<T, BOTH> r, i;
  T decay, norm;

  // Logits and rate come times kLogScale.
  NVSUBQ_BOTH Opened(T r_logit, T i_logit, T rate) : r(r_logit), i(i_logit) {
    const T less = expm1_of(rate * r.open);  // decay - 1
    decay = less + T(1);
    norm = root_of(-less * (less + T(2)));
  }
};

// What is fixed of one channel: c log sigmoid(a_log), and the biases times kLogScale.
template <class T>
struct RglruChannel {
  int channel;
  T rate, r_bias, i_bias;
  bool gated, by_tanh;
  uint32_t unscaled;  // bit 0: the input of the walk's first cell is not scaled, bit 1: nor that of a sequence's

  NVSUBQ_BOTH RglruChannel(const Rglru& a, const TilePlace& place, int which = 0)
      : channel(place.channel + which), rate(0), r_bias(0), i_bias(0), gated(present(a.gate)),
        by_tanh(a.flags & NVSUBQ_GELU_TANH) {
    unscaled = !(a.flags & NVSUBQ_UNSCALED_FIRST) ? 0 : present(a.initial_state) ? 2 : 3;
    if (!place.live) return;
    const T logit = read_any<T>(a.a_log, channel * a.a_log.stride[0]);
    const T below = log1p_of(power_of_scaled(fabs(logit) * kLogScale<T>));
    rate = T(__longlong_as_double(a.c_bits)) * (min_or_nan(logit, T(0)) - below);
    if (present(a.r_bias)) r_bias = kLogScale<T> * read_any<T>(a.r_bias, channel * a.r_bias.stride[0]);
    if (present(a.i_bias)) i_bias = kLogScale<T> * read_any<T>(a.i_bias, channel * a.i_bias.stride[0]);
  }

  template <bool BOTH = true>
  NVSUBQ_BOTH Opened<T, BOTH> open_cell(T r, T i) const {
    return Opened<T, BOTH>(fused(r, kLogScale<T>, r_bias), fused(i, kLogScale<T>, i_bias), rate * kLogScale<T>);
  }
  // The steps before which nothing came and whose input is taken as it is, as bits.
  template <int R>
  NVSUBQ_BOTH uint32_t unscaled_of(const Chunk<R>& chunk) const {
    return (unscaled & 2 ? chunk.starts : 0u) | (unscaled & 1 && chunk.first == 0 ? 1u : 0u);
  }
  NVSUBQ_BOTH Slope<T> gelu(T x) const { return by_tanh ? gelu_tanh(x) : gelu_erf(x); }

  // Decays (in place of r) and inputs (of i) of some steps; bit j of `plain`: step j's input is not scaled.
  template <int R>
  NVSUBQ_BOTH void make(uint32_t plain, T (&r)[R], T (&i)[R], const T (&x)[R]) const {
#pragma unroll
    for (int j = 0; j < R; ++j) {
      const auto o = open_cell<false>(r[j], i[j]);
      r[j] = o.decay;
      i[j] = o.i.open * x[j];
      i[j] = plain >> j & 1 ? i[j] : i[j] * o.norm;
    }
  }
};

// Steps that are not visited keep the state: their decay is 1, their input 0.
template <int R, class T>
NVSUBQ_BOTH void keep_state(const Chunk<R>& chunk, T (&decay)[R], T (&in)[R]) {
  if (chunk.visited < R) {
#pragma unroll
    for (int j = 0; j < R; ++j) {
      decay[j] = j < chunk.visited ? decay[j] : T(1);
      in[j] = j < chunk.visited ? in[j] : T(0);
    }
  }
}

int64_t rglru_workspace(const Rglru& a);
int rglru_forward(const Rglru& a, cudaStream_t stream);
// The forward of two channels a lane, where the tensors over cells have one dtype of at most 32 bits and lie so.
bool in_pairs(const Rglru& a);
int64_t pairs_workspace(const Rglru& a);
int forward_in_pairs(const Rglru& a, cudaStream_t stream);
int rglru_backward(const Rglru& a, cudaStream_t stream);

}  // namespace nvsubq

#endif
