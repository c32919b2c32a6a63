// What every op is made of, and its C functions.
//
// A folder per op: one of its `.cu` files declares its table with NVSUBQ_DECLARE and defines it, `const Op<Args>
// nvsubq::cuda_OP` (or NVSUBQ_DECLARE_STEP, `Step<Args>`); `entry.cpp` holds the C functions, which check the struct
// (csrc/checks) and make its device the current one.
// Tables of a walk lie on the device, so nothing checks them before a launch: kernels keep them in range (walk.cuh).
#ifndef NVSUBQ_CUDA_ENTRY_H
#define NVSUBQ_CUDA_ENTRY_H

#include "launch.h"

namespace nvsubq {

// Bytes of workspace that serve both passes, bytes that a forward leaves for its backward, and the passes, which
// queue their kernels and give a status.
template <class Args>
struct Op {
  int64_t (*workspace)(const Args&);
  int64_t (*saved)(const Args&);
  int (*forward)(const Args&, cudaStream_t);
  int (*backward)(const Args&, cudaStream_t);
};

// A function without a backward: the step of a whole core.
template <class Args>
struct Step {
  int64_t (*workspace)(const Args&);
  int (*run)(const Args&, cudaStream_t);
};

template <class Args>
inline int64_t nothing_saved(const Args&) {
  return 0;
}

// Runs a pass of an op whose struct has passed its own check.
template <class Args>
int run_pass(const Args& a, const Op<Args>& op, bool backward) {
  if (const int status = check_memory(a, op.workspace(a), op.saved(a), backward)) return status;
  const DeviceGuard guard(a.device);
  if (const int status = status_of(guard.error(), "the device of the call")) return status;
  return (backward ? op.backward : op.forward)(a, static_cast<cudaStream_t>(a.stream));
}

template <class Args>
int run_step(const Args& a, const Step<Args>& step) {
  if (const int status = check_workspace(a, step.workspace(a))) return status;
  const DeviceGuard guard(a.device);
  if (const int status = status_of(guard.error(), "the device of the call")) return status;
  return step.run(a, static_cast<cudaStream_t>(a.stream));
}

}  // namespace nvsubq

#define NVSUBQ_DECLARE(op, Args)   \
  namespace nvsubq {               \
  extern const Op<Args> cuda_##op; \
  }
#define NVSUBQ_DECLARE_STEP(step, Args) \
  namespace nvsubq {                    \
  extern const Step<Args> cuda_##step;  \
  }

// The four C functions of an op, from its `int check(const Args*)`.
#define NVSUBQ_ENTRIES(op, Args)                                          \
  NVSUBQ_DECLARE(op, Args)                                                \
  extern "C" {                                                            \
  int64_t nvsubq_##op##_workspace(const Args* args) {                     \
    return nvsubq::check(args) ? -1 : nvsubq::cuda_##op.workspace(*args); \
  }                                                                       \
  int64_t nvsubq_##op##_saved(const Args* args) {                         \
    return nvsubq::check(args) ? -1 : nvsubq::cuda_##op.saved(*args);     \
  }                                                                       \
  int nvsubq_##op##_forward(const Args* args) {                           \
    if (const int status = nvsubq::check(args)) return status;            \
    return nvsubq::run_pass(*args, nvsubq::cuda_##op, false);             \
  }                                                                       \
  int nvsubq_##op##_backward(const Args* args) {                          \
    if (const int status = nvsubq::check(args)) return status;            \
    return nvsubq::run_pass(*args, nvsubq::cuda_##op, true);              \
  }                                                                       \
  }

// The two C functions of a step.
#define NVSUBQ_STEP_ENTRIES(step, Args)                                     \
  NVSUBQ_DECLARE_STEP(step, Args)                                           \
  extern "C" {                                                              \
  int64_t nvsubq_##step##_workspace(const Args* args) {                     \
    return nvsubq::check(args) ? -1 : nvsubq::cuda_##step.workspace(*args); \
  }                                                                         \
  int nvsubq_##step(const Args* args) {                                     \
    if (const int status = nvsubq::check(args)) return status;              \
    return nvsubq::run_step(*args, nvsubq::cuda_##step);                    \
  }                                                                         \
  }

#endif
