// Tensors in device memory: elements of a dtype known when compiling, alone or several at once, and parameters and
// states of any dtype.
#ifndef NVSUBQ_CUDA_STORAGE_CUH
#define NVSUBQ_CUDA_STORAGE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "../checks/check.h"

namespace nvsubq {

using bf16 = __nv_bfloat16;
using f16 = __half;

// T is the compute dtype, float or double.
template <class T, class S>
__host__ __device__ __forceinline__ T widen(S x) {
  return T(x);
}
template <>
__host__ __device__ __forceinline__ float widen<float, bf16>(bf16 x) {
  return __bfloat162float(x);
}
template <>
__host__ __device__ __forceinline__ float widen<float, f16>(f16 x) {
  return __half2float(x);
}
template <>
__host__ __device__ __forceinline__ double widen<double, bf16>(bf16 x) {
  return double(__bfloat162float(x));
}
template <>
__host__ __device__ __forceinline__ double widen<double, f16>(f16 x) {
  return double(__half2float(x));
}

template <class S, class T>
__host__ __device__ __forceinline__ S narrow(T x) {
  return S(x);
}
template <>
__host__ __device__ __forceinline__ bf16 narrow<bf16, float>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__host__ __device__ __forceinline__ f16 narrow<f16, float>(float x) {
  return __float2half_rn(x);
}
template <>
__host__ __device__ __forceinline__ bf16 narrow<bf16, double>(double x) {
  return __double2bfloat16(x);
}
template <>
__host__ __device__ __forceinline__ f16 narrow<f16, double>(double x) {
  return __double2half(x);
}

// The i-th of the two bf16 in a word.
__device__ __forceinline__ float bf16_of(uint32_t word, int i) {
  return __uint_as_float(i ? word & 0xffff0000u : word << 16);
}

// V elements that are loaded and stored at once: their address is a multiple of their size.
template <class S, int V>
struct alignas(sizeof(S) * V) Pack {
  S lane[V];
};

// Elements in 16 bytes.
template <class S>
constexpr int kLanes = 16 / int(sizeof(S));

template <class S, int V>
__device__ __forceinline__ Pack<S, V> load_pack(const S* p) {
  return *reinterpret_cast<const Pack<S, V>*>(p);
}
template <class S, int V>
__device__ __forceinline__ void store_pack(S* p, const Pack<S, V>& x) {
  *reinterpret_cast<Pack<S, V>*>(p) = x;
}

// The same of what is read, or written, once: it need not stay in a cache.
template <class S, int V>
__device__ __forceinline__ Pack<S, V> load_once(const S* p) {
  Pack<S, V> x;
  if constexpr (sizeof x == 8) {
    uint2 bits;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0,%1}, [%2];" : "=r"(bits.x), "=r"(bits.y) : "l"(p));
    *reinterpret_cast<uint2*>(&x) = bits;
  } else if constexpr (sizeof x == 16) {
    uint4 bits;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
                 : "l"(p));
    *reinterpret_cast<uint4*>(&x) = bits;
  } else {
    x = load_pack<S, V>(p);
  }
  return x;
}
template <class S, int V>
__device__ __forceinline__ void store_once(S* p, const Pack<S, V>& x) {
  if constexpr (sizeof x == 8)
    __stcs(reinterpret_cast<uint2*>(p), *reinterpret_cast<const uint2*>(&x));
  else if constexpr (sizeof x == 16)
    __stcs(reinterpret_cast<uint4*>(p), *reinterpret_cast<const uint4*>(&x));
  else
    store_pack<S, V>(p, x);
}

// A tensor [B, L, D] of one dtype as a kernel takes it; the last axis is contiguous.
template <class S>
struct Rows {
  S* data = nullptr;
  int64_t row = 0, cell = 0;  // strides
  Rows() = default;
  NVSUBQ_ANYWHERE explicit Rows(const nvsubq_tensor& t)
      : data(static_cast<S*>(t.data)), row(t.stride[0]), cell(t.stride[1]) {}
  // One row's channels from `channel` on, at cell 0.
  __device__ __forceinline__ S* at(int64_t b, int64_t channel) const { return data + b * row + channel; }
};

inline int64_t item_bytes(const nvsubq_tensor& t) {
  const bool wide = t.dtype == NVSUBQ_F64 || t.dtype == NVSUBQ_I64;
  const bool single = t.dtype == NVSUBQ_F32 || t.dtype == NVSUBQ_I32;
  return (wide ? 8 : single ? 4 : 2) * (t.flags & NVSUBQ_COMPLEX ? 2 : 1);
}

// Whether packs of V channels, at every row and cell of a tensor [B, L, D], lie on multiples of their size.
inline bool packs_fit(const nvsubq_tensor& t, int64_t lanes) {
  if (!present(t)) return true;
  const bool fits = reinterpret_cast<uintptr_t>(t.data) % uintptr_t(lanes * item_bytes(t)) == 0;
  return fits && t.stride[0] % lanes == 0 && t.stride[1] % lanes == 0;
}

// Elements of any real dtype, chosen by each access: for parameters and states, which are few.
template <class T>
__device__ __forceinline__ T read_any(const nvsubq_tensor& t, int64_t i) {
  switch (t.dtype) {
    case NVSUBQ_F32: return T(static_cast<const float*>(t.data)[i]);
    case NVSUBQ_F64: return T(static_cast<const double*>(t.data)[i]);
    case NVSUBQ_F16: return widen<T>(static_cast<const f16*>(t.data)[i]);
    default: return widen<T>(static_cast<const bf16*>(t.data)[i]);
  }
}
template <class T>
__device__ __forceinline__ void write_any(const nvsubq_tensor& t, int64_t i, T x) {
  switch (t.dtype) {
    case NVSUBQ_F32: static_cast<float*>(t.data)[i] = float(x); break;
    case NVSUBQ_F64: static_cast<double*>(t.data)[i] = double(x); break;
    case NVSUBQ_F16: static_cast<f16*>(t.data)[i] = narrow<f16>(x); break;
    default: static_cast<bf16*>(t.data)[i] = narrow<bf16>(x);
  }
}
NVSUBQ_ANYWHERE inline int64_t at(const nvsubq_tensor& t, int64_t i, int64_t j) {
  return i * t.stride[0] + j * t.stride[1];
}
NVSUBQ_ANYWHERE inline int64_t at(const nvsubq_tensor& t, int64_t i, int64_t j, int64_t k) {
  return i * t.stride[0] + j * t.stride[1] + k * t.stride[2];
}

// Calls `todo` with a value of the storage dtype's type.
template <class F>
int for_dtype(int32_t dtype, F todo) {
  switch (dtype) {
    case NVSUBQ_F32: return todo(float());
    case NVSUBQ_F64: return todo(double());
    case NVSUBQ_F16: return todo(f16());
    case NVSUBQ_BF16: return todo(bf16());
    default: return fail(NVSUBQ_UNSUPPORTED, "dtype (=%d) is not that of a real tensor", int(dtype));
  }
}

// Hands out the workspace in parts that start on multiples of 256 bytes; on a null base it only counts the bytes.
class Arena {
 public:
  explicit Arena(void* memory) : base_(static_cast<char*>(memory)) {}
  template <class X>
  X* take(int64_t count) {
    char* found = base_ ? base_ + used_ : nullptr;
    used_ += (count * int64_t(sizeof(X)) + 255) / 256 * 256;
    return reinterpret_cast<X*>(found);
  }
  int64_t bytes() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace nvsubq

#endif
