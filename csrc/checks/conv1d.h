// What a struct of `conv1d` must hold, on any device.
#ifndef NVSUBQ_CHECKS_CONV1D_H
#define NVSUBQ_CHECKS_CONV1D_H

#include "check.h"

namespace nvsubq {

inline int check(const nvsubq_conv1d_args* a) {
  if (const int status = check_head(a)) return status;
  if (a->taps < 1 || a->dilation < 1) return fail(NVSUBQ_INVALID, "taps or dilation is below 1");
  if (a->state_width < 0) return fail(NVSUBQ_INVALID, "state_width (=%lld)", (long long)a->state_width);
  if (!present(a->x) || !present(a->weight)) return fail(NVSUBQ_INVALID, "x or weight is absent");
  return NVSUBQ_OK;
}

}  // namespace nvsubq

#endif
