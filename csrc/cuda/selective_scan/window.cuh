// `selective_scan`, backward, fast: what a block shares. It walks back over windows of 64 steps, with 64 channels: each
// warp, by itself, with 16. A lane has one channel and eight of its states: lanes 8c + 4h + t have channel 4c + t of
// their warp's, and states 8h .. 8h + 7.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_WINDOW_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_WINDOW_CUH

#include "pieces.cuh"

namespace nvsubq::selective {

constexpr int kTile = 4, kTiles = kWindow / kTile;  // steps whose states a lane holds
constexpr int kOwn = 16, kBlock = kOwn * kWarps;    // channels of a warp, and of a block
constexpr int kHeld = 8;                            // states of a lane

// A lane's place in a block.
struct Place {
  int warp, lane, g, t, half, own;  // own: the channel in the warp

  __device__ __forceinline__ Place()
      : warp(threadIdx.x / 32), lane(threadIdx.x % 32), g(lane / 4), t(lane % 4), half(g % 2), own(g / 2 * 4 + t) {}
  __device__ __forceinline__ int channel() const { return warp * kOwn + own; }  // in the block
};

// A warp's memory for one tile: the states that enter it, until it is walked back over; then its inputs, as they lie in
// global memory and as the walk takes them; its gradients; last its sums over channels, which `sum_at` finds.
struct alignas(16) Slot {
  float numbers[256];

  // Of d_B (which: its state) or d_C (16 further on). Steps do not meet in a bank.
  static __device__ __forceinline__ int sum_at(int step, int which) { return step * 32 + (which ^ 8 * (step & 1)); }
};

// The tensors by cell whose rows a warp reads, and writes.
enum Tensor { kDelta, kU, kZ, kCotangent, kGradU, kGradDelta, kGradZ, kTensors };

struct alignas(16) Window {
  Slot slots[kTiles][kWarps];
  float4 parked[kThreads];  // what a lane needs again where it makes a tile's gradients
  float B[kWindow][kMostFast], C[kWindow][kMostFast];
  struct alignas(16) Rows {
    uint64_t begin;   // an address in global memory
    uint32_t stride;  // in bytes
  } rows[kTensors];
  struct alignas(16) Visited : Cells<kWindow> {
  } cells[2];  // of this window and the next

  // Where a row's tensors begin, from channel `first` on; to be read after a barrier.
  template <class S>
  __device__ __forceinline__ void find_rows(const Selective& a, const Options& is, int64_t row, int64_t first) {
    const auto find = [&](Tensor which, const nvsubq_tensor& t) {
      if (threadIdx.x != kThreads - 1 - which) return;
      const Row<S> found(t, row, first);
      rows[which] = {uint64_t(__cvta_generic_to_global(found.data)), found.stride};
    };
    find(kDelta, a.delta), find(kU, a.u), find(kZ, is.gated ? a.z : a.u), find(kCotangent, a.d_y);
    find(kGradU, a.d_u), find(kGradDelta, a.d_delta), find(kGradZ, is.gated ? a.d_z : a.d_u);
  }

  // Lays B and C out.
  template <class S, bool WHOLE>
  __device__ __forceinline__ void lay(const Row<const S>& from_B, const Row<const S>& from_C, int left, int which) {
    constexpr int kAtOnce = kThreads / 4, kRounds = kWindow / kAtOnce;
    Pack<S, 4> B_of[kRounds], C_of[kRounds];
    const int k = threadIdx.x / 4, n = threadIdx.x % 4 * 4;
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int32_t cell = some_cell(cells[which].cell[k + i * kAtOnce]);
      B_of[i] = load_four<WHOLE>(from_B.at(cell), left), C_of[i] = load_four<WHOLE>(from_C.at(cell), left);
    }
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      alignas(16) float b[4], c[4];
      unpack(B_of[i], b), unpack(C_of[i], c);
#pragma unroll
      for (int j = 0; j < 4; ++j) b[j] = left > 0 ? b[j] : 0.0f, c[j] = left > 0 ? c[j] : 0.0f;
      *reinterpret_cast<float4*>(&B[k + i * kAtOnce][n]) = *reinterpret_cast<const float4*>(b);
      *reinterpret_cast<float4*>(&C[k + i * kAtOnce][n]) = *reinterpret_cast<const float4*>(c);
    }
  }
};

__device__ __forceinline__ void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
// Asks for a cell's rows, long before they are read.
template <class S>
__device__ __forceinline__ void ask_ahead(const Window& m, const Row<const S>& B, const Row<const S>& C, int32_t cell) {
  prefetch(B.at(cell)), prefetch(C.at(cell));
#pragma unroll
  for (const Tensor which : {kDelta, kU, kZ, kCotangent}) {
    const Window::Rows rows = m.rows[which];
    asm volatile("prefetch.global.L2 [%0];" ::"l"(rows.begin + uint64_t(uint32_t(cell)) * rows.stride));
  }
}

// What a warp reads or writes at once: STEPS steps of its channels of some tensors, 16 bytes a lane (or twice so many),
// which lie in a slot as [tensor][step][channel].
template <class S, int STEPS>
struct Packets {
  static constexpr int kOfStep = kOwn / kLanes<S>, kRounds = sizeof(S) / 2;
  uint64_t begin[kRounds];
  uint32_t stride[kRounds];
  int step, valid[kRounds];  // channels that are there

  __device__ __forceinline__ Packets(const Window& m, Tensor first, int tensors, const Place& p, int there)
      : step(p.lane / kOfStep % STEPS) {
    const int channel = p.warp * kOwn + p.lane % kOfStep * kLanes<S>;
    const int left = there < channel ? 0 : there - channel < kLanes<S> ? there - channel : kLanes<S>;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int tensor = (p.lane + 32 * r) / (kOfStep * STEPS);
      const Window::Rows rows = m.rows[first + (tensor < tensors ? tensor : 0)];
      valid[r] = tensor < tensors ? left : 0, stride[r] = rows.stride;
      begin[r] = rows.begin + (left ? channel * sizeof(S) : 0);
    }
  }
  __device__ __forceinline__ S* at(int32_t cell, int r) const {
    return static_cast<S*>(__cvta_global_to_generic(begin[r] + uint64_t(uint32_t(cell)) * stride[r]));
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
        to.of[r] = *reinterpret_cast<const uint4*>(from);
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
  template <bool PACKED>
  __device__ __forceinline__ void write(float* slot, int lane, const int32_t* cells) const {
    const int32_t cell = cells[step];
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      if (cell < 0 || !valid[r]) continue;
      const float* const from = slot + 4 * (lane + 32 * r);
      if constexpr (PACKED) {
        *reinterpret_cast<uint4*>(at(cell, r)) = *reinterpret_cast<const uint4*>(from);
      } else {
        const auto x = *reinterpret_cast<const Pack<S, kLanes<S>>*>(from);
#pragma unroll
        for (int j = 0; j < kLanes<S>; ++j)
          if (j < valid[r]) at(cell, r)[j] = x.lane[j];
      }
    }
  }
};

}  // namespace nvsubq::selective

#endif
