// `selective_scan`, backward, fast: what the walk takes, made of the tensors by channel. Of a tile a lane makes two
// steps of one channel: those that the tensor cores' matrices, turned on reading, leave it.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_BACKWARD_INPUTS_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_BACKWARD_INPUTS_CUH

#include "packets.cuh"

namespace nvsubq::selective {

// Two steps of a channel, as they are read.
template <class S>
struct TwoSteps {
  uint32_t bits;

  __device__ __forceinline__ float at(int i) const {
    if constexpr (std::is_same_v<S, bf16>)
      return bf16_of(bits, i);
    else
      return __half2float(__ushort_as_half(uint16_t(i ? bits >> 16 : bits)));
  }
};
template <>
struct TwoSteps<float> {
  float of[2];

  __device__ __forceinline__ float at(int i) const { return of[i]; }
};

// What a lane reads of STEPS steps of some tensors, [tensor][step][channel], STEPS / 2 of them for each: four times two
// steps in all.
template <class S, int STEPS>
struct Reader {
  static constexpr bool kTurns = sizeof(S) == 2;
  static constexpr int kTwos = STEPS / kTile;  // of a tensor
  int at;                                      // of 16 bits: of the row whose address this lane has

  __device__ __forceinline__ explicit Reader(const Place& p) {
    const int row = p.lane % 8, which = p.lane / 8;
    const int step = row / 2 % 2 * (STEPS / 2) + which % kTwos * 2 + row % 2;
    at = kTurns ? (which / kTwos * STEPS + step) * kOwn + row / 4 * 8 : p.two * (STEPS / 2) * kOwn + p.made;
  }
  __device__ __forceinline__ void read(const float* slot, TwoSteps<S> (&x)[4]) const {
    const S* const from = reinterpret_cast<const S*>(slot) + at;
    if constexpr (kTurns) {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(x[0].bits), "=r"(x[1].bits), "=r"(x[2].bits), "=r"(x[3].bits)
                   : "r"(uint32_t(__cvta_generic_to_shared(from)))
                   : "memory");
    } else {
#pragma unroll
      for (int which = 0; which < 4; ++which)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          x[which].of[i] = from[(which / kTwos * STEPS + which % kTwos * 2 + i) * kOwn];
    }
  }
};

// Makes them, of the lane's channel. USUAL: with softplus and a gate, and with packets that lie on multiples of their
// size; else as the options say, and element by element.
template <class S, bool USUAL>
struct Maker {
  const Options& is;
  float bias;
  bool there;

  __device__ __forceinline__ bool soft() const { return USUAL || is.soft; }
  __device__ __forceinline__ bool gated() const { return USUAL || is.gated; }

  // delta and delta u of four steps. x: delta, delta, u, u.
  __device__ __forceinline__ void make(const TwoSteps<S> (&x)[4], const int32_t* cells, float (&d)[4],
                                       float (&w)[4]) const {
    const int4 cell = *reinterpret_cast<const int4*>(cells);
    const int32_t cell_of[4] = {cell.x, cell.y, cell.z, cell.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float delta = x[i / 2].at(i % 2) + bias, soft_of = fast_softplus(delta);
      d[i] = cell_of[i] >= 0 ? (soft() ? soft_of : delta) : 0.0f, w[i] = d[i] * x[2 + i / 2].at(i % 2);
    }
  }

  // Of two steps. x: of each tensor.
  struct Made {
    float d[2], w[2], out[2], u[2], slope[2], by_z[2];  // out: the cotangent of y; by_z: of z, for y
  };
  __device__ __forceinline__ Made make(const TwoSteps<S> (&x)[4], const int32_t* cells) const {
    Made to;
    const int2 cell = *reinterpret_cast<const int2*>(cells);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool here = (i ? cell.y : cell.x) >= 0;
      const float delta = x[kDelta].at(i) + bias, e = exp2_always(-fabsf(delta) * kLog2e), over = reciprocal(1.0f + e);
      const float soft_of = fmaxf(delta, 0.0f) + log1p_of(e), slope = soft() ? (delta < 0.0f ? e * over : over) : 1.0f;
      to.u[i] = x[kU].at(i), to.d[i] = here ? (soft() ? soft_of : delta) : 0.0f, to.w[i] = to.d[i] * to.u[i];
      to.slope[i] = here ? slope : 0.0f;
      const float cotangent = here && there ? x[kCotangent].at(i) : 0.0f, z = x[kZ].at(i);
      const float gate = fast_sigmoid(z), part = cotangent * gate;
      to.out[i] = gated() ? part * z : cotangent, to.by_z[i] = part * fmaf(z, 1.0f - gate, 1.0f);
    }
    return to;
  }
};

}  // namespace nvsubq::selective

#endif
