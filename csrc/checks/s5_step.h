// What a struct of `s5_step` must hold, on any device.
#ifndef NVSUBQ_CHECKS_S5_STEP_H
#define NVSUBQ_CHECKS_S5_STEP_H

#include "step.h"

namespace nvsubq {

inline int check(const nvsubq_s5_step_args* a) {
  if (const int status = check_common(a)) return status;
  if (a->states < 1) return fail(NVSUBQ_INVALID, "states (=%lld) is below 1", (long long)a->states);
  if (a->discretization < NVSUBQ_ZOH || a->discretization > NVSUBQ_DIRAC)
    return fail(NVSUBQ_INVALID, "discretization (=%lld)", (long long)a->discretization);
  if (!present(a->u) || !present(a->D) || !present(a->log_dt) || !present(a->y))
    return fail(NVSUBQ_INVALID, "u, D, log_dt or y is absent");
  if (!(a->state.flags & NVSUBQ_COMPLEX)) return fail(NVSUBQ_INVALID, "state must be complex");
  if (const int status = check_dense("A", a->A, 2)) return status;
  if (const int status = check_weight("B", a->B, 2 * a->width, a->flags)) return status;
  if (const int status = check_weight("C", a->C, 2 * a->states, a->flags)) return status;
  return check_state(a->state, a->states, a->flags);
}

}  // namespace nvsubq

#endif
