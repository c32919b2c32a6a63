// `ssd_scan`: contiguous rows of tensors, to and from the compute dtype, as loops that compilers turn into vectors.
#ifndef NVSUBQ_CPU_SSD_SCAN_ROWS_H
#define NVSUBQ_CPU_SSD_SCAN_ROWS_H

#include "../storage.h"

namespace {

template <class T>
__attribute__((noinline)) void convert_from(const nvsubq_tensor& from, int64_t offset, int64_t count,
                                            T* __restrict to) {
  const uint16_t* const half = static_cast<const uint16_t*>(from.data) + offset;
  if (from.dtype == NVSUBQ_BF16) {
    for (int64_t i = 0; i < count; ++i) to[i] = T(from_bf16(half[i]));
  } else if (from.dtype == NVSUBQ_F16) {
    for (int64_t i = 0; i < count; ++i) to[i] = T(from_f16(half[i]));
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = read_one<T>(from, offset + i);
  }
}

template <class T>
__attribute__((noinline)) void convert_to(const nvsubq_tensor& to, int64_t offset, int64_t count,
                                          const T* __restrict from) {
  uint16_t* const half = static_cast<uint16_t*>(to.data) + offset;
  if (to.dtype == NVSUBQ_BF16) {
    for (int64_t i = 0; i < count; ++i) half[i] = to_bf16(float(from[i]));
  } else if (to.dtype == NVSUBQ_F16) {
    for (int64_t i = 0; i < count; ++i) half[i] = to_f16(float(from[i]));
  } else {
    for (int64_t i = 0; i < count; ++i) write_one<T>(to, offset + i, from[i]);
  }
}

// In line: rows are short, and vectors come back out of the store buffer whole.
template <class T>
inline void copy_elements(const T* from, int64_t count, T* to) {
  constexpr int W = Simd<T>::W;
  int64_t i = 0;
  for (; i + W <= count; i += W) memcpy(to + i, from + i, sizeof(Vec<T>));
  for (; i < count; ++i) to[i] = from[i];
}

// `count` elements from `offset` on.
template <class T>
inline void read_elements(const nvsubq_tensor& from, int64_t offset, int64_t count, T* to) {
  if (from.dtype != DtypeOf<T>::value) return convert_from<T>(from, offset, count, to);
  copy_elements<T>(static_cast<const T*>(from.data) + offset, count, to);
}
template <class T>
inline void write_elements(const nvsubq_tensor& to, int64_t offset, int64_t count, const T* from) {
  if (to.dtype != DtypeOf<T>::value) return convert_to<T>(to, offset, count, from);
  copy_elements<T>(from, count, static_cast<T*>(to.data) + offset);
}

}  // namespace
#endif
