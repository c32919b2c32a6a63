// What a struct of `linear_scan` must hold, on any device.
#ifndef NVSUBQ_CHECKS_LINEAR_SCAN_H
#define NVSUBQ_CHECKS_LINEAR_SCAN_H

#include "check.h"

namespace nvsubq {

inline int check(const nvsubq_linear_scan_args* a) {
  if (const int status = check_head(a)) return status;
  if (!present(a->a) || !present(a->b)) return fail(NVSUBQ_INVALID, "a or b is absent");
  if (a->input_scale < NVSUBQ_SCALE_NONE || a->input_scale > NVSUBQ_SCALE_SQRT)
    return fail(NVSUBQ_INVALID, "input_scale (=%lld)", (long long)a->input_scale);
  if (present(a->dt)) {
    if (a->discretization != NVSUBQ_ZOH && a->discretization != NVSUBQ_BILINEAR)
      return fail(NVSUBQ_INVALID, "discretization (=%lld)", (long long)a->discretization);
    if (!(a->flags & NVSUBQ_FIXED_A)) return fail(NVSUBQ_INVALID, "with dt, a must be [D]");
  } else if (a->input_scale == NVSUBQ_SCALE_ZOH || a->input_scale == NVSUBQ_SCALE_BILINEAR) {
    return fail(NVSUBQ_INVALID, "input_scale (=%lld) needs dt", (long long)a->input_scale);
  }
  return NVSUBQ_OK;
}

}  // namespace nvsubq

#endif
