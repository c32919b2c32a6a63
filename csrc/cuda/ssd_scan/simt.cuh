// Products of square tiles in shared memory on ordinary units, in fp32 or fp64.
//
// This and `mma.cuh` have the same names. A tile is [kSide][kPitch]; a `Sum` is a tile that the threads of a block
// share out in registers.
#ifndef NVSUBQ_CUDA_SSD_SCAN_SIMT_CUH
#define NVSUBQ_CUDA_SSD_SCAN_SIMT_CUH

#include "../storage.cuh"

namespace nvsubq::ssd {

template <class Compute>
struct Simt {
  using T = Compute;
  using Stored = T;
  static constexpr int kSide = 32, kThreads = 256, kPitch = kSide + 1;
  // Blocks of a kernel on a multiprocessor, at least.
  static constexpr int kCarries = 2, kOutputs = 2, kRates = 2, kShares = 2;
  static constexpr int64_t kTileElements = kSide * kSide, kTileBytes = kTileElements * int64_t(sizeof(T));

  // Given: a tile of an op's input. Made, Fine: of computed numbers; the memory of a Fine is that of a Made too.
  struct Tile {
    T* data;
    static constexpr int kBytes = kSide * kPitch * int(sizeof(T));
    __device__ explicit Tile(char* memory) : data(reinterpret_cast<T*>(memory)) {}
    __device__ __forceinline__ T get(int r, int c) const { return data[r * kPitch + c]; }
    __device__ __forceinline__ void get8(int r, int c, T (&v)[8]) const {
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = data[r * kPitch + c + i];
    }
    __device__ __forceinline__ void put8(int r, int c, const T (&v)[8]) {
#pragma unroll
      for (int i = 0; i < 8; ++i) data[r * kPitch + c + i] = v[i];
    }
  };
  using Given = Tile;
  using Made = Tile;
  using Fine = Tile;

  struct Sum {
    T v[4];
    __device__ __forceinline__ Sum() : v{} {}
    // f(row, column, element)
    template <class F>
    __device__ __forceinline__ void each(F f) {
      const int r = threadIdx.x / 16, c = threadIdx.x % 16;
#pragma unroll
      for (int i = 0; i < 4; ++i) f(r + i / 2 * 16, c + i % 2 * 16, v[i]);
    }
    // f(row, column, element, element of the other)
    template <class F>
    __device__ __forceinline__ void with(Sum& other, F f) {
      const int r = threadIdx.x / 16, c = threadIdx.x % 16;
#pragma unroll
      for (int i = 0; i < 4; ++i) f(r + i / 2 * 16, c + i % 2 * 16, v[i], other.v[i]);
    }
    // A tile of f(row, column, element).
    template <class F>
    __device__ __forceinline__ void put(Tile& to, F f) {
      each([&](int r, int c, T& x) { to.data[r * kPitch + c] = f(r, c, x); });
    }
  };

  // sum += A B; with TA, A is kept transposed, with TB, B is.
  template <bool TA, bool TB>
  static __device__ __forceinline__ void add(Sum& sum, const Tile& A, const Tile& B) {
    const int r = threadIdx.x / 16, c = threadIdx.x % 16;
#pragma unroll 4
    for (int k = 0; k < kSide; ++k) {
      T x[2], y[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        x[i] = TA ? A.get(k, r + 16 * i) : A.get(r + 16 * i, k);
        y[i] = TB ? B.get(c + 16 * i, k) : B.get(k, c + 16 * i);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) sum.v[i] = fma(x[i / 2], y[i % 2], sum.v[i]);
    }
  }

  template <class Tile>
  static __device__ __forceinline__ bool copies(int) {
    return false;
  }
  static __device__ __forceinline__ void copy(Tile&, int, int, const void*, bool) {}
  static __device__ __forceinline__ void commit_tiles() {}
  static __device__ __forceinline__ void wait_older_tiles() {}
  static __device__ __forceinline__ void wait_tiles() {}

  static __device__ __forceinline__ void store(Sum& sum, Stored* to) {
    sum.each([&](int r, int c, T& x) { to[r * kSide + c] = x; });
  }
  static __device__ __forceinline__ void load(Tile& to, const Stored* from) {
    for (int i = threadIdx.x; i < kTileElements; i += kThreads) to.data[i / kSide * kPitch + i % kSide] = from[i];
  }
};

}  // namespace nvsubq::ssd

#endif
