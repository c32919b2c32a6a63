// Tensors in memory of any dtype and stride, read and written by rows of lanes.
#ifndef NVSUBQ_CPU_STORAGE_H
#define NVSUBQ_CPU_STORAGE_H

#include "../include/nvsubq.h"
#include "simd.h"

namespace {

inline bool has(const nvsubq_tensor& t) { return t.flags & NVSUBQ_PRESENT; }

inline float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

inline float from_bf16(uint16_t h) { return from_bits(uint32_t(h) << 16); }
inline uint16_t to_bf16(float x) {
  const uint32_t bits = to_bits(x);
  if (x != x) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to nearest, ties to even
}

inline float from_f16(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, rest = h & 0x7fff;
  if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | ((rest & 0x3ff) << 13));
  // As if its exponent had fp32's bias, then multiplied back: subnormal numbers come out right too.
  return from_bits(sign | to_bits(from_bits(rest << 13) * 5.192296858534828e33f));
}
inline uint16_t to_f16(float x) {
  const uint32_t bits = to_bits(x), sign = (bits >> 16) & 0x8000;
  uint32_t rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (rest >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (rest < 0x38800000) {  // subnormal: adding 1/2 rounds at the right bit
    return uint16_t(sign | (to_bits(from_bits(rest) + 0.5f) - 0x3f000000));
  }
  rest += 0xc8000fff + ((rest >> 13) & 1);
  return uint16_t(sign | (rest >> 13));
}

inline int64_t at(const nvsubq_tensor& t, int64_t i) { return i * t.stride[0]; }
inline int64_t at(const nvsubq_tensor& t, int64_t i, int64_t j) { return i * t.stride[0] + j * t.stride[1]; }
inline int64_t at(const nvsubq_tensor& t, int64_t i, int64_t j, int64_t k) {
  return i * t.stride[0] + j * t.stride[1] + k * t.stride[2];
}
inline int64_t at(const nvsubq_tensor& t, int64_t i, int64_t j, int64_t k, int64_t l) {
  return i * t.stride[0] + j * t.stride[1] + k * t.stride[2] + l * t.stride[3];
}

template <class T>
inline T read_one(const nvsubq_tensor& t, int64_t i) {
  switch (t.dtype) {
    case NVSUBQ_F32: return T(static_cast<const float*>(t.data)[i]);
    case NVSUBQ_F64: return T(static_cast<const double*>(t.data)[i]);
    case NVSUBQ_F16: return T(from_f16(static_cast<const uint16_t*>(t.data)[i]));
    default: return T(from_bf16(static_cast<const uint16_t*>(t.data)[i]));
  }
}

template <class T>
inline void write_one(const nvsubq_tensor& t, int64_t i, T x) {
  switch (t.dtype) {
    case NVSUBQ_F32: static_cast<float*>(t.data)[i] = float(x); break;
    case NVSUBQ_F64: static_cast<double*>(t.data)[i] = double(x); break;
    case NVSUBQ_F16: static_cast<uint16_t*>(t.data)[i] = to_f16(float(x)); break;
    default: static_cast<uint16_t*>(t.data)[i] = to_bf16(float(x));
  }
}

template <class T>
struct DtypeOf;
template <>
struct DtypeOf<float> {
  static constexpr int value = NVSUBQ_F32;
};
template <>
struct DtypeOf<double> {
  static constexpr int value = NVSUBQ_F64;
};

// Out of line: inlined at every call they would drown the loops around them.
template <class T>
__attribute__((noinline)) Vec<T> convert_lanes(const nvsubq_tensor& t, int64_t offset, int n) {
  T lanes[Simd<T>::W] = {};
  for (int i = 0; i < n; ++i) lanes[i] = read_one<T>(t, offset + i);
  Vec<T> v;
  memcpy(&v, lanes, sizeof v);
  return v;
}
template <class T>
__attribute__((noinline)) void convert_lanes_back(const nvsubq_tensor& t, int64_t offset, int n, Vec<T> v) {
  T lanes[Simd<T>::W];
  memcpy(lanes, &v, sizeof v);
  for (int i = 0; i < n; ++i) write_one<T>(t, offset + i, lanes[i]);
}

// The `n` elements from `offset` on; further lanes are 0.
template <class T>
inline Vec<T> read_lanes(const nvsubq_tensor& t, int64_t offset, int n) {
  if (__builtin_expect(n != Simd<T>::W || t.dtype != DtypeOf<T>::value, 0)) return convert_lanes<T>(t, offset, n);
  Vec<T> v;
  memcpy(&v, static_cast<const T*>(t.data) + offset, sizeof v);
  return v;
}

template <class T>
inline void write_lanes(const nvsubq_tensor& t, int64_t offset, int n, Vec<T> v) {
  if (__builtin_expect(n != Simd<T>::W || t.dtype != DtypeOf<T>::value, 0)) {
    convert_lanes_back<T>(t, offset, n, v);
    return;
  }
  memcpy(static_cast<T*>(t.data) + offset, &v, sizeof v);
}

inline int64_t item_size(const nvsubq_tensor& t) {
  const int64_t real = t.dtype == NVSUBQ_F64 || t.dtype == NVSUBQ_I64 ? 8 : t.dtype == NVSUBQ_F32 || t.dtype == NVSUBQ_I32 ? 4 : 2;
  return real * (t.flags & NVSUBQ_COMPLEX ? 2 : 1);
}

inline const void* address(const nvsubq_tensor& t, int64_t offset) {
  return static_cast<const char*>(t.data) + offset * item_size(t);
}

// A tile of a tensor [B, L, D] in one row: `n` channels from `channel` on, at any cell. Its address is worked out once.
template <class T>
struct Lanes {
  const nvsubq_tensor* tensor = nullptr;
  char* first = nullptr;  // at cell 0
  int64_t offset = 0, stride = 0, bytes = 0;
  int n = 0;
  bool there = false, plain = false;

  Lanes() = default;
  Lanes(const nvsubq_tensor& t, int64_t row, int64_t channel, int lanes) : tensor(&t), n(lanes), there(has(t)) {
    offset = at(t, row, 0, channel);
    stride = t.stride[1];
    bytes = stride * item_size(t);
    first = static_cast<char*>(t.data) + offset * item_size(t);
    plain = n == Simd<T>::W && t.dtype == DtypeOf<T>::value;
  }
  Vec<T> operator[](int64_t cell) const {
    if (__builtin_expect(!plain, 0)) return convert_lanes<T>(*tensor, offset + cell * stride, n);
    Vec<T> v;
    memcpy(&v, first + cell * bytes, sizeof v);
    return v;
  }
  void put(int64_t cell, Vec<T> v) const {
    if (__builtin_expect(!plain, 0))
      convert_lanes_back<T>(*tensor, offset + cell * stride, n, v);
    else
      memcpy(first + cell * bytes, &v, sizeof v);
  }
};

// Lanes that are `stride` elements apart, as where memory has channels before states or taps.
template <class T>
inline Vec<T> read_column(const nvsubq_tensor& from, int64_t offset, int64_t stride, int n) {
  T lanes[Simd<T>::W] = {};
  for (int i = 0; i < n; ++i) lanes[i] = read_one<T>(from, offset + i * stride);
  Vec<T> v;
  memcpy(&v, lanes, sizeof v);
  return v;
}
template <class T>
inline void write_column(const nvsubq_tensor& to, int64_t offset, int64_t stride, int n, Vec<T> v) {
  T lanes[Simd<T>::W];
  memcpy(lanes, &v, sizeof v);
  for (int i = 0; i < n; ++i) write_one<T>(to, offset + i * stride, lanes[i]);
}

// Rows of the compute dtype in the workspace, `n` lanes of them in use.
template <class T>
inline Vec<T> read_part(const T* p, int n) {
  Vec<T> v = {};
  memcpy(&v, p, n * sizeof(T));
  return v;
}
template <class T>
inline void write_part(T* p, int n, Vec<T> v) {
  memcpy(p, &v, n * sizeof(T));
}

// Hands out the workspace; on a null base it only counts the bytes.
struct Arena {
  uintptr_t base;
  int64_t used = 0;

  explicit Arena(void* memory) : base((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64) {}
  template <class X>
  X* take(int64_t count) {
    const uintptr_t found = base + uintptr_t(used);
    used += (count * int64_t(sizeof(X)) + 63) / 64 * 64;
    return reinterpret_cast<X*>(found);
  }
  int64_t bytes() const { return used + 64; }
};

// The walk of one row and one block.
struct Steps {
  const int64_t* index;
  int64_t index_stride, count, length;
  const int32_t* segment;
  int64_t segment_stride;

  int64_t cell(int64_t step) const { return index ? index[step * index_stride] : step; }
  bool starts(int64_t step) const {
    return segment && step > 0 && segment[step * segment_stride] != segment[(step - 1) * segment_stride];
  }
  bool together(int64_t one, int64_t other) const {  // steps before the walk belong to its first sequence
    return !segment || number(one) == number(other);
  }
  int32_t number(int64_t step) const { return segment[(step < 0 ? 0 : step) * segment_stride]; }
};

template <class Args>
inline Steps steps_of(const Args& a, int64_t row, int64_t block) {
  Steps s = {};
  s.length = s.count = a.length;
  if (has(a.index)) {
    s.index = static_cast<const int64_t*>(a.index.data) + at(a.index, row, 0, block);
    s.index_stride = a.index.stride[1];
  }
  if (has(a.segment) && a.length > 0) {
    s.segment = static_cast<const int32_t*>(a.segment.data) + at(a.segment, row, 0, block);
    s.segment_stride = a.segment.stride[1];
  }
  if (has(a.count)) s.count = static_cast<const int64_t*>(a.count.data)[row * a.count.stride[0]];
  return s;
}

}  // namespace
#endif
