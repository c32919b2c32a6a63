// Copies from global to shared memory that go on while the thread does other work.
#ifndef NVSUBQ_CUDA_COPY_CUH
#define NVSUBQ_CUDA_COPY_CUH

#include <stdint.h>

namespace nvsubq {

// BYTES (4, 8 or 16) from a multiple of their size, or zeros where they are not `there`; `from` is an address anyway.
template <int BYTES>
__device__ __forceinline__ void copy_later(void* to, const void* from, bool there) {
  const uint32_t address = uint32_t(__cvta_generic_to_shared(to));
  if constexpr (BYTES == 16)  // these leave the L1 cache alone
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(address), "l"(from), "r"(there ? BYTES : 0),
                 "n"(BYTES)
                 : "memory");
}
// Ends a group of this thread's copies; waits for all of them, or all but the last group.
__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
__device__ __forceinline__ void wait_for_older_copies() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }

}  // namespace nvsubq

#endif
