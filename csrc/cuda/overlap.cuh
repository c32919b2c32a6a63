// Kernels that start while the one before still runs, and wait for it where they need what it wrote.
//
// The kernel before is launched plainly, or waits itself: so all that earlier calls have written is there. Each block
// of a later one must wait before it ends, so that its end says that all kernels before it have ended.
#ifndef NVSUBQ_CUDA_OVERLAP_CUH
#define NVSUBQ_CUDA_OVERLAP_CUH

#include <cuda_runtime.h>

#include "launch.h"

namespace nvsubq {

// Lets the next kernel start as soon as every block has come here.
__device__ __forceinline__ void let_the_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_the_last() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#if defined(__CUDACC__)
template <int>
__global__ void overlap_probe() {}

// Whether kernels may start before the last has ended: whether what runs on the current device was compiled with the
// waits above, and not for an older one, from which the driver makes code for any newer.
inline bool overlaps() {
  static thread_local int known_device = -1;
  static thread_local bool known = false;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  if (device != known_device) {
    cudaFuncAttributes found = {};
    if (cudaFuncGetAttributes(&found, overlap_probe<0>) != cudaSuccess) {
      cudaGetLastError();
      return false;
    }
    known_device = device;
    known = found.ptxVersion >= 90;
  }
  return known;
}

// Queues a kernel that waits for the one before it by itself.
template <class... Parameters, class... Given>
int launch_next(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream,
                const Given&... given) {
  if (!grid.x || !grid.y || !grid.z) return NVSUBQ_OK;
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = overlaps() ? 1 : 0;
  return status_of(cudaLaunchKernelEx(&config, kernel, Parameters(given)...), name);
}
#endif

}  // namespace nvsubq

#endif
