// `selective_scan`, backward, fast: what belongs to a channel's steps, made of its inputs and into its gradients. Of each
// tile a lane makes two steps; the other two are the lane's that has the channel's other states.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_BACKWARD_INPUTS_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_BACKWARD_INPUTS_CUH

#include "window.cuh"

namespace nvsubq::selective {

// A lane's channel. USUAL: with softplus and a gate, else as the options say.
template <class S, bool USUAL>
struct Channel {
  const Options& is;
  float bias, skip;
  bool there;

  __device__ __forceinline__ Channel(const Selective& a, const Options& options, int64_t first, int channel, int count)
      : is(options), bias(of_channel(a.delta_bias, first, channel, count)), skip(of_channel(a.D, first, channel, count)),
        there(channel < count) {}

  __device__ __forceinline__ bool soft() const { return USUAL || is.soft; }
  __device__ __forceinline__ bool gated() const { return USUAL || is.gated; }

  // delta and delta u of four steps; raw: delta of the first, and u `to_u` further on.
  __device__ __forceinline__ void lay(const S* raw, int to_u, const int32_t* cells, float (&d)[4], float (&w)[4]) const {
    const int4 cell = *reinterpret_cast<const int4*>(cells);
    const int32_t cell_of[4] = {cell.x, cell.y, cell.z, cell.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float delta = widen<float>(raw[i * kOwn]) + bias, soft_of = fast_softplus(delta);
      d[i] = cell_of[i] >= 0 ? (soft() ? soft_of : delta) : 0.0f, w[i] = d[i] * widen<float>(raw[to_u + i * kOwn]);
    }
  }

  // Of two steps, as they are read.
  struct Raw {
    S of[4][2];
    int2 cell;
  };
  static __device__ __forceinline__ Raw read(const S* raw, const int32_t* cells) {
    Raw x;
    x.cell = *reinterpret_cast<const int2*>(cells);
#pragma unroll
    for (int which = 0; which < 4; ++which)
#pragma unroll
      for (int i = 0; i < 2; ++i) x.of[which][i] = raw[(which * kTile + i) * kOwn];
    return x;
  }
  struct Laid {
    float d[2], w[2], out[2], u[2], slope[2], by_z[2];  // out: the cotangent of y; by_z: of z, for y
  };
  __device__ __forceinline__ Laid lay(const Raw& raw) const {
    Laid x;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool here = (i ? raw.cell.y : raw.cell.x) >= 0;
      const auto of = [&](Tensor which) { return widen<float>(raw.of[which][i]); };
      const float delta = of(kDelta) + bias, e = exp2_always(-fabsf(delta) * kLog2e), over = reciprocal(1.0f + e);
      const float soft_of = fmaxf(delta, 0.0f) + log1p_of(e), slope = soft() ? (delta < 0.0f ? e * over : over) : 1.0f;
      x.u[i] = of(kU), x.d[i] = here ? (soft() ? soft_of : delta) : 0.0f, x.w[i] = x.d[i] * x.u[i];
      x.slope[i] = here ? slope : 0.0f;
      const float given = of(kCotangent), cotangent = here && there ? given : 0.0f, z = of(kZ);
      const float gate = fast_sigmoid(z), part = cotangent * gate;
      x.out[i] = gated() ? part * z : cotangent, x.by_z[i] = part * fmaf(z, 1.0f - gate, 1.0f);
    }
    return x;
  }
};

}  // namespace nvsubq::selective

#endif
