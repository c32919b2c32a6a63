// One channel of a tensor [B, L, D] at the steps of a chunk: as many loads in flight as the chunk has steps, whatever
// the dtype. A dtype is looked at once for a chunk, so one kernel serves them all at full speed.
#ifndef NVSUBQ_CUDA_COLUMNS_CUH
#define NVSUBQ_CUDA_COLUMNS_CUH

#include "number.cuh"
#include "walk.cuh"

namespace nvsubq {

// R steps of a walk from `first` on, which one warp visits; its lanes are channels.
template <int R>
struct Chunk {
  int row, first;
  // How many steps there are, and are visited, from `first` on: cells from `visited` on are not there. Neither is cut
  // to 0 .. R: of a number cut like that, ptxas 13.0 for sm_90 takes x == R for true where it is not.
  int exist, visited;
  int cell, offset;    // lane offset + j has the cell of step j
  bool indexed;
  uint32_t starts;     // bit j: a sequence starts at step j

  // A lane without a channel (not `live`) visits nothing.
  __device__ __forceinline__ Chunk(const Steps& steps, int row, int first, bool live)
      : row(row), first(first), cell(0), offset(0), indexed(steps.index != nullptr), starts(0) {
    const int lane = int(threadIdx.x) & 31;
    exist = int(steps.length) - first, visited = int(steps.count) - first;
    if (indexed && lane < exist) cell = int(steps.cell(first + lane));
    if (steps.segment) starts = __ballot_sync(~0u, lane < R && lane < visited && steps.starts(first + lane));
    if (!live) exist = visited = 0;
  }
  // Its Q steps from step `from` on.
  template <int Q>
  __device__ __forceinline__ Chunk<Q> part(int from) const {
    return {row, first + from, exist - from, visited - from, cell, from, indexed, starts >> from};
  }
  __device__ __forceinline__ Chunk(int row, int first, int exist, int visited, int cell, int offset, bool indexed,
                                   uint32_t starts)
      : row(row), first(first), exist(exist), visited(visited), cell(cell), offset(offset), indexed(indexed),
        starts(starts) {}
  __device__ __forceinline__ int cell_of(int j) const {
    return indexed ? __shfl_sync(~0u, cell, offset + j) : first + j;
  }
};

// Calls `walk(starts)` with a function that says whether a sequence starts at a step; it is always false, and free,
// where none does.
template <int R, class F>
__device__ __forceinline__ void for_starts(const Chunk<R>& chunk, F walk) {
  if (chunk.starts)
    walk([&](int j) { return bool(chunk.starts >> j & 1); });
  else
    walk([](int) { return false; });
}

// Calls `todo(j, address)` for the first n steps; `data` is the address at cell 0, `stride` counts bytes.
template <int R, class F>
__device__ __forceinline__ void for_steps(const Chunk<R>& chunk, int n, char* data, int64_t stride, F todo) {
  if (chunk.indexed) {
#pragma unroll
    for (int j = 0; j < R; ++j) {
      char* p = data + __shfl_sync(~0u, chunk.cell, chunk.offset + j) * stride;
      if (j < n) todo(j, p);
    }
    return;
  }
  data += chunk.first * stride;
  if (n >= R && stride == int(stride)) {  // nearly always
    const int near = int(stride);
#pragma unroll
    for (int j = 0; j < R; ++j) todo(j, data + int64_t(j) * near);
  } else {
#pragma unroll
    for (int j = 0; j < R; ++j, data += stride)
      if (j < n) todo(j, data);
  }
}

// Elements of X as the bits that memory holds, in the low ones of a T.
NVSUBQ_BOTH float held(const uint16_t* p, float) { return __uint_as_float(__ldg(p)); }
NVSUBQ_BOTH float held(const uint32_t* p, float) { return __uint_as_float(__ldg(p)); }
NVSUBQ_BOTH double held(const uint16_t* p, double) { return __longlong_as_double(__ldg(p)); }
NVSUBQ_BOTH double held(const uint32_t* p, double) { return __longlong_as_double(__ldg(p)); }
NVSUBQ_BOTH double held(const uint64_t* p, double) {
  return __longlong_as_double(__ldg(reinterpret_cast<const long long*>(p)));
}

// The number that bits stand for, where memory holds another dtype than T.
NVSUBQ_BOTH float from_bf16(float bits) { return __uint_as_float(__float_as_uint(bits) << 16); }
NVSUBQ_BOTH float from_f16(float bits) { return __half2float(__ushort_as_half(uint16_t(__float_as_uint(bits)))); }
NVSUBQ_BOTH float low_half(double bits) { return __uint_as_float(uint32_t(__double_as_longlong(bits))); }
NVSUBQ_BOTH double from_bf16(double bits) { return double(from_bf16(low_half(bits))); }
NVSUBQ_BOTH double from_f16(double bits) { return double(from_f16(low_half(bits))); }
template <class T>
NVSUBQ_BOTH Cx<T> from_bf16(Cx<T> bits) {
  return {from_bf16(bits.re), from_bf16(bits.im)};
}
template <class T>
NVSUBQ_BOTH Cx<T> from_f16(Cx<T> bits) {
  return {from_f16(bits.re), from_f16(bits.im)};
}
NVSUBQ_BOTH double from_f32(double bits) { return double(low_half(bits)); }
NVSUBQ_BOTH Cx<double> from_f32(Cx<double> bits) { return {from_f32(bits.re), from_f32(bits.im)}; }

NVSUBQ_BOTH int real_bytes(const nvsubq_tensor& t) {
  return t.dtype == NVSUBQ_F64 ? 8 : t.dtype == NVSUBQ_F32 ? 4 : 2;
}
// The address of one row's channel at cell 0.
NVSUBQ_BOTH char* column_of(const nvsubq_tensor& t, int64_t row, int64_t channel) {
  const int64_t bytes = real_bytes(t) * (t.flags & NVSUBQ_COMPLEX ? 2 : 1);
  return static_cast<char*>(t.data) + (row * t.stride[0] + channel) * bytes;
}

// Bits of real elements `stride` bytes apart; 0 at steps that are not visited.
template <int R, class T>
__device__ __forceinline__ void fetch(const nvsubq_tensor& t, const Chunk<R>& chunk, char* data, int64_t stride,
                                      T (&to)[R]) {
  const int n = chunk.visited, bytes = real_bytes(t);
  if (n < R) {
#pragma unroll
    for (int j = 0; j < R; ++j) to[j] = T(0);
  }
  if (bytes == 2) {
    for_steps(chunk, n, data, stride, [&](int j, char* p) { to[j] = held((const uint16_t*)p, T()); });
  } else if (sizeof(T) == 4 || bytes == 4) {
    for_steps(chunk, n, data, stride, [&](int j, char* p) { to[j] = held((const uint32_t*)p, T()); });
  } else if constexpr (sizeof(T) == 8) {
    for_steps(chunk, n, data, stride, [&](int j, char* p) { to[j] = held((const uint64_t*)p, T()); });
  }
}
// Makes numbers of what `load` brought, once all columns of a chunk were asked for.
template <int R, class N>
__device__ __forceinline__ void open(const nvsubq_tensor& t, N (&x)[R]) {
  if (t.dtype == NVSUBQ_BF16) {
#pragma unroll
    for (int j = 0; j < R; ++j) x[j] = from_bf16(x[j]);
  } else if (t.dtype == NVSUBQ_F16) {
#pragma unroll
    for (int j = 0; j < R; ++j) x[j] = from_f16(x[j]);
  } else if constexpr (sizeof(typename PartsOf<N>::type) == 8) {
    if (t.dtype == NVSUBQ_F64) return;
#pragma unroll
    for (int j = 0; j < R; ++j) x[j] = from_f32(x[j]);
  }
}

// A column of a tensor whose second stride counts cells; `open` it before use.
template <int R, class T>
__device__ __forceinline__ void load(const nvsubq_tensor& t, const Chunk<R>& chunk, int64_t channel, T (&to)[R]) {
  fetch(t, chunk, column_of(t, chunk.row, channel), t.stride[1] * real_bytes(t), to);
}
template <int R, class T>
__device__ __forceinline__ void load(const nvsubq_tensor& t, const Chunk<R>& chunk, int64_t channel, Cx<T> (&to)[R]) {
  char* data = column_of(t, chunk.row, channel);
  if (!(t.flags & NVSUBQ_COMPLEX)) {
    T real[R];
    fetch(t, chunk, data, t.stride[1] * real_bytes(t), real);
#pragma unroll
    for (int j = 0; j < R; ++j) to[j] = {real[j], T(0)};
    return;
  }
  const int bytes = real_bytes(t);
  const int64_t stride = t.stride[1] * 2 * bytes;
  if (bytes == int(sizeof(T)) && uintptr_t(t.data) % (2 * sizeof(T)) == 0) {
    if (chunk.visited < R) {
#pragma unroll
      for (int j = 0; j < R; ++j) to[j] = {};
    }
    for_steps(chunk, chunk.visited, data, stride, [&](int j, char* p) {
      if constexpr (sizeof(T) == 4) {
        const float2 pair = __ldg(reinterpret_cast<const float2*>(p));
        to[j] = {pair.x, pair.y};
      } else {
        const double2 pair = __ldg(reinterpret_cast<const double2*>(p));
        to[j] = {pair.x, pair.y};
      }
    });
    return;
  }
  T real[R], imaginary[R];
  fetch(t, chunk, data, stride, real);
  fetch(t, chunk, data + bytes, stride, imaginary);
#pragma unroll
  for (int j = 0; j < R; ++j) to[j] = {real[j], imaginary[j]};
}
// Writes real elements `stride` bytes apart.
template <int R, class T>
__device__ __forceinline__ void put(const nvsubq_tensor& t, const Chunk<R>& chunk, char* data, int64_t stride,
                                    const T (&x)[R]) {
  const int n = chunk.exist;
  if (t.dtype == NVSUBQ_F32)
    for_steps(chunk, n, data, stride, [&](int j, char* p) { *reinterpret_cast<float*>(p) = float(x[j]); });
  else if (t.dtype == NVSUBQ_BF16)
    for_steps(chunk, n, data, stride, [&](int j, char* p) { *reinterpret_cast<bf16*>(p) = narrow<bf16>(x[j]); });
  else if (t.dtype == NVSUBQ_F16)
    for_steps(chunk, n, data, stride, [&](int j, char* p) { *reinterpret_cast<f16*>(p) = narrow<f16>(x[j]); });
  else
    for_steps(chunk, n, data, stride, [&](int j, char* p) { *reinterpret_cast<double*>(p) = double(x[j]); });
}
// Writes a column; zeros at the cells that are not there, and in x.
template <int R, class N>
__device__ __forceinline__ void clear_absent(const Chunk<R>& chunk, N (&x)[R]) {
  if (chunk.visited >= R) return;
#pragma unroll
  for (int j = 0; j < R; ++j)
    if (j >= chunk.visited) x[j] = N{};
}
template <int R, class T>
__device__ __forceinline__ void store(const nvsubq_tensor& t, const Chunk<R>& chunk, int64_t channel, T (&x)[R]) {
  clear_absent(chunk, x);
  put(t, chunk, column_of(t, chunk.row, channel), t.stride[1] * real_bytes(t), x);
}
template <int R, class T>
__device__ __forceinline__ void store(const nvsubq_tensor& t, const Chunk<R>& chunk, int64_t channel, Cx<T> (&x)[R]) {
  clear_absent(chunk, x);
  char* data = column_of(t, chunk.row, channel);
  const bool pairs = t.flags & NVSUBQ_COMPLEX;
  const int bytes = real_bytes(t);
  const int64_t stride = t.stride[1] * bytes * (pairs ? 2 : 1);
  if (pairs && t.dtype == NVSUBQ_F32 && sizeof(T) == 4 && uintptr_t(t.data) % 8 == 0) {
    for_steps(chunk, chunk.exist, data, stride,
              [&](int j, char* p) { *reinterpret_cast<float2*>(p) = make_float2(float(x[j].re), float(x[j].im)); });
    return;
  }
  T part[R];
#pragma unroll
  for (int j = 0; j < R; ++j) part[j] = x[j].re;
  put(t, chunk, data, stride, part);
  if (!pairs) return;
#pragma unroll
  for (int j = 0; j < R; ++j) part[j] = x[j].im;
  put(t, chunk, data + bytes, stride, part);
}

}  // namespace nvsubq

#endif
