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

// Where a block works: one chunk of a group's channels, steps begin .. end of one piece of a row's walk.
struct Piece {
  int row, piece, number, chunk, group, begin, end;  // number: of the piece, over all rows

  __device__ __forceinline__ Piece(const Selective& a, const Chunks& chunks, const Pieces& pieces)
      : number(int(blockIdx.x / chunks.count)), chunk(int(blockIdx.x % chunks.count)) {
    row = int(number / pieces.count), piece = int(number % pieces.count), group = int(chunk / chunks.per_group);
    const int64_t first = piece * pieces.each, last = first + pieces.each;
    begin = int(first), end = int(last < a.length ? last : a.length);
  }
};

// The thread, asked for anew: what is made of it need not be kept in registers while a window is walked over.
__device__ __forceinline__ int this_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// A lane's place in a block. It walks with channel `own` of the warp, and makes the inputs of channel `made`, of every
// other two steps.
struct Place {
  int warp, lane, g, t, own, half, made, two;

  __device__ __forceinline__ explicit Place(int thread)
      : warp(thread / 32), lane(thread % 32), g(lane / 4), t(lane % 4), own(g / 2 * 4 + t), half(g % 2),
        made(g + t / 2 * 8), two(t % 2) {}
  __device__ __forceinline__ int channel() const { return warp * kOwn + own; }  // in the block
  // How many states there are from the lane's first on, where `there` channels of the block are.
  __device__ __forceinline__ int states_there(int states, int there) const {
    return channel() < there ? states - kHeld * half : 0;
  }
};

// A warp's memory for one tile: the states that enter it, until it is walked back over; then its inputs, as they lie in
// global memory and as the walk takes them; its gradients; last its sums over channels, which `sum_at` finds.
struct alignas(16) Slot {
  float numbers[256];

  // Of d_B (which: its state) or d_C (16 further on). Steps do not meet in a bank.
  static __device__ __forceinline__ int sum_at(int step, int which) { return step * 32 + (which ^ 8 * (step & 1)); }
};

// What a block reads and writes by cell; the states that a forward kept, by window.
enum Tensor { kDelta, kU, kZ, kCotangent, kGradU, kGradDelta, kGradZ, kB, kC, kSumsB, kSumsC, kKept, kTensors };

__device__ __forceinline__ void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
// What is read once, and must not drive out of the L1 cache what registers do not hold.
__device__ __forceinline__ uint4 load_passing(const void* from) {
  uint4 x;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(__cvta_generic_to_global(from)));
  return x;
}

struct alignas(16) Window {
  Slot slots[kTiles][kWarps];
  float4 parked[kThreads];  // what a lane needs again where it makes a tile's gradients
  float B[kWindow][kMostFast], C[kWindow][kMostFast];
  // Of one row of the batch, from the block's channels or group on: an address in global memory, and how far cells are
  // apart in bytes. In shared memory, since registers that hold them would be spilled.
  struct alignas(16) Rows {
    uint64_t begin;
    uint32_t stride;

    template <class X>
    __device__ __forceinline__ X* at(uint32_t cell, uint32_t offset = 0) const {
      return static_cast<X*>(__cvta_global_to_generic(begin + uint64_t(cell) * stride + offset * sizeof(X)));
    }
  } rows[kTensors];
  struct alignas(16) Visited : Cells<kWindow> {
  } cells[2];  // of this window and the next

  template <class X>
  __device__ __forceinline__ X* at(Tensor which, uint32_t cell, uint32_t offset) const {
    const Rows of = rows[which];
    return of.at<X>(cell, offset);
  }

  // Of the lane's states, those that enter a window, which is not the first.
  __device__ __forceinline__ const float* kept(int window, const Place& p, int states) const {
    return at<const float>(kKept, window - 1, p.channel() * uint32_t(states) + kHeld * p.half);
  }

  // To be read after a barrier.
  template <class S>
  __device__ __forceinline__ void find_rows(const Selective& a, const Options& is, const Partials<float>& partials,
                                            const Piece& at_piece, int64_t first) {
    const int64_t row = at_piece.row, group = at_piece.group;
    const auto put = [&](Tensor which, const void* begin, int64_t stride) {
      if (threadIdx.x == which) rows[which] = {uint64_t(__cvta_generic_to_global(begin)), uint32_t(stride)};
    };
    const auto find = [&](Tensor which, const nvsubq_tensor& t, int64_t offset) {
      const Row<S> found(t, row, offset);
      put(which, found.data, found.stride);
    };
    const auto sums = [&](Tensor which, const Partials<float>::Cells& of) {
      put(which, partials.of(of, row, 0, at_piece.chunk, 0), partials.chunks * a.states * int64_t(sizeof(float)));
    };
    find(kDelta, a.delta, first), find(kU, a.u, first), find(kZ, is.gated ? a.z : a.u, first);
    find(kCotangent, a.d_y, first), find(kGradU, a.d_u, first), find(kGradDelta, a.d_delta, first);
    find(kGradZ, is.gated ? a.d_z : a.d_u, first);
    find(kB, a.B, group * a.B.stride[2]), find(kC, a.C, group * a.C.stride[2]);
    sums(kSumsB, partials.B), sums(kSumsC, partials.C);
    const float* const kept = static_cast<const float*>(a.saved) + row * borders(a.length) * a.width * a.states;
    put(kKept, kept + first * a.states, a.width * a.states * int64_t(sizeof(float)));
  }

  // What a thread lays of B and C: four states, from n on, of some steps.
  template <class S>
  struct Asked {
    static constexpr int kAtOnce = kThreads / 4, kRounds = kWindow / kAtOnce;
    Pack<S, 4> B[kRounds], C[kRounds];
  };
  template <bool WHOLE, class S>
  __device__ __forceinline__ void ask(Asked<S>& to, int states, int which) const {
    const int thread = this_thread(), n = thread % 4 * 4, left = states - n, some = left > 0 ? n : 0;
#pragma unroll
    for (int i = 0; i < to.kRounds; ++i) {
      const int32_t cell = some_cell(cells[which].cell[thread / 4 + i * to.kAtOnce]);
      to.B[i] = load_four<WHOLE>(at<const S>(kB, cell, some), left);
      to.C[i] = load_four<WHOLE>(at<const S>(kC, cell, some), left);
    }
  }
  template <class S>
  __device__ __forceinline__ void lay(const Asked<S>& from, int states) {
    const int thread = this_thread(), k = thread / 4, n = thread % 4 * 4;
    const auto put = [&](const Pack<S, 4>& x, float* to) {
      alignas(16) float four[4];
      unpack(x, four);
#pragma unroll
      for (int j = 0; j < 4; ++j) four[j] = n < states ? four[j] : 0.0f;
      *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(four);
    };
#pragma unroll
    for (int i = 0; i < from.kRounds; ++i)
      put(from.B[i], &B[k + i * from.kAtOnce][n]), put(from.C[i], &C[k + i * from.kAtOnce][n]);
  }
  // Asks for a cell's rows, long before they are read.
  template <class S>
  __device__ __forceinline__ void ask_ahead(int32_t cell) const {
#pragma unroll
    for (const Tensor which : {kDelta, kU, kZ, kCotangent, kB, kC}) prefetch(at<S>(which, cell, 0));
  }
};

}  // namespace nvsubq::selective

#endif
