// `selective_scan`, fast: pieces of long walks.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_PIECES_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_PIECES_CUH

#include "fast.cuh"

namespace nvsubq::selective {

constexpr int kWindow = kBorder, kWarps = 4, kThreads = 32 * kWarps;  // steps; of a block
constexpr int kMostFast = 16;                                         // states
constexpr int kWide = 32;                                             // channels of a block that carries
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

inline Options options_of(const Selective& a) {
  Options is;
  is.soft = a.flags & NVSUBQ_SOFTPLUS, is.gated = present(a.z);
  is.whole = a.width / a.groups % 4 == 0 && a.states % 4 == 0 && a.B.stride[2] % 4 == 0 && a.C.stride[2] % 4 == 0;
  for (const nvsubq_tensor* t : {&a.u, &a.delta, &a.z, &a.y, &a.B, &a.C, &a.d_y, &a.d_u, &a.d_delta, &a.d_z})
    is.whole = is.whole && packs_fit(*t, 4);
  const int64_t lanes = 16 / item_bytes(a.u);
  is.packed = is.whole && a.width / a.groups % lanes == 0;
  for (const nvsubq_tensor* t : {&a.u, &a.delta, &a.z, &a.d_y, &a.d_u, &a.d_delta, &a.d_z})
    is.packed = is.packed && packs_fit(*t, lanes);
  return is;
}

// Where walks are cut into pieces: puts the states that enter each piece, [pieces][D][N], or the cotangents that
// arrive at its end. `sums` [pieces][D] is scratch.
template <class S>
int carry(const Selective& a, const Pieces& pieces, bool forth, const Options& is, float* arriving, float* sums,
          cudaStream_t stream);

}  // namespace nvsubq::selective

#endif
