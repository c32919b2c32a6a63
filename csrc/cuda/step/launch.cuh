// How the kernels of one step follow each other: each is launched while the one before still runs, fetches what no
// kernel of the step writes (weights, its own states), and then waits for it.
//
// The first kernel of a step is launched plainly, so all that earlier calls have written is there before any of them
// starts. Every thread of a later one must call `wait_for_the_last` before it reads what the step has written, and
// before it writes anything; a kernel ends only after that, so its end says that all kernels before it have ended.
#ifndef NVSUBQ_CUDA_STEP_LAUNCH_CUH
#define NVSUBQ_CUDA_STEP_LAUNCH_CUH

#include <cuda_runtime.h>

#include "../math.cuh"
#include "../overlap.cuh"
#include "../storage.cuh"

namespace nvsubq {

constexpr int kStepThreads = 128;
constexpr int kStepWarps = kStepThreads / 32;
constexpr unsigned kAllLanes = 0xffffffffu;

#if defined(__CUDACC__)
// Calls todo(compute, stored) with values of the compute dtype and of the dtype of activations and projections.
template <class Args, class F>
int for_step(const Args& a, int32_t dtype, F todo) {
  if (a.flags & NVSUBQ_DOUBLE) {
    if (dtype != NVSUBQ_F64) return fail(NVSUBQ_UNSUPPORTED, "a step in fp64 has all of its projections in fp64");
    return todo(double(), double());
  }
  switch (dtype) {
    case NVSUBQ_F32: return todo(float(), float());
    case NVSUBQ_F16: return todo(float(), f16());
    case NVSUBQ_BF16: return todo(float(), bf16());
    default: return fail(NVSUBQ_UNSUPPORTED, "dtype (=%d) is not one of a step in fp32", int(dtype));
  }
}

// Every tensor that is there has the dtype of the first.
inline int check_alike(const nvsubq_tensor* const* tensors, int count) {
  for (int i = 0; i < count; ++i)
    if (present(*tensors[i]) && tensors[i]->dtype != tensors[0]->dtype)
      return fail(NVSUBQ_UNSUPPORTED, "projections must have the dtype of the activations");
  return NVSUBQ_OK;
}
#endif

// A double that comes as the integer of the same bits.
inline double real_of(int64_t bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace nvsubq

#endif
