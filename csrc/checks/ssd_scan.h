// What a struct of `ssd_scan` must hold, on any device.
#ifndef NVSUBQ_CHECKS_SSD_SCAN_H
#define NVSUBQ_CHECKS_SSD_SCAN_H

#include <initializer_list>

#include "check.h"

namespace nvsubq {

inline int check(const nvsubq_ssd_scan_args* a) {
  if (const int status = check_head(a)) return status;
  if (a->states < 0) return fail(NVSUBQ_INVALID, "states (=%lld)", (long long)a->states);
  if (a->groups < 1 || a->heads < 1 || a->heads % a->groups || a->groups % a->blocks)
    return fail(NVSUBQ_INVALID, "groups (=%lld) must divide heads (=%lld) and be a multiple of blocks (=%lld)",
                (long long)a->groups, (long long)a->heads, (long long)a->blocks);
  if (a->head_width < 0 || a->width != a->heads * a->head_width)
    return fail(NVSUBQ_INVALID, "width (=%lld) must be heads (=%lld) times head_width (=%lld)", (long long)a->width,
                (long long)a->heads, (long long)a->head_width);
  for (const nvsubq_tensor* t : {&a->x, &a->dt, &a->A, &a->B, &a->C})
    if (!present(*t)) return fail(NVSUBQ_INVALID, "x, dt, A, B or C is absent");
  return NVSUBQ_OK;
}

}  // namespace nvsubq

#endif
