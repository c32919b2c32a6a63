// What a struct of `rglru_scan` must hold, on any device.
#ifndef NVSUBQ_CHECKS_RGLRU_SCAN_H
#define NVSUBQ_CHECKS_RGLRU_SCAN_H

#include <initializer_list>

#include "check.h"

namespace nvsubq {

inline int check(const nvsubq_rglru_scan_args* a) {
  if (const int status = check_head(a)) return status;
  for (const nvsubq_tensor* t : {&a->x, &a->r, &a->i, &a->a_log})
    if (!present(*t)) return fail(NVSUBQ_INVALID, "x, r, i or a_log is absent");
  return NVSUBQ_OK;
}

}  // namespace nvsubq

#endif
