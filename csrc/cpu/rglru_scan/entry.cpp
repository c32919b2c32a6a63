#include <initializer_list>

#include "../entry.h"

namespace {

using namespace nvsubq;

int check(const nvsubq_rglru_scan_args* a) {
  if (const int status = check_head(a)) return status;
  for (const nvsubq_tensor* t : {&a->x, &a->r, &a->i, &a->a_log})
    if (!present(*t)) return fail(NVSUBQ_INVALID, "x, r, i or a_log is absent");
  return NVSUBQ_OK;
}

}  // namespace

NVSUBQ_ENTRIES(rglru_scan, nvsubq_rglru_scan_args)
