// `selective_scan`, fast: what the backward works on. A window of 64 steps of 32 channels lies in shared memory, laid
// out by all threads; then each warp walks over it with 8 channels. A lane has channels t and t + 4 and states 2g and
// 2g + 1 of its warp's (t = lane % 4, g = lane / 4): a product of the tensor cores adds up over channels what d_B and
// d_C ask for, and others what is a sum over states.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_WINDOW_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_WINDOW_CUH

#include "fast.cuh"

namespace nvsubq::selective {

constexpr int kWindow = kBorder, kWarps = 4, kWide = 8 * kWarps;  // steps, warps of a block, channels
constexpr int kBackThreads = 32 * kWarps;
constexpr int kMostFast = 16;                                     // states
constexpr int kAtOnce = kBackThreads / (kWide / 4);               // steps that are laid out at once
constexpr int kRounds = kWindow / kAtOnce;
constexpr float kLn2 = 0.69314718056f;

// Walks are cut into pieces, by a rule of one row's shape: how many rows there are must not show in a row's bits. They
// are as long as leaves blocks enough: what comes long before a piece's end has no weight there, so that what a long
// piece leaves to the next is found from a part of it.
struct Pieces {
  static constexpr int64_t kEnough = 384, kLongest = 4096;  // blocks of one row; steps
  int64_t each, count;

  Pieces(const Selective& a, bool forth) {
    const int64_t blocks = forth ? a.width / kWide : ceil_div(a.width, kChunk);  // of one piece
    each = a.length > 8192 ? 512 : 1024;
    while (each < kLongest && a.length / (2 * each) * blocks >= kEnough) each *= 2;
    count = a.length > 0 ? (a.length + each - 1) / each : 1;
  }
  static Pieces whole(const Selective& a) { return {a.length, 1}; }

 private:
  Pieces(int64_t steps, int64_t how_many) : each(steps), count(how_many) {}
};

// The tensors by cell whose rows a block needs.
enum Tensor { kU, kDelta, kZ, kCotangent, kB, kC, kGradU, kGradDelta, kGradZ, kTensors };

// Where a step of a channel lies: rows are padded so that neither a step of many channels nor four steps of a warp's
// channels meet in a bank. `paired` rows have two channels of a lane side by side, as the tensor cores take them.
constexpr int kRow = kWindow + 4, kSingle = kWide * kRow + 16, kPaired = kWide * kRow + 32;
__device__ __forceinline__ int single(int channel, int step) { return channel * kRow + 4 * (channel >> 3) + step; }
__device__ __forceinline__ int paired(int channel, int step) {
  const int warp = channel >> 3, t = channel & 3;
  return (4 * warp + t) * 2 * kRow + 8 * warp + 2 * step + (channel >> 2 & 1);
}
// Four steps of channels c and c + 4 of a warp, from where the first of c lies on.
__device__ __forceinline__ void read_single(const float* from, float (&to)[2][4]) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
    *reinterpret_cast<float4*>(to[r]) = *reinterpret_cast<const float4*>(from + 4 * r * kRow);
}
__device__ __forceinline__ void read_paired(const float* from, float (&to)[2][4]) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const float4 x = *reinterpret_cast<const float4*>(from + 2 * i);
    to[0][i] = x.x, to[1][i] = x.y, to[0][i + 1] = x.z, to[1][i + 1] = x.w;
  }
}
// Four steps of states n and n + 1 of B or C: [state][step].
__device__ __forceinline__ void read_states(const float* from, float (&to)[2][4]) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const float4 x = *reinterpret_cast<const float4*>(from + i * kMostFast);
    to[0][i] = x.x, to[0][i + 1] = x.y, to[1][i] = x.z, to[1][i + 1] = x.w;
  }
}

// The inputs of a window; B and C as [step / 2][state][step % 2].
struct alignas(16) Window {
  float d[kSingle], w[kPaired], out[kPaired];
  float B[kWindow / 2][kMostFast][2], C[kWindow / 2][kMostFast][2];
  struct alignas(16) Place {
    uint64_t begin;   // an address in global memory
    uint32_t stride;  // in bytes
  } places[kTensors];
  alignas(16) float bias[kWide], skip[kWide];
  Cells<kWindow> cells;

  // The parameters of the channels from `first` on, and where a row's tensors begin; to be read after a barrier.
  template <class S>
  __device__ __forceinline__ void read_parameters(const Selective& a, const Options& is, int64_t row, int64_t first,
                                                  int there, int64_t group) {
    const auto place = [&](Tensor which, const nvsubq_tensor& t, int64_t offset) {
      if (threadIdx.x != kBackThreads - 1 - which) return;
      const Row<S> found(t, row, offset);
      places[which] = {uint64_t(__cvta_generic_to_global(found.data)), found.stride};
    };
    place(kU, a.u, first), place(kDelta, a.delta, first), place(kZ, is.gated ? a.z : a.u, first);
    place(kCotangent, a.d_y, first), place(kB, a.B, group * a.B.stride[2]), place(kC, a.C, group * a.C.stride[2]);
    place(kGradU, a.d_u, first), place(kGradDelta, a.d_delta, first), place(kGradZ, is.gated ? a.d_z : a.d_u, first);
    const int c = threadIdx.x;
    if (c >= kWide) return;
    bias[c] = of_channel(a.delta_bias, first, c, there), skip[c] = of_channel(a.D, first, c, there);
  }
};

// Where a block works: channels first .. of one chunk and group, steps begin .. end of one piece of a row's walk.
struct Piece {
  int64_t row, piece, number, chunk, group, begin, end;  // number: of the piece, over all rows

  __device__ __forceinline__ Piece(const Selective& a, const Chunks& chunks, const Pieces& pieces, int64_t index) {
    chunk = index % chunks.count, number = index / chunks.count;
    row = number / pieces.count, piece = number % pieces.count;
    group = chunk / chunks.per_group;
    begin = piece * pieces.each, end = begin + pieces.each < a.length ? begin + pieces.each : a.length;
  }
};

inline Options options_of(const Selective& a) {
  Options is;
  is.soft = a.flags & NVSUBQ_SOFTPLUS, is.gated = present(a.z);
  is.whole = a.width / a.groups % 4 == 0 && a.states % 4 == 0 && a.B.stride[2] % 4 == 0 && a.C.stride[2] % 4 == 0;
  for (const nvsubq_tensor* t : {&a.u, &a.delta, &a.z, &a.y, &a.B, &a.C, &a.d_y, &a.d_u, &a.d_delta, &a.d_z})
    is.whole = is.whole && packs_fit(*t, 4);
  return is;
}

// Where walks are cut into pieces: puts the states that enter each piece, [pieces][D][N], or the cotangents that
// arrive at its end. `sums` [pieces][D] is scratch.
template <class S>
int carry(const Selective& a, const Pieces& pieces, bool forth, const Options& is, float* arriving, float* sums,
          cudaStream_t stream);

}  // namespace nvsubq::selective

#endif
