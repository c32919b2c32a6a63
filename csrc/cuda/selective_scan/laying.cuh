// `selective_scan`, fast: how the threads of a block lay a window out.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_LAYING_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_LAYING_CUH

#include "window.cuh"

namespace nvsubq::selective {

// Asks for a cell's rows before they are laid out.
__device__ __forceinline__ void ask_ahead(const Window& m, int32_t cell) {
  for (const Tensor which : {kDelta, kU, kB, kZ, kCotangent, kC}) {
    const Window::Place place = m.places[which];
    asm volatile("prefetch.global.L2 [%0];" ::"l"(place.begin + uint64_t(uint32_t(cell)) * place.stride));
  }
}

// What lays a window out, and knows a thread's four channels.
template <class S>
struct Layer {
  const Options& is;
  Window& m;
  int states, four, first_row, valid, place, pair_place;  // places: of the first channel at `first_row`

  __device__ __forceinline__ Layer(const Selective& a, const Options& options, Window& memory, int there)
      : is(options), m(memory), states(int(a.states)), four(threadIdx.x % (kWide / 4)),
        first_row(threadIdx.x / (kWide / 4)), valid(there - 4 * four),
        place(single(4 * four, first_row)), pair_place(paired(4 * four, first_row)) {
    valid = valid < 0 ? 0 : valid > 4 ? 4 : valid;
  }
  // This thread's channels of a tensor; where it has none, some that are there.
  struct Column {
    uint64_t begin;
    uint32_t stride;
    __device__ __forceinline__ S* at(int32_t cell) const {
      return static_cast<S*>(__cvta_global_to_generic(begin + uint64_t(uint32_t(cell)) * stride));
    }
  };
  __device__ __forceinline__ Column column(Tensor which, int offset) const {
    const Window::Place found = m.places[which];
    return {found.begin + uint32_t(offset * int(sizeof(S))), found.stride};
  }
  __device__ __forceinline__ Column column(Tensor which) const { return column(which, valid ? 4 * four : 0); }
  // Where step first_row + i kAtOnce of channel j lies.
  __device__ __forceinline__ int at(int j, int i) const { return place + kRow * j + i * kAtOnce; }
  __device__ __forceinline__ int in_pairs(int j, int i) const { return pair_place + 2 * kRow * j + 2 * i * kAtOnce; }
  __device__ __forceinline__ void read_four(const float (&of)[kWide], float (&to)[4]) const {
    *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(&of[4 * four]);
  }
  __device__ __forceinline__ int32_t cell(int i) const { return m.cells.cell[first_row + i * kAtOnce]; }
  // The rows of d_y and z are those of channels that are there, but a cut row's cotangents must be 0.
  __device__ __forceinline__ bool counts(int j) const { return j < valid; }

  // A window's inputs, all asked for before the first is used.
  template <bool WHOLE>
  __device__ __forceinline__ void lay(int steps) const {
    constexpr int kStateRounds = kWindow * 4 / kBackThreads, kStateRows = kBackThreads / 4;
    Pack<S, 4> u_of[kRounds], delta_of[kRounds], z_of[kRounds], d_y_of[kRounds], B_of[kStateRounds], C_of[kStateRounds];
    const int k = threadIdx.x / 4, n = threadIdx.x % 4 * 4, left = states - n;
    const Column u = column(kU), delta = column(kDelta), z = column(kZ), d_y = column(kCotangent);
    const Column B = column(kB, left > 0 ? n : 0), C = column(kC, left > 0 ? n : 0);
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int32_t from = some_cell(cell(i));
      delta_of[i] = load_four<WHOLE>(delta.at(from), valid);
      z_of[i] = load_four<WHOLE>(z.at(from), valid);
      d_y_of[i] = load_four<WHOLE>(d_y.at(from), valid);
      u_of[i] = load_four<WHOLE>(u.at(from), valid);
    }
#pragma unroll
    for (int i = 0; i < kStateRounds; ++i) {
      const int32_t from = some_cell(m.cells.cell[k + i * kStateRows]);
      C_of[i] = load_four<WHOLE>(C.at(from), left);
      B_of[i] = load_four<WHOLE>(B.at(from), left);
    }
    alignas(16) float bias[4];
    read_four(m.bias, bias);
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      if (i * kAtOnce >= steps) break;
      const bool here = cell(i) >= 0;
      float deltas[4], us[4], zs[4], d_ys[4];
      unpack(delta_of[i], deltas), unpack(u_of[i], us), unpack(z_of[i], zs), unpack(d_y_of[i], d_ys);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float raw = deltas[j] + bias[j], soft = fast_softplus(raw), known = is.soft ? soft : raw;
        const float d = here ? known : 0.0f;
        m.d[at(j, i)] = d;
        m.w[in_pairs(j, i)] = d * us[j];
        const float gate = zs[j] * fast_sigmoid(zs[j]), out = is.gated ? d_ys[j] * gate : d_ys[j];
        m.out[in_pairs(j, i)] = here && counts(j) ? out : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < kStateRounds; ++i) {
      const int step = k + i * kStateRows;
      const auto put = [&](const Pack<S, 4>& from, float(&to)[kMostFast][2]) {
        float x[4];
        unpack(from, x);
#pragma unroll
        for (int j = 0; j < 4; ++j) to[n + j][step % 2] = left > 0 ? x[j] : 0.0f;
      };
      put(B_of[i], m.B[step / 2]), put(C_of[i], m.C[step / 2]);
    }
  }
};

}  // namespace nvsubq::selective

#endif
