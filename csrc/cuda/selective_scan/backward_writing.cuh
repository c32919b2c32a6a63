// `selective_scan`, backward, fast: a window's gradients, from the sums over states.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_BACKWARD_WRITING_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_BACKWARD_WRITING_CUH

#include "backward_computing.cuh"
#include "laying.cuh"

namespace nvsubq::selective {

template <class S>
struct Writer {
  using Column = typename Layer<S>::Column;
  const Layer<S>& from;
  const BackwardMemory& m;
  Column d_u, d_delta, d_z;
  int sums;  // where by_w of this thread's first step and channel lies

  __device__ __forceinline__ Writer(const Layer<S>& layer, const BackwardMemory& memory)
      : from(layer), m(memory), d_u(layer.column(kGradU)), d_delta(layer.column(kGradDelta)),
        d_z(layer.column(kGradZ)) {
    const SumAt first(4 * from.four, from.first_row % kTile);
    sums = (from.first_row / kTile * kWide + first.channel) * kMostFast + first.index;
  }

  template <bool WHOLE>
  __device__ __forceinline__ void write(int steps, float (&d_skip)[4], float (&d_bias)[4]) const {
    constexpr int kRound = kAtOnce / kTile * kWide * kMostFast;
    const Window& w = m.window;
    Pack<S, 4> u_of[kRounds], delta_of[kRounds], z_of[kRounds], d_y_of[kRounds];
    const Column u = from.column(kU), delta = from.column(kDelta), z = from.column(kZ), d_y = from.column(kCotangent);
    alignas(16) float bias[4], skip[4];
    from.read_four(w.bias, bias), from.read_four(w.skip, skip);
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int32_t read = some_cell(from.cell(i));
      u_of[i] = load_four<WHOLE>(u.at(read), from.valid), z_of[i] = load_four<WHOLE>(z.at(read), from.valid);
      delta_of[i] = load_four<WHOLE>(delta.at(read), from.valid);
      d_y_of[i] = load_four<WHOLE>(d_y.at(read), from.valid);
    }
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      if (i * kAtOnce >= steps) break;
      const int32_t here = from.cell(i);
      if (here < 0) continue;
      float us[4], deltas[4], zs[4], d_ys[4], dus[4], dds[4], dzs[4];
      unpack(u_of[i], us), unpack(delta_of[i], deltas), unpack(z_of[i], zs), unpack(d_y_of[i], d_ys);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float d = w.d[from.at(j, i)], out = w.out[from.in_pairs(j, i)];
        const auto sum_of = [&](int which) {
          return (&m.entering[0][0][0])[(sums ^ (kMostFast * j + 4 * (j / 2)) ^ 4 * which) + i * kRound];
        };
        const float by_w = sum_of(0), by_d = sum_of(1), sum = sum_of(2) * (kExact<S> ? 1.0f : kCut);
        const float raw = deltas[j] + bias[j];
        const float e = exp2_of(-fabsf(raw) * kLog2e), over = reciprocal(1.0f + e);
        const float slope = from.is.soft ? (raw < 0.0f ? e * over : over) : 1.0f;
        const float gate = fast_sigmoid(zs[j]), y = fmaf(skip[j], us[j], sum);
        dus[j] = fmaf(d, by_w, skip[j] * out);
        dds[j] = fmaf(by_d, kLn2, us[j] * by_w) * slope;
        dzs[j] = d_ys[j] * y * gate * fmaf(zs[j], 1.0f - gate, 1.0f);
        d_skip[j] = fmaf(out, us[j], d_skip[j]), d_bias[j] += dds[j];
      }
      store_four<WHOLE>(d_u.at(here), pack<S>(dus), from.valid);
      store_four<WHOLE>(d_delta.at(here), pack<S>(dds), from.valid);
      if (from.is.gated) store_four<WHOLE>(d_z.at(here), pack<S>(dzs), from.valid);
    }
  }
  template <bool WHOLE>
  __device__ __forceinline__ void clear(int32_t cell) const {
    const float zeros[4] = {0, 0, 0, 0};
    store_four<WHOLE>(d_u.at(cell), pack<S>(zeros), from.valid);
    store_four<WHOLE>(d_delta.at(cell), pack<S>(zeros), from.valid);
    if (from.is.gated) store_four<WHOLE>(d_z.at(cell), pack<S>(zeros), from.valid);
  }
};

}  // namespace nvsubq::selective

#endif
