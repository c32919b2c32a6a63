// `ssd_scan`: one chunk of one row and head: its cells, its decays, and rows of its cells from and to memory.
#ifndef NVSUBQ_CUDA_SSD_SCAN_CHUNK_CUH
#define NVSUBQ_CUDA_SSD_SCAN_CHUNK_CUH

#include "common.cuh"

namespace nvsubq::ssd {

// A state that does not pass on leaves nothing, not even a NaN.
template <class T>
__device__ __forceinline__ T decayed(T state, T by) {
  return by == T(0) ? T(0) : state * by;
}

__device__ __forceinline__ void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

// Columns of a head or group at the cells of one row, to be taken in packs of 8.
struct Rows8 {
  char* data;
  int64_t step;
  int dtype, width;
  bool aligned;

  // `offset`: of the first column at cell 0; `step`: elements between cells.
  __device__ Rows8(const nvsubq_tensor& t, int64_t offset, int64_t step, int64_t width)
      : step(step), dtype(t.dtype), width(int(width)) {
    const int bytes = t.dtype == NVSUBQ_F64 ? 8 : t.dtype == NVSUBQ_F32 ? 4 : 2;
    data = static_cast<char*>(t.data) + offset * bytes;
    aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && step * bytes % 16 == 0 && width % 8 == 0;
  }

  // Has the first line of a cell's columns brought near, for when it will be read.
  __device__ __forceinline__ void bring_near(int64_t cell) const {
    const int64_t bytes = dtype == NVSUBQ_F64 ? 8 : dtype == NVSUBQ_F32 ? 4 : 2;
    if (cell >= 0) prefetch(data + cell * step * bytes);
  }
  // Columns c to c + 7 of a cell; those beyond the width, and all of a cell < 0, are zeros. In packs where `aligned`:
  // then a pack is whole or beyond the width.
  template <class T, class S>
  __device__ __forceinline__ void read_pack(int64_t cell, int c, T (&v)[8]) const {
    const S* from = reinterpret_cast<const S*>(data) + cell * step + c;
    constexpr int V = kLanes<S> < 8 ? kLanes<S> : 8;
#pragma unroll
    for (int i = 0; i < 8; i += V) {
      Pack<S, V> pack = {};
      if (cell >= 0 && c < width) pack = load_pack<S, V>(from + i);
#pragma unroll
      for (int j = 0; j < V; ++j) v[i + j] = widen<T>(pack.lane[j]);
    }
  }
  template <class T, class S>
  __device__ __forceinline__ void read_single(int64_t cell, int c, T (&v)[8]) const {
    const S* from = reinterpret_cast<const S*>(data) + cell * step + c;
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = cell >= 0 && c + i < width ? widen<T>(from[i]) : T(0);
  }
  template <class T, class S>
  __device__ __forceinline__ void write_as(int64_t cell, int c, const T (&v)[8]) const {
    S* to = reinterpret_cast<S*>(data) + cell * step + c;
    constexpr int V = kLanes<S> < 8 ? kLanes<S> : 8;
    if (aligned) {
#pragma unroll
      for (int i = 0; i < 8; i += V) {
        Pack<S, V> pack;
#pragma unroll
        for (int j = 0; j < V; ++j) pack.lane[j] = narrow<S>(v[i + j]);
        store_pack<S, V>(to + i, pack);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (c + i < width) to[i] = narrow<S>(v[i]);
  }

  template <class T>
  __device__ __forceinline__ void write(int64_t cell, int c, const T (&v)[8]) const {
    switch (dtype) {
      case NVSUBQ_BF16: return write_as<T, bf16>(cell, c, v);
      case NVSUBQ_F16: return write_as<T, f16>(cell, c, v);
      case NVSUBQ_F32: return write_as<T, float>(cell, c, v);
      default: return write_as<T, double>(cell, c, v);
    }
  }
};

// Of [B, L, H, P], the lanes of a head from `lanes` tiles on; of [B, L, G, N], the states of a group.
__device__ inline Rows8 rows_of(const nvsubq_tensor& t, int64_t row, int64_t head, int first, int64_t width) {
  return Rows8(t, row * t.stride[0] + head * t.stride[2] + first, t.stride[1], width - first);
}

// The packs of 8 columns of a tile that one thread has; all of a thread's reads are under way at once.
template <class Math>
struct Packs {
  using T = typename Math::T;
  static constexpr int kPacks = Math::kSide / 8, kOwn = (Math::kSide * kPacks + Math::kThreads - 1) / Math::kThreads;
  static constexpr bool kWhole = Math::kSide * kPacks % Math::kThreads == 0;
  T v[kOwn][8];

  // f(row of the tile, first column, numbers)
  template <class F>
  __device__ __forceinline__ void each(F f) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int pack = threadIdx.x + i * Math::kThreads;
      if (kWhole || pack < Math::kSide * kPacks) f(pack / kPacks, pack % kPacks * 8, v[i]);
    }
  }
  template <class S>
  __device__ __forceinline__ void read_as(const Rows8& from, const int64_t* cells) {
    if (from.aligned)
      each([&](int r, int c, T(&to)[8]) { from.read_pack<T, S>(cells[r], c, to); });
    else
      each([&](int r, int c, T(&to)[8]) { from.read_single<T, S>(cells[r], c, to); });
  }
  __device__ __forceinline__ void read(const Rows8& from, const int64_t* cells) {
    switch (from.dtype) {
      case NVSUBQ_BF16: return read_as<bf16>(from, cells);
      case NVSUBQ_F16: return read_as<f16>(from, cells);
      case NVSUBQ_F32: return read_as<float>(from, cells);
      default: return read_as<double>(from, cells);
    }
  }
};

// Cells and decays of a chunk, in shared memory.
template <class Math>
struct alignas(16) Chunk {
  using T = typename Math::T;
  static constexpr int S = Math::kSide;

  int64_t cell[S];      // to write to; -1 beyond the walk's end
  int64_t there[S];     // to read from; -1 also where no cell is
  int number[S];        // of the cell's sequence
  int before;           // that of the state that enters
  T delta[S], hi[S], lo[S];
  T skip[S];             // D
  T since[S], until[S];  // decays from the entering state, and to the leaving one
  T whole;

  // What a thread reads for its cell, so that it may be under way early.
  struct Cell {
    int64_t cell, there;
    int number, before;
    T delta, hi, lo;
  };
  static __device__ __forceinline__ void fetch_cell(Cell& to, const Call<Math>& call, const Steps& steps,
                                                    int64_t chunk) {
    if (threadIdx.x >= S) return;
    const int64_t step = chunk * S + threadIdx.x, known = step < steps.count ? step : steps.count - 1;
    to.cell = step < call.a.length ? steps.cell(step) : -1;
    to.there = step < steps.count ? to.cell : -1;
    const bool numbered = steps.segment && steps.count;
    to.number = numbered ? steps.number(known) : 0;
    if (!threadIdx.x) to.before = numbered ? steps.number(step < steps.count ? step - 1 : known) : 0;
  }
  static __device__ __forceinline__ void fetch_decays(Cell& to, const Call<Math>& call, int64_t row, int64_t head,
                                                      int64_t chunk) {
    if (threadIdx.x >= S) return;
    const int64_t place = (row * call.a.heads + head) * call.plan.steps + chunk * S + threadIdx.x;
    to.delta = call.delta[place], to.hi = call.hi[place], to.lo = call.lo[place];
  }
  __device__ __forceinline__ void put_cell(const Cell& from) {
    const int i = threadIdx.x;
    if (i >= S) return;
    cell[i] = from.cell, there[i] = from.there, number[i] = from.number;
    if (!i) before = from.before;
  }
  // After `put_cell`. All threads call it; it ends with a barrier.
  __device__ __forceinline__ void put_decays(const Cell& from) {
    const int i = threadIdx.x;
    if (i < S) delta[i] = from.delta, hi[i] = from.hi, lo[i] = from.lo;
    __syncthreads();
    if (i < S) {
      since[i] = number[i] == before ? exp_of(hi[i] + lo[i]) : T(0);
      until[i] = number[i] == number[S - 1] ? exp_of((hi[S - 1] - hi[i]) + (lo[S - 1] - lo[i])) : T(0);
      if (i == S - 1) whole = since[i];
    }
    __syncthreads();
  }
  __device__ __forceinline__ void read_cells(const Call<Math>& call, int64_t row, int64_t block, int64_t chunk) {
    Cell found;
    fetch_cell(found, call, call.walk.steps(row, block), chunk);
    put_cell(found);
  }
  __device__ __forceinline__ void read_decays(const Call<Math>& call, int64_t row, int64_t head, int64_t chunk) {
    Cell found;
    fetch_decays(found, call, row, head, chunk);
    put_decays(found);
  }
  // D of the lanes from `first` on; a barrier makes it known.
  __device__ void read_skip(const Call<Math>& call, int64_t head, int first) {
    const Ssd& a = call.a;
    for (int k = threadIdx.x; k < S; k += Math::kThreads)
      skip[k] = present(a.D) && first + k < a.head_width ? read_any<T>(a.D, at(a.D, head, first + k)) : T(0);
  }
  __device__ __forceinline__ T between(int i, int j) const {
    return j <= i && number[i] == number[j] ? exp_of((hi[i] - hi[j]) + (lo[i] - lo[j])) : T(0);
  }
};

// A tile of rows of the chunk. `wait_tiles` and a barrier come before it is read.
template <class Math, class Tile>
__device__ __forceinline__ void read_tile(Tile& to, const Chunk<Math>& chunk, const Rows8& from) {
  if (from.aligned && Math::template copies<Tile>(from.dtype)) {
    constexpr int kPacks = Math::kSide / 8;
#pragma unroll
    for (int i = threadIdx.x; i < Math::kSide * kPacks; i += Math::kThreads) {
      const int r = i / kPacks, c = i % kPacks * 8;
      const int64_t cell = chunk.there[r];
      const bool there = cell >= 0 && c < from.width;
      Math::copy(to, r, c, from.data + (there ? (cell * from.step + c) * 2 : 0), there);
    }
    return;
  }
  Packs<Math> packs;
  packs.read(from, chunk.there);
  packs.each([&](int r, int c, typename Math::T(&v)[8]) { to.put8(r, c, v); });
}

// The gradient of what the gate takes, d_y SiLU(z).
template <class Math>
__device__ __forceinline__ void read_cotangents(Packs<Math>& to, const Call<Math>& call, const Chunk<Math>& chunk,
                                                int64_t row, int64_t head, int first) {
  const Ssd& a = call.a;
  to.read(rows_of(a.d_y, row, head, first, a.head_width), chunk.there);
  if (!present(a.z)) return;
  Packs<Math> gates;
  gates.read(rows_of(a.z, row, head, first, a.head_width), chunk.there);
#pragma unroll
  for (int i = 0; i < Packs<Math>::kOwn; ++i)
#pragma unroll
    for (int k = 0; k < 8; ++k) to.v[i][k] *= silu(gates.v[i][k]);
}

}  // namespace nvsubq::ssd

#endif
