// What the C functions of every op share; the checks of their arguments are those of csrc/checks.
#ifndef NVSUBQ_CPU_ENTRY_H
#define NVSUBQ_CPU_ENTRY_H

#include "../checks/check.h"
#include "op.h"

namespace nvsubq {

// The instruction set that a call asks for (0: the one in use), or 0 where the machine lacks it.
int level_of(int64_t asked);

// Tables are the caller's word; a wrong one must not make a kernel write elsewhere.
template <class Args>
int check_tables(const Args& a) {
  if (present(a.count))
    for (int64_t b = 0; b < a.batch; ++b) {
      const int64_t count = static_cast<const int64_t*>(a.count.data)[b * a.count.stride[0]];
      if (count < 0 || count > a.length)
        return fail(NVSUBQ_INVALID, "count (=%lld) must lie in 0 .. %lld", (long long)count, (long long)a.length);
    }
  if (!present(a.index)) return NVSUBQ_OK;
  const int64_t* index = static_cast<const int64_t*>(a.index.data);
  const int64_t rows = a.index.stride[0] ? a.batch : 1;
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t k = 0; k < a.length; ++k)
      for (int64_t s = 0; s < a.blocks; ++s) {
        const int64_t cell = index[b * a.index.stride[0] + k * a.index.stride[1] + s * a.index.stride[2]];
        if (cell < 0 || cell >= a.length)
          return fail(NVSUBQ_INVALID, "index (=%lld) must lie in 0 .. %lld", (long long)cell, (long long)a.length - 1);
      }
  return NVSUBQ_OK;
}

// Runs one pass of an op whose struct has passed its own check.
template <class Args>
int run_pass(const Args& a, const Op<Args>& op, bool backward) {
  if (const int status = check_memory(a, op.workspace(a), op.saved(a), backward)) return status;
  if (const int status = check_tables(a)) return status;
  (backward ? op.backward : op.forward)(a);
  return NVSUBQ_OK;
}

}  // namespace nvsubq

// The four C functions of an op, from its `int check(const Args*)`.
#define NVSUBQ_ENTRIES(op, Args)                                                                       \
  NVSUBQ_DECLARE(op, Args)                                                                             \
  extern "C" {                                                                                         \
  int64_t nvsubq_##op##_workspace(const Args* args) {                                                  \
    return nvsubq::check(args) ? -1 : NVSUBQ_PICK(op, nvsubq::level_of(args->level)).workspace(*args); \
  }                                                                                                    \
  int64_t nvsubq_##op##_saved(const Args* args) {                                                      \
    return nvsubq::check(args) ? -1 : NVSUBQ_PICK(op, nvsubq::level_of(args->level)).saved(*args);     \
  }                                                                                                    \
  int nvsubq_##op##_forward(const Args* args) {                                                        \
    if (const int status = nvsubq::check(args)) return status;                                         \
    return nvsubq::run_pass(*args, NVSUBQ_PICK(op, nvsubq::level_of(args->level)), false);             \
  }                                                                                                    \
  int nvsubq_##op##_backward(const Args* args) {                                                       \
    if (const int status = nvsubq::check(args)) return status;                                         \
    return nvsubq::run_pass(*args, NVSUBQ_PICK(op, nvsubq::level_of(args->level)), true);              \
  }                                                                                                    \
  }

#endif
