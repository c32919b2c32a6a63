// `ssd_scan`: a tile of numbers in shared memory, for what is not a product: sums over its rows or columns, and whole
// rows to memory.
#ifndef NVSUBQ_CUDA_SSD_SCAN_STAGE_CUH
#define NVSUBQ_CUDA_SSD_SCAN_STAGE_CUH

#include "chunk.cuh"

namespace nvsubq::ssd {

template <class Math>
struct Stage {
  using T = typename Math::T;
  static constexpr int S = Math::kSide, kPitch = S + 1, kBytes = (S * kPitch * int(sizeof(T)) + 15) / 16 * 16;
  // Threads that share a sum.
  static constexpr int kShare = Math::kThreads / S;

  T* data;
  __device__ explicit Stage(char* memory) : data(reinterpret_cast<T*>(memory)) {}
  __device__ __forceinline__ T& at(int r, int c) { return data[r * kPitch + c]; }

  __device__ __forceinline__ void put(typename Math::Sum& sum) {
    sum.each([&](int r, int c, T& x) { at(r, c) = x; });
  }
  __device__ __forceinline__ void take8(int r, int c, T (&v)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = data[r * kPitch + c + i];
  }
};

// to[i] (+)= the sum over k of f(i, k), for each i of a tile's side, in a fixed order. All threads call it; `parts` has
// room for a number of each thread.
template <class Math, class N, class F>
__device__ __forceinline__ void sum_lines(N* parts, N* to, bool add, F f) {
  constexpr int S = Math::kSide, kShare = Math::kThreads / S;
  const int i = threadIdx.x % S, share = threadIdx.x / S;
  N sum = 0;
#pragma unroll 8
  for (int k = share; k < S; k += kShare) sum += f(i, k);
  parts[threadIdx.x] = sum;
  __syncthreads();
  if (!share) {
    for (int j = 1; j < kShare; ++j) sum += parts[i + j * S];
    to[i] = add ? to[i] + sum : sum;
  }
  __syncthreads();
}

// Writes y of the lanes from `lane` on: what `stage` has and D x, through the gates.
template <class Math>
__device__ __forceinline__ void write_outputs(const Call<Math>& call, const Chunk<Math>& chunk, Stage<Math>& stage,
                                              const typename Math::Given& x, Packs<Math>& gates, int64_t row,
                                              int64_t head, int lane) {
  using T = typename Math::T;
  const Ssd& a = call.a;
  const Rows8 to = rows_of(a.y, row, head, lane, a.head_width);
  gates.each([&](int r, int c, T(&gate)[8]) {
    if (chunk.cell[r] < 0 || lane + c >= a.head_width) return;
    T v[8], given[8];
    stage.take8(r, c, v);
    x.get8(r, c, given);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      if (present(a.D)) v[k] += chunk.skip[c + k] * given[k];
      if (present(a.z)) v[k] *= silu(gate[k]);
    }
    to.write(chunk.cell[r], c, v);
  });
}

}  // namespace nvsubq::ssd

#endif
