// The checks that the steps of whole cores share.
#ifndef NVSUBQ_CHECKS_STEP_H
#define NVSUBQ_CHECKS_STEP_H

#include "check.h"

namespace nvsubq {

// A weight or a state: there, and dense from its second axis on (`inner` elements each).
inline int check_dense(const char* name, const nvsubq_tensor& t, int64_t inner) {
  if (!present(t)) return fail(NVSUBQ_INVALID, "%s is absent", name);
  if (t.stride[0] != inner) return fail(NVSUBQ_INVALID, "%s must be dense", name);
  return NVSUBQ_OK;
}

// The recurrent state is kept in the compute dtype: in half precision it would drift.
inline int check_state(const nvsubq_tensor& t, int64_t inner, int64_t flags) {
  if (t.dtype != (flags & NVSUBQ_DOUBLE ? NVSUBQ_F64 : NVSUBQ_F32))
    return fail(NVSUBQ_UNSUPPORTED, "state must have the compute dtype");
  return check_dense("state", t, inner);
}

// In fp32 arithmetic there is nothing in fp64.
inline int check_weight(const char* name, const nvsubq_tensor& t, int64_t inner, int64_t flags) {
  const bool wide = t.dtype == NVSUBQ_F64;
  if (flags & NVSUBQ_DOUBLE ? !wide && t.dtype != NVSUBQ_F32 : wide)
    return fail(NVSUBQ_UNSUPPORTED, "%s (dtype %d) does not go with the compute dtype", name, t.dtype);
  return check_dense(name, t, inner);
}

// The projections in and out, where they are given.
template <class Args>
int check_projections(const Args* a, int64_t width) {
  if (a->model < 0) return fail(NVSUBQ_INVALID, "model (=%lld) is negative", (long long)a->model);
  if (present(a->in_weight))
    if (const int status = check_weight("in_weight", a->in_weight, a->model, a->flags)) return status;
  if (present(a->out_weight))
    if (const int status = check_weight("out_weight", a->out_weight, width, a->flags)) return status;
  return NVSUBQ_OK;
}

}  // namespace nvsubq

#endif
