// `selective_scan`, real A with the discretization of Mamba in fp32: what the fast kernels share.
//
// A channel's states lie on Q neighbouring lanes, P on each. Warps that compute run along a tile of steps; others
// meanwhile turn the next tile's inputs into what a state needs (delta, and delta u) and the last tile's sums into
// outputs, so that nothing which belongs to a channel is done in every lane of it. Sums over the lanes of a channel
// are products with a matrix of ones: one instruction of the tensor cores adds four lanes' numbers of four steps.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_FAST_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_FAST_CUH

#include "../math.cuh"
#include "common.cuh"

namespace nvsubq::selective {

constexpr int kRing = 8;    // tiles whose cells are known
constexpr float kLog2e = 1.4426950408889634f;

// Whether the fast kernels serve a call, forward and backward.
bool is_fast(const Selective& a);
int fast_forward(const Selective& a, cudaStream_t stream);
int fast_backward(const Selective& a, void* memory, cudaStream_t stream);
bool is_fast_backward(const Selective& a);
int64_t fast_forward_bytes(const Selective& a);
int64_t fast_backward_bytes(const Selective& a);

// Whether sums over lanes must be good to fp32, or only to the rounding of the storage dtype.
template <class S>
constexpr bool kExact = !std::is_same_v<S, bf16>;

__device__ __forceinline__ float fast_softplus(float x) {
  return fmaxf(x, 0.0f) + log1p_of(exp2_always(-fabsf(x) * kLog2e));
}
__device__ __forceinline__ float fast_sigmoid(float x) { return reciprocal(1.0f + exp2_always(-x * kLog2e)); }

// sum += A (16 x 8) times B (8 x 8), of which a lane has A[g][t], A[g + 8][t], A[g][t + 4], A[g + 8][t + 4], and
// B[t][g], B[t + 4][g], with g = lane / 4, t = lane % 4; of the sum [g][2t], [g][2t + 1], [g + 8][2t], [g + 8][2t + 1].
__device__ __forceinline__ void multiply(float (&sum)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// The tensor cores keep 11 bits of a factor: the part that they keep, whose rest is exact in fp32.
__device__ __forceinline__ float kept_part(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }
// A number cut to 11 bits is too small by this factor in the mean.
constexpr float kCut = 1.00035f;

// Hands numbers to products: as they are or, if EXACT, in two parts, so that 22 bits of them count.
template <bool EXACT, class F>
__device__ __forceinline__ void in_parts(const float (&x)[4], F add) {
  if constexpr (EXACT) {
    float kept[4], rest[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) kept[i] = kept_part(x[i]), rest[i] = x[i] - kept[i];
    add(kept), add(rest);
  } else {
    add(x);
  }
}

// Adds steps 4m .. 4m + 3 of every lane over its quad. After m = 0 .. 3, lane t of a quad has steps 4t .. 4t + 3 of 16.
template <bool EXACT>
__device__ __forceinline__ void add_quads(float (&sum)[4], const float (&x)[4], int m, int g) {
  const float lower = g == 2 * m ? 1.0f : 0.0f, upper = g == 2 * m + 1 ? 1.0f : 0.0f;
  in_parts<EXACT>(x, [&](const float (&part)[4]) { multiply(sum, part[0], part[2], part[1], part[3], lower, upper); });
}

// Where step t of channel c lies in a row of a tile: a swizzle by groups of four steps, so that neither a step of many
// channels nor four steps of neighbouring channels meet in a bank.
__device__ __forceinline__ int swizzled(int c, int four) { return 4 * (four ^ ((c ^ (c >> 3)) & 7)); }
__device__ __forceinline__ int swizzle(int c, int t) { return swizzled(c, t >> 2) + (t & 3); }

// Four neighbouring elements as fp32. WHOLE: at a multiple of their size, else `valid` of them are there.
template <class S>
__device__ __forceinline__ void unpack(const Pack<S, 4>& from, float (&to)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) to[j] = widen<float>(from.lane[j]);
}
template <>
__device__ __forceinline__ void unpack<bf16>(const Pack<bf16, 4>& from, float (&to)[4]) {
  const uint2 bits = *reinterpret_cast<const uint2*>(&from);
  to[0] = bf16_of(bits.x, 0), to[1] = bf16_of(bits.x, 1);
  to[2] = bf16_of(bits.y, 0), to[3] = bf16_of(bits.y, 1);
}
template <class S>
__device__ __forceinline__ Pack<S, 4> pack(const float (&from)[4]) {
  Pack<S, 4> to;
#pragma unroll
  for (int j = 0; j < 4; ++j) to.lane[j] = narrow<S>(from[j]);
  return to;
}
template <>
__device__ __forceinline__ Pack<bf16, 4> pack<bf16>(const float (&from)[4]) {
  Pack<bf16, 4> to;
  auto* pairs = reinterpret_cast<__nv_bfloat162*>(&to);
  pairs[0] = __floats2bfloat162_rn(from[0], from[1]), pairs[1] = __floats2bfloat162_rn(from[2], from[3]);
  return to;
}
template <bool WHOLE, class S>
__device__ __forceinline__ Pack<S, 4> load_four(const S* p, int valid) {
  if constexpr (WHOLE) {
    return load_pack<S, 4>(p);
  } else {
    Pack<S, 4> x;
#pragma unroll
    for (int j = 0; j < 4; ++j) x.lane[j] = j < valid ? p[j] : narrow<S>(0.0f);
    return x;
  }
}
template <bool WHOLE, class S>
__device__ __forceinline__ void store_four(S* p, const Pack<S, 4>& x, int valid) {
  if constexpr (WHOLE) {
    if (valid) store_pack<S, 4>(p, x);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (j < valid) p[j] = x.lane[j];
  }
}

// A row of a tensor [B, L, ...], from a channel or group on. Offsets within it are products of 32 bits.
template <class S>
struct Row {
  char* data;
  uint32_t stride;  // in bytes

  __device__ __forceinline__ Row(const nvsubq_tensor& t, int64_t row, int64_t offset)
      : data(static_cast<char*>(t.data) + (row * t.stride[0] + offset) * int64_t(sizeof(S))),
        stride(uint32_t(t.stride[1] * int64_t(sizeof(S)))) {}
  __device__ __forceinline__ S* at(int32_t cell) const {
    return reinterpret_cast<S*>(data + uint64_t(uint32_t(cell)) * stride);
  }
};

// A parameter of channels, that of channel first + c; 0 where it is not there, or c is not one of `there`.
__device__ __forceinline__ float of_channel(const nvsubq_tensor& t, int64_t first, int c, int there) {
  return has(t) && c < there ? read_any<float>(t, (first + c) * t.stride[0]) : 0.0f;
}

// Options of a call that are the same for all threads.
struct Options {
  bool soft, gated;
  bool whole, packed;  // four channels, and four states, lie on multiples of their size; 16 bytes of channels do
};

// The cells of a tile of T steps, and which of them drop the state. A cell that is not there is -1 - another that is.
template <int T>
struct Cells {
  int32_t cell[T];
  uint32_t starts[T / 32];

  __device__ __forceinline__ bool any_starts() const {
    uint32_t any = 0;
#pragma unroll
    for (int i = 0; i < T / 32; ++i) any |= starts[i];
    return any;
  }
};
__device__ __forceinline__ int32_t some_cell(int32_t cell) { return cell ^ (cell >> 31); }

// One step's entries of the tables, which a thread asks for a tile before it puts them down.
struct NextCell {
  int64_t found = 0, step = -1;
  int32_t number = 0, before = 0;

  __device__ __forceinline__ void ask(const Steps& steps, int64_t at_step) {
    step = at_step;
    const int64_t last = steps.count - 1, read = step < last ? step : last;
    number = before = 0;
    if (read < 0) return;
    found = steps.found(read);
    if (steps.segment && step > 0 && step <= last) {
      number = __ldg(steps.segment + step * steps.segment_stride);
      before = __ldg(steps.segment + (step - 1) * steps.segment_stride);
    }
  }
  __device__ __forceinline__ int32_t cell(const Steps& steps) const {
    return uint64_t(found) < uint64_t(steps.length) ? int32_t(found) : 0;
  }
  template <int T>
  __device__ __forceinline__ void put(const Steps& steps, Cells<T>& to, int thread) const {
    const int32_t some = cell(steps);
    to.cell[thread] = step < steps.count ? some : -1 - some;
    put_starts(to, thread);
  }
  // The same, without a sign: a cell that is not there is some other.
  template <int T>
  __device__ __forceinline__ void put_any(const Steps& steps, Cells<T>& to, int thread) const {
    to.cell[thread] = cell(steps);
    put_starts(to, thread);
  }

 private:
  template <int T>
  __device__ __forceinline__ void put_starts(Cells<T>& to, int thread) const {
    const uint32_t mask = __ballot_sync(~0u, number != before);
    if (thread % 32 == 0) to.starts[thread / 32] = mask;
  }
};

}  // namespace nvsubq::selective

#endif
