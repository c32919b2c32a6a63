// `selective_scan`, backward, fast: how a warp moves steps of its channels between global memory and a slot.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_PACKETS_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_PACKETS_CUH

#include "window.cuh"

namespace nvsubq::selective {

// What a warp reads or writes at once: STEPS steps of its channels of some tensors, 16 bytes a lane (or twice so many),
// which lie in a slot as [tensor][step][channel].
template <class S, int STEPS>
struct Packets {
  static constexpr int kOfStep = kOwn / kLanes<S>, kRounds = sizeof(S) / 2;
  Window::Rows rows[kRounds];
  int step, valid[kRounds];  // channels that are there

  __device__ __forceinline__ Packets(const Window& m, Tensor first, int tensors, const Place& p, int there)
      : step(p.lane / kOfStep % STEPS) {
    const int channel = p.warp * kOwn + p.lane % kOfStep * kLanes<S>;
    const int left = there < channel ? 0 : there - channel < kLanes<S> ? there - channel : kLanes<S>;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int tensor = (p.lane + 32 * r) / (kOfStep * STEPS);
      const Window::Rows found = m.rows[first + (tensor < tensors ? tensor : 0)];
      valid[r] = tensor < tensors ? left : 0;
      rows[r] = {found.begin + (left ? channel * sizeof(S) : 0), found.stride};
    }
  }
  __device__ __forceinline__ S* at(int32_t cell, int r) const {
    return rows[r].template at<S>(uint32_t(cell));
  }

  struct Asked {
    uint4 of[kRounds];
  };
  // PACKED: 16 bytes lie on multiples of their size, and all of them are there, or none.
  template <bool PACKED>
  __device__ __forceinline__ void ask(Asked& to, const int32_t* cells) const {
    const int32_t cell = some_cell(cells[step]);
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const S* const from = at(cell, r);
      if constexpr (PACKED) {
        to.of[r] = load_passing(from);
      } else {
        Pack<S, kLanes<S>> x;
#pragma unroll
        for (int j = 0; j < kLanes<S>; ++j) x.lane[j] = j < valid[r] ? from[j] : narrow<S>(0.0f);
        to.of[r] = *reinterpret_cast<const uint4*>(&x);
      }
    }
  }
  static __device__ __forceinline__ void put(float* slot, int lane, const Asked& from) {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) *reinterpret_cast<uint4*>(slot + 4 * (lane + 32 * r)) = from.of[r];
  }
  static __device__ __forceinline__ Asked take(const float* slot, int lane) {
    Asked x;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) x.of[r] = *reinterpret_cast<const uint4*>(slot + 4 * (lane + 32 * r));
    return x;
  }
  template <bool PACKED>
  __device__ __forceinline__ void write(const Asked& from, int32_t cell) const {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      if (cell < 0 || !valid[r]) continue;
      if constexpr (PACKED) {
        *reinterpret_cast<uint4*>(at(cell, r)) = from.of[r];
      } else {
        const auto x = *reinterpret_cast<const Pack<S, kLanes<S>>*>(&from.of[r]);
#pragma unroll
        for (int j = 0; j < kLanes<S>; ++j)
          if (j < valid[r]) at(cell, r)[j] = x.lane[j];
      }
    }
  }
};

}  // namespace nvsubq::selective

#endif
