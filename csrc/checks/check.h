// The checks of what could make a kernel leave its memory that every op shares, on every device. The checks of one
// op lie beside this file, `int check(const Args*)` for its struct.
#ifndef NVSUBQ_CHECKS_CHECK_H
#define NVSUBQ_CHECKS_CHECK_H

#include "../include/nvsubq.h"

// What kernels of either device call.
#if defined(__CUDACC__)
#define NVSUBQ_ANYWHERE __host__ __device__
#else
#define NVSUBQ_ANYWHERE
#endif

namespace nvsubq {

// Keeps a message for nvsubq_last_error and gives the status back.
int fail(int status, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Whether the library's machine is what the call asks for: each library has its own.
int check_machine(int64_t threads, int64_t level, int64_t device);

NVSUBQ_ANYWHERE inline bool present(const nvsubq_tensor& t) { return t.flags & NVSUBQ_PRESENT; }

// The fields that every struct has, an op's or a step's.
template <class Args>
int check_common(const Args* a) {
  if (!a) return fail(NVSUBQ_INVALID, "args is null");
  if (a->abi != NVSUBQ_ABI)
    return fail(NVSUBQ_UNSUPPORTED, "the caller speaks version %u of the interface, this library %u", a->abi,
                NVSUBQ_ABI);
  if (a->size != sizeof(Args))
    return fail(NVSUBQ_UNSUPPORTED, "the struct has %u bytes, this library knows %zu", a->size, sizeof(Args));
  if (const int status = check_machine(a->threads, a->level, a->device)) return status;
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

template <class Args>
int check_workspace(const Args& a, int64_t needed) {
  if (a.workspace_bytes < needed)
    return fail(NVSUBQ_INVALID, "workspace_bytes (=%lld) must be %lld", (long long)a.workspace_bytes,
                (long long)needed);
  return NVSUBQ_OK;
}

// The memory of one pass; a null `saved` is allowed where none is kept.
template <class Args>
int check_memory(const Args& a, int64_t needed, int64_t kept, bool backward) {
  if (const int status = check_workspace(a, needed)) return status;
  if ((a.saved || backward) && a.saved_bytes < kept)
    return fail(NVSUBQ_INVALID, "saved_bytes (=%lld) must be %lld", (long long)a.saved_bytes, (long long)kept);
  return NVSUBQ_OK;
}

}  // namespace nvsubq

#endif
