// What the library is.
#include "../checks/check.h"

namespace nvsubq {

int check_machine(int64_t, int64_t, int64_t device) {
  if (device < 0) return fail(NVSUBQ_INVALID, "device (=%lld) is no CUDA device", (long long)device);
  return NVSUBQ_OK;
}

}  // namespace nvsubq

extern "C" {

// The architectures that it has code for come last: "sm_80 sm_90 compute_90", where compute_ is PTX.
const char* nvsubq_build_info(void) { return "nvsubq_cuda, " NVSUBQ_COMPILER ", " NVSUBQ_ARCHITECTURES; }

const char* nvsubq_level_name(int64_t level) { return level == 0 ? "cuda" : nullptr; }

}  // extern "C"
