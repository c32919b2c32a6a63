// What the C functions of every op share: the checks of what could make a kernel leave its memory.
#ifndef NVSUBQ_CPU_ENTRY_H
#define NVSUBQ_CPU_ENTRY_H

#include "op.h"

namespace nvsubq {

// Keeps a message for nvsubq_last_error and gives the status back.
int fail(int status, const char* format, ...) __attribute__((format(printf, 2, 3)));

// The instruction set that a call asks for (0: the one in use), or 0 where the machine lacks it.
int level_of(int64_t asked);

inline bool present(const nvsubq_tensor& t) { return t.flags & NVSUBQ_PRESENT; }

// The fields that every struct has, an op's or a step's.
template <class Args>
int check_common(const Args* a) {
  if (!a) return fail(NVSUBQ_INVALID, "args is null");
  if (a->abi != NVSUBQ_ABI)
    return fail(NVSUBQ_UNSUPPORTED, "the caller speaks version %u of the interface, this library %u", a->abi, NVSUBQ_ABI);
  if (a->size != sizeof(Args))
    return fail(NVSUBQ_UNSUPPORTED, "the struct has %u bytes, this library knows %zu", a->size, sizeof(Args));
  if (a->threads < 1 || a->threads > 4096) return fail(NVSUBQ_INVALID, "threads (=%lld)", (long long)a->threads);
  if (!level_of(a->level)) return fail(NVSUBQ_UNSUPPORTED, "this machine lacks level %lld", (long long)a->level);
  if (a->batch < 0 || a->width < 0) return fail(NVSUBQ_INVALID, "a size is negative");
  return NVSUBQ_OK;
}

// The fields that every op's struct has.
template <class Args>
int check_head(const Args* a) {
  if (const int status = check_common(a)) return status;
  if (a->length < 0) return fail(NVSUBQ_INVALID, "a size is negative");
  if (a->blocks < 1 || a->width % a->blocks)
    return fail(NVSUBQ_INVALID, "blocks (=%lld) must divide width (=%lld)", (long long)a->blocks, (long long)a->width);
  return NVSUBQ_OK;
}

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

// Runs one pass of an op whose struct has passed its own check; a null `saved` is allowed where none is kept.
template <class Args>
int run_pass(const Args& a, const Op<Args>& op, bool backward) {
  const int64_t needed = op.workspace(a), kept = op.saved(a);
  if (a.workspace_bytes < needed)
    return fail(NVSUBQ_INVALID, "workspace_bytes (=%lld) must be %lld", (long long)a.workspace_bytes, (long long)needed);
  if ((a.saved || backward) && a.saved_bytes < kept)
    return fail(NVSUBQ_INVALID, "saved_bytes (=%lld) must be %lld", (long long)a.saved_bytes, (long long)kept);
  if (const int status = check_tables(a)) return status;
  (backward ? op.backward : op.forward)(a);
  return NVSUBQ_OK;
}

}  // namespace nvsubq

// The four C functions of an op, from `int check(const Args*)`.
#define NVSUBQ_ENTRIES(op, Args)                                                               \
  NVSUBQ_DECLARE(op, Args)                                                                     \
  extern "C" {                                                                                 \
  int64_t nvsubq_##op##_workspace(const Args* args) {                                          \
    return check(args) ? -1 : NVSUBQ_PICK(op, nvsubq::level_of(args->level)).workspace(*args); \
  }                                                                                            \
  int64_t nvsubq_##op##_saved(const Args* args) {                                              \
    return check(args) ? -1 : NVSUBQ_PICK(op, nvsubq::level_of(args->level)).saved(*args);     \
  }                                                                                            \
  int nvsubq_##op##_forward(const Args* args) {                                                \
    if (const int status = check(args)) return status;                                         \
    return nvsubq::run_pass(*args, NVSUBQ_PICK(op, nvsubq::level_of(args->level)), false);     \
  }                                                                                            \
  int nvsubq_##op##_backward(const Args* args) {                                               \
    if (const int status = check(args)) return status;                                         \
    return nvsubq::run_pass(*args, NVSUBQ_PICK(op, nvsubq::level_of(args->level)), true);      \
  }                                                                                            \
  }

#endif
