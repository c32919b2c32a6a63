// Numbers of any dtype that are asked for before they are needed.
//
// `read_any` converts where it reads, so a thread waits for each number before it asks for the next one. Here the bits
// come into a register without a wait, and are converted when they are used.
#ifndef NVSUBQ_CUDA_STEP_LATER_CUH
#define NVSUBQ_CUDA_STEP_LATER_CUH

#include "../storage.cuh"

namespace nvsubq {

template <class T>
class Later;

template <>
class Later<float> {
 public:
  __device__ __forceinline__ void ask(const nvsubq_tensor& t, int64_t i) {
    if (t.dtype == NVSUBQ_F32)
      bits_ = static_cast<const uint32_t*>(t.data)[i];
    else if (t.dtype == NVSUBQ_F64)
      bits_ = __float_as_uint(float(static_cast<const double*>(t.data)[i]));
    else
      bits_ = static_cast<const uint16_t*>(t.data)[i];
  }
  __device__ __forceinline__ float get(const nvsubq_tensor& t) const {
    if (t.dtype == NVSUBQ_BF16) return __uint_as_float(bits_ << 16);
    if (t.dtype == NVSUBQ_F16) return __half2float(__ushort_as_half(uint16_t(bits_)));
    return __uint_as_float(bits_);
  }

 private:
  uint32_t bits_ = 0;
};

template <>
class Later<double> {
 public:
  __device__ __forceinline__ void ask(const nvsubq_tensor& t, int64_t i) { value_ = read_any<double>(t, i); }
  __device__ __forceinline__ double get(const nvsubq_tensor&) const { return value_; }

 private:
  double value_ = 0;
};

}  // namespace nvsubq

#endif
