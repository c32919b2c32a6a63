// Launching kernels, and what became of it.
#ifndef NVSUBQ_CUDA_LAUNCH_H
#define NVSUBQ_CUDA_LAUNCH_H

#include <cuda_runtime_api.h>

#include "../checks/check.h"

namespace nvsubq {

inline int status_of(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return NVSUBQ_OK;
  return fail(NVSUBQ_FAILED, "%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

// The call's device, for as long as this lives; then what was current before.
class DeviceGuard {
 public:
  explicit DeviceGuard(int64_t device) {
    error_ = cudaGetDevice(&before_);
    if (error_ != cudaSuccess || before_ == int(device)) return;
    error_ = cudaSetDevice(int(device));
    changed_ = error_ == cudaSuccess;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t error() const { return error_; }

 private:
  cudaError_t error_ = cudaSuccess;
  int before_ = 0;
  bool changed_ = false;
};

constexpr int64_t kPlainSharedBytes = 48 << 10;  // a kernel has to ask for more

#if defined(__CUDACC__)
// Queues a kernel; `shared` bytes of dynamic shared memory. Nothing to do (an empty grid) is no error.
template <class... Parameters, class... Given>
int launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, int64_t shared, cudaStream_t stream,
           const Given&... given) {
  if (!grid.x || !grid.y || !grid.z) return NVSUBQ_OK;
  if (shared > kPlainSharedBytes) {
    const auto error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
    if (const int status = status_of(error, name)) return status;
  }
  kernel<<<grid, block, size_t(shared), stream>>>(given...);
  return status_of(cudaGetLastError(), name);
}
#endif

NVSUBQ_ANYWHERE inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace nvsubq

#endif
