// The C functions of a step.
#ifndef NVSUBQ_CPU_STEP_ENTRY_H
#define NVSUBQ_CPU_STEP_ENTRY_H

#include "entry.h"

namespace nvsubq {

template <class Args>
int run_step(const Args& a, const Step<Args>& step) {
  if (const int status = check_workspace(a, step.workspace(a))) return status;
  step.run(a);
  return NVSUBQ_OK;
}

}  // namespace nvsubq

// The two C functions of a step, from its `int check(const Args*)`.
#define NVSUBQ_STEP_ENTRIES(step, Args)                                                                  \
  NVSUBQ_DECLARE_STEP(step, Args)                                                                        \
  extern "C" {                                                                                           \
  int64_t nvsubq_##step##_workspace(const Args* args) {                                                  \
    return nvsubq::check(args) ? -1 : NVSUBQ_PICK(step, nvsubq::level_of(args->level)).workspace(*args); \
  }                                                                                                      \
  int nvsubq_##step(const Args* args) {                                                                  \
    if (const int status = nvsubq::check(args)) return status;                                           \
    return nvsubq::run_step(*args, NVSUBQ_PICK(step, nvsubq::level_of(args->level)));                    \
  }                                                                                                      \
  }

#endif
