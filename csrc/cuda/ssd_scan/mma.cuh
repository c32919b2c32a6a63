// Products of square tiles in shared memory on tensor cores, with sums in fp32.
//
// A number is one bf16, which holds a bf16 input exactly, or two: hi + lo keeps 16 bits, and all of an fp16. Of the
// product of two such pairs lo lo is left out where inputs are one. Three keep 24 bits, for what ends up in sums that
// cancel.
#ifndef NVSUBQ_CUDA_SSD_SCAN_MMA_CUH
#define NVSUBQ_CUDA_SSD_SCAN_MMA_CUH

#include "../copy.cuh"
#include "../storage.cuh"

namespace nvsubq::ssd {

struct Pair {
  bf16 hi, lo;
  __device__ __forceinline__ explicit Pair(float x)
      : hi(__float2bfloat16_rn(x)), lo(__float2bfloat16_rn(x - __bfloat162float(hi))) {}
};

// `Terms` of bf16 make an input.
template <int Terms>
struct Mma {
  using T = float;
  using Stored = bf16;
  static constexpr int kSide = 64, kThreads = 256, kPitch = kSide + 8;
  static constexpr int kPlane = kSide * kPitch;
  // Warps lie in two rows; each has 32 rows of a tile and `kWide` columns, as fragments of m16n8.
  static constexpr int kAcross = kThreads / 64, kWide = kSide / kAcross, kFragments = kWide / 8;
  // Blocks of a kernel on a multiprocessor, at least.
  static constexpr int kCarries = 3, kOutputs = 2, kRates = 2, kShares = 2;
  static constexpr int64_t kTileElements = 2 * kSide * kSide, kTileBytes = kTileElements * int64_t(sizeof(bf16));

  template <int Planes>
  struct Tile {
    bf16* data;
    static constexpr int kPlanes = Planes, kBytes = Planes * kPlane * int(sizeof(bf16));
    __device__ explicit Tile(char* memory) : data(reinterpret_cast<bf16*>(memory)) {}
    __device__ __forceinline__ float get(int r, int c) const {
      float x = 0;
#pragma unroll
      for (int p = Planes - 1; p >= 0; --p) x += __bfloat162float(data[p * kPlane + r * kPitch + c]);
      return x;
    }
    __device__ __forceinline__ void get8(int r, int c, float (&v)[8]) const {
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = 0;
#pragma unroll
      for (int p = Planes - 1; p >= 0; --p) {
        const Pack<bf16, 8> pack = load_pack<bf16, 8>(data + p * kPlane + r * kPitch + c);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] += __bfloat162float(pack.lane[i]);
      }
    }
    __device__ __forceinline__ void put8(int r, int c, const float (&v)[8]) {
      float rest[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) rest[i] = v[i];
#pragma unroll
      for (int p = 0; p < Planes; ++p) {
        Pack<bf16, 8> pack;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          pack.lane[i] = __float2bfloat16_rn(rest[i]);
          rest[i] -= __bfloat162float(pack.lane[i]);
        }
        store_pack<bf16, 8>(data + p * kPlane + r * kPitch + c, pack);
      }
    }
  };
  using Given = Tile<Terms>;
  using Made = Tile<2>;
  using Fine = Tile<3>;

  struct Sum {
    float v[2][kFragments][4];
    __device__ __forceinline__ Sum() : v{} {}
    template <class F>
    __device__ __forceinline__ void each(F f) {
      const int r = row(), c = column();
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < kFragments; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) f(r + 16 * m + i / 2 * 8, c + 8 * n + i % 2, v[m][n][i]);
    }
    template <class F>
    __device__ __forceinline__ void with(Sum& other, F f) {
      const int r = row(), c = column();
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < kFragments; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) f(r + 16 * m + i / 2 * 8, c + 8 * n + i % 2, v[m][n][i], other.v[m][n][i]);
    }
    template <class F>
    __device__ __forceinline__ void put(Made& to, F f) {
      put_pairs(to.data, kPitch, kPlane, f);
    }
    template <class F>
    __device__ __forceinline__ void put_pairs(bf16* to, int pitch, int plane, F f) {
      const int r0 = row(), c0 = column();
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < kFragments; ++n)
#pragma unroll
          for (int i = 0; i < 4; i += 2) {
            const int r = r0 + 16 * m + i / 2 * 8, c = c0 + 8 * n;
            const Pair x(f(r, c, v[m][n][i])), y(f(r, c + 1, v[m][n][i + 1]));
            Pack<bf16, 2> hi, lo;
            hi.lane[0] = x.hi, hi.lane[1] = y.hi, lo.lane[0] = x.lo, lo.lane[1] = y.lo;
            store_pack<bf16, 2>(to + r * pitch + c, hi);
            store_pack<bf16, 2>(to + plane + r * pitch + c, lo);
          }
    }
    static __device__ __forceinline__ int row() { return threadIdx.x / 32 / kAcross * 32 + threadIdx.x % 32 / 4; }
    static __device__ __forceinline__ int column() { return threadIdx.x / 32 % kAcross * kWide + threadIdx.x % 4 * 2; }
  };

  template <bool Turned>
  static __device__ __forceinline__ void read_matrices(uint32_t (&to)[4], const bf16* from) {
    const uint32_t address = uint32_t(__cvta_generic_to_shared(from));
    if (Turned)
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                   : "r"(address));
    else
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                   : "r"(address));
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }

  // 16 rows from r and 16 columns from k of A.
  template <bool TA>
  static __device__ __forceinline__ void left(uint32_t (&to)[4], const bf16* tile, int r, int k) {
    const int lane = threadIdx.x % 32, low = lane % 8, odd = lane / 8 % 2 * 8, high = lane / 16 * 8;
    read_matrices<TA>(to, TA ? tile + (k + low + high) * kPitch + r + odd : tile + (r + low + odd) * kPitch + k + high);
  }
  // 16 rows from k and 16 columns from c of B: two fragments.
  template <bool TB>
  static __device__ __forceinline__ void right(uint32_t (&to)[4], const bf16* tile, int k, int c) {
    const int lane = threadIdx.x % 32, low = lane % 8, odd = lane / 8 % 2 * 8, high = lane / 16 * 8;
    const int at = TB ? (c + low + high) * kPitch + k + odd : (k + low + odd) * kPitch + c + high;
    read_matrices<!TB>(to, tile + at);
  }

  template <bool TA, bool TB, int PA, int PB>
  static __device__ __forceinline__ void add(Sum& sum, const Tile<PA>& A, const Tile<PB>& B) {
    const int r = threadIdx.x / 32 / kAcross * 32, c = threadIdx.x / 32 % kAcross * kWide;
#pragma unroll
    for (int k = 0; k < kSide; k += 16) {
      uint32_t a[PA][2][4], b[PB][kFragments / 2][4];
#pragma unroll
      for (int p = 0; p < PA; ++p)
#pragma unroll
        for (int m = 0; m < 2; ++m) left<TA>(a[p][m], A.data + p * kPlane, r + 16 * m, k);
#pragma unroll
      for (int p = 0; p < PB; ++p)
#pragma unroll
        for (int n = 0; n < kFragments / 2; ++n) right<TB>(b[p][n], B.data + p * kPlane, k, c + 16 * n);
      const auto multiply_all = [&](int p, int q) {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < kFragments; ++n)
            multiply(sum.v[m][n], a[p][m], b[q][n / 2][n % 2 * 2], b[q][n / 2][n % 2 * 2 + 1]);
      };
      if (PA == 3) multiply_all(PA - 1, 0);
      if (PA >= 2 && PB == 2 && (PA == 3 || Terms == 2)) multiply_all(PA >= 2 ? 1 : 0, PB - 1);
      if (PA >= 2) multiply_all(PA >= 2 ? 1 : 0, 0);
      if (PB == 2) multiply_all(0, PB - 1);
      multiply_all(0, 0);
    }
  }

  static __device__ __forceinline__ void store(Sum& sum, Stored* to) {
    sum.put_pairs(to, kSide, kSide * kSide, [](int, int, float x) { return x; });
  }
  // Whether rows of a dtype are a tile as they are; then `copy` takes 8 columns from them, or zeros.
  template <class Tile>
  static __device__ __forceinline__ bool copies(int dtype) {
    return Tile::kPlanes == 1 && dtype == NVSUBQ_BF16;
  }
  template <class Tile>
  static __device__ __forceinline__ void copy(Tile& to, int r, int c, const void* from, bool there) {
    copy_later<16>(to.data + r * kPitch + c, from, there);
  }
  // Ends a group of copies; `wait_older_tiles` leaves the last group under way.
  static __device__ __forceinline__ void commit_tiles() { end_copies(); }
  static __device__ __forceinline__ void wait_older_tiles() { wait_for_older_copies(); }
  static __device__ __forceinline__ void wait_tiles() { wait_for_copies(); }

  static __device__ __forceinline__ void load(Made& to, const Stored* from) {
    constexpr int kPacks = kSide / 8;
#pragma unroll
    for (int i = threadIdx.x; i < 2 * kSide * kPacks; i += kThreads)
      copy_later<16>(to.data + i / kPacks * kPitch + i % kPacks * 8, from + i * 8, true);
  }
};

}  // namespace nvsubq::ssd

#endif
