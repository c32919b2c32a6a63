// `selective_scan`, backward, fast: a window's gradients, from the sums over states.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_BACKWARD_WRITING_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_BACKWARD_WRITING_CUH

#include "window.cuh"

namespace nvsubq::selective {

template <class S>
struct Writer {
  const Layer<S>& from;
  Row<S> d_u, d_delta, d_z;

  __device__ __forceinline__ Writer(const Layer<S>& layer, const Selective& a, int64_t row, int64_t first)
      : from(layer), d_u(a.d_u, row, first + (layer.valid ? 4 * layer.four : 0)),
        d_delta(a.d_delta, row, first + (layer.valid ? 4 * layer.four : 0)),
        d_z(layer.is.gated ? a.d_z : a.d_u, row, first + (layer.valid ? 4 * layer.four : 0)) {}

  template <bool WHOLE>
  __device__ __forceinline__ void write(int steps, float (&d_skip)[4], float (&d_bias)[4]) const {
    const Window& m = from.m;
    Pack<S, 4> u_of[kRounds], delta_of[kRounds], z_of[kRounds], d_y_of[kRounds];
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int32_t read = some_cell(from.cell(i));
      u_of[i] = load_four<WHOLE>(from.u.at(read), from.valid), z_of[i] = load_four<WHOLE>(from.z.at(read), from.valid);
      delta_of[i] = load_four<WHOLE>(from.delta.at(read), from.valid);
      d_y_of[i] = load_four<WHOLE>(from.d_y.at(read), from.valid);
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
        const int at = from.at(j, i);
        const float sum = (&m.out[0][0])[at], by_w = (&m.w[0][0])[at];
        const float by_d = (&m.d[0][0])[at] * kLn2;
        const float raw = deltas[j] + from.bias[j];
        const float e = exp2_of(-fabsf(raw) * kLog2e), over = reciprocal(1.0f + e);
        const float d = from.is.soft ? fmaxf(raw, 0.0f) + log1p_of(e) : raw;
        const float slope = from.is.soft ? (raw < 0.0f ? e * over : over) : 1.0f;
        const float gate = fast_sigmoid(zs[j]), silu = from.is.gated ? zs[j] * gate : 1.0f;
        const float out = d_ys[j] * silu, y = fmaf(from.skip[j], us[j], sum);
        dus[j] = fmaf(d, by_w, from.skip[j] * out);
        dds[j] = fmaf(us[j], by_w, by_d) * slope;
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
