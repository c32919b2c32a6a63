// Rows of a weight matrix times one vector, or a few: what a step does most.
//
// One to four warps share a row, as its length asks, never the batch: so a sum has the same order whatever batch its
// vector came in. A thread takes packs of V elements of the row, `threads` packs apart, kHeld at a time, and a block
// takes NB vectors at a time: rows that are held whole are read once for all of them.
#ifndef NVSUBQ_CUDA_STEP_PRODUCT_CUH
#define NVSUBQ_CUDA_STEP_PRODUCT_CUH

#include <type_traits>

#include "launch.cuh"

namespace nvsubq {

constexpr int kHeld = 4;    // packs of a thread that are in flight together
constexpr int kVectors = 4;  // vectors that a block takes at once, where there are several
constexpr int64_t kBlocksWanted = 512;

__device__ __forceinline__ float fma_of(float x, float y, float z) { return fmaf(x, y, z); }
__device__ __forceinline__ double fma_of(double x, double y, double z) { return fma(x, y, z); }

// A pack that no one will ask for again soon.
template <class S, int V>
__device__ __forceinline__ Pack<S, V> load_weight(const S* p) {
  if constexpr (sizeof(S) * V == 16) {
    uint4 raw;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w)
                 : "l"(p));
    Pack<S, V> x;
    memcpy(&x, &raw, sizeof x);
    return x;
  } else {
    return load_pack<S, V>(p);
  }
}

// Keeps the compiler from widening a pack before it is used: the elements would take twice the registers.
template <class S, int V>
__device__ __forceinline__ void keep_narrow(Pack<S, V>& x) {
  if constexpr (sizeof(S) * V == 16) {
    uint4 raw;
    memcpy(&raw, &x, sizeof raw);
    asm volatile("" : "+r"(raw.x), "+r"(raw.y), "+r"(raw.z), "+r"(raw.w));
    memcpy(&x, &raw, sizeof raw);
  }
}

// How many warps share a row of so many packs; short matrices are spread over more.
inline int warps_of_row(int64_t rows, int64_t packs) {
  if (rows < 1024) return kStepWarps;
  return packs <= 32 * kHeld ? 1 : packs <= 64 * kHeld ? 2 : kStepWarps;
}

// Where a thread is: its row, and its place in it. `warps` share a row.
struct RowPlace {
  int64_t row;
  int at, threads, warps, lane;
  bool leads;  // its warp is the row's first
  __device__ __forceinline__ explicit RowPlace(int warps_)
      : row(int64_t(blockIdx.x) * (kStepWarps / warps_) + int(threadIdx.x / 32) / warps_),
        at(threadIdx.x % (32 * warps_)), threads(32 * warps_), warps(warps_), lane(threadIdx.x % 32),
        leads(int(threadIdx.x / 32) % warps_ == 0) {}
};
// Blocks along y share the vectors; there are several where the rows alone make few.
inline dim3 grid_of_rows(int64_t rows, int warps, int64_t groups_of_vectors) {
  const int64_t blocks = ceil_div(rows, kStepWarps / warps), wanted = ceil_div(kBlocksWanted, blocks);
  return dim3(unsigned(blocks), unsigned(wanted < groups_of_vectors ? wanted : groups_of_vectors));
}

// A thread's share of a row.
template <class S, int V>
struct RowShare {
  const S* row;
  int packs, at, threads;
  Pack<S, V> held[kHeld];

  __device__ __forceinline__ RowShare(const S* weight, int64_t columns, const RowPlace& place)
      : row(weight + place.row * columns), packs(int(columns / V)), at(place.at), threads(place.threads) {}

  __device__ __forceinline__ void fetch(int from = 0) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      if (const int p = from + at + i * threads; p < packs) held[i] = load_weight<S, V>(row + int64_t(p) * V);
  }

  // After a product: fetches the first packs again, where others took their place.
  __device__ __forceinline__ void fetch_again() {
    if (packs > kHeld * threads) fetch();
  }

  // Adds the products with NB vectors of type I; the first packs have been fetched.
  template <class T, class I, int NB>
  __device__ __forceinline__ void multiply(const I* const (&vectors)[NB], T (&sum)[NB]) {
    for (int from = 0; from < packs; from += kHeld * threads) {
      if (from) fetch(from);
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        const int p = from + at + i * threads;
        if (p >= packs) continue;
        keep_narrow(held[i]);
#pragma unroll
        for (int b = 0; b < NB; ++b) {
          const Pack<I, V> x = load_pack<I, V>(vectors[b] + int64_t(p) * V);
#pragma unroll
          for (int j = 0; j < V; ++j) sum[b] = fma_of(widen<T>(held[i].lane[j]), widen<T>(x.lane[j]), sum[b]);
        }
      }
    }
  }
};

// The whole sums of a row: lane b of the warp that leads gets that of vector b. All threads of the block come here, and
// meet before they come again.
template <class T, int NB>
__device__ __forceinline__ T whole_sum(T (&sum)[NB], const RowPlace& place) {
  __shared__ T parts[kStepWarps][NB];
  T mine = T(0);
#pragma unroll
  for (int b = 0; b < NB; ++b) {
#pragma unroll
    for (int apart = 16; apart; apart /= 2) sum[b] += __shfl_xor_sync(kAllLanes, sum[b], apart);
    if (place.lane == b) mine = sum[b];
  }
  if (place.warps == 1) return mine;
  const int warp = threadIdx.x / 32;
  if (place.lane < NB) parts[warp][place.lane] = mine;
  __syncthreads();
  if (place.leads && place.lane < NB)
    for (int w = 1; w < place.warps; ++w) mine += parts[warp + w][place.lane];
  return mine;
}

// NB vectors from `first` on, where the last one is repeated.
template <class I, int NB>
__device__ __forceinline__ void vectors_of(const I* data, int64_t stride, int64_t first, int64_t batch,
                                           const I* (&vectors)[NB]) {
#pragma unroll
  for (int b = 0; b < NB; ++b) vectors[b] = data + (first + b < batch ? first + b : batch - 1) * stride;
}

// Whether rows of so many elements, from these addresses on, are whole packs of 16 bytes.
inline bool rows_are_packs(int64_t columns, int64_t bytes, const void* a, const void* b = nullptr,
                           const void* c = nullptr) {
  const auto bits = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) | reinterpret_cast<uintptr_t>(c);
  return bits % 16 == 0 && columns * bytes % 16 == 0;
}

// Calls todo(V, NB), both as types, for the widest packs that fit. NB is 1 only where there is one vector.
template <int N>
using Count = std::integral_constant<int, N>;
template <class S, class F>
int for_packs(bool packs, int64_t batch, F todo) {
  constexpr int V = kLanes<S>;
  if (batch == 1) return packs ? todo(Count<V>(), Count<1>()) : todo(Count<1>(), Count<1>());
  return packs ? todo(Count<V>(), Count<kVectors>()) : todo(Count<1>(), Count<kVectors>());
}

}  // namespace nvsubq

#endif
