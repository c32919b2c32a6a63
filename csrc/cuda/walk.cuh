// A walk as kernels follow it: which cell a step visits, where a sequence starts, how many cells are there.
#ifndef NVSUBQ_CUDA_WALK_CUH
#define NVSUBQ_CUDA_WALK_CUH

#include <stdint.h>

#include "../checks/check.h"

namespace nvsubq {

// The walk of one row and one block.
struct Steps {
  const int64_t* index;
  const int32_t* segment;
  int64_t index_stride, segment_stride, count, length;  // steps from `count` on visit cells that are not there

  // Tables are the caller's word: a wrong one must not make a kernel leave its memory.
  __device__ __forceinline__ int64_t cell(int64_t step) const {
    return index ? checked(found(step)) : step;
  }
  // The same in two parts, for who asks early.
  __device__ __forceinline__ int64_t found(int64_t step) const {
    return index ? __ldg(index + step * index_stride) : step;
  }
  __device__ __forceinline__ int64_t checked(int64_t found) const {
    return uint64_t(found) < uint64_t(length) ? found : 0;
  }
  // The sequence of a step; steps before the walk belong to its first one. Only with `segment`.
  __device__ __forceinline__ int32_t number(int64_t step) const {
    return __ldg(segment + (step < 0 ? 0 : step) * segment_stride);
  }
  __device__ __forceinline__ bool together(int64_t one, int64_t other) const {
    return !segment || number(one) == number(other);
  }
  __device__ __forceinline__ bool starts(int64_t step) const {
    return segment && step > 0 && !together(step, step - 1);
  }
};

// The tables of a call, a kernel's parameter.
struct Walk {
  const int64_t *index, *count;
  const int32_t* segment;
  int64_t index_stride[3], segment_stride[3], count_stride, length;

  template <class Args>
  explicit Walk(const Args& a) : index(nullptr), count(nullptr), segment(nullptr), count_stride(0), length(a.length) {
    if (present(a.index)) index = static_cast<const int64_t*>(a.index.data);
    if (present(a.segment) && a.length > 0) segment = static_cast<const int32_t*>(a.segment.data);
    if (present(a.count)) count = static_cast<const int64_t*>(a.count.data), count_stride = a.count.stride[0];
    for (int i = 0; i < 3; ++i) index_stride[i] = a.index.stride[i], segment_stride[i] = a.segment.stride[i];
  }

  __device__ __forceinline__ Steps steps(int64_t row, int64_t block) const {
    Steps s;
    s.index = index ? index + row * index_stride[0] + block * index_stride[2] : nullptr;
    s.segment = segment ? segment + row * segment_stride[0] + block * segment_stride[2] : nullptr;
    s.index_stride = index_stride[1], s.segment_stride = segment_stride[1];
    s.length = length;
    const int64_t there = count ? __ldg(count + row * count_stride) : length;
    s.count = there < 0 ? 0 : there < length ? there : length;
    return s;
  }
};

}  // namespace nvsubq

#endif
