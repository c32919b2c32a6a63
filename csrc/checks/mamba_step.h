// What a struct of `mamba_step` must hold, on any device.
#ifndef NVSUBQ_CHECKS_MAMBA_STEP_H
#define NVSUBQ_CHECKS_MAMBA_STEP_H

#include "step.h"

namespace nvsubq {

inline int check(const nvsubq_mamba_step_args* a) {
  if (const int status = check_common(a)) return status;
  if (a->states < 1 || a->rank < 1 || a->taps < 1) return fail(NVSUBQ_INVALID, "states, rank or taps is below 1");
  if (a->discretization < NVSUBQ_MAMBA || a->discretization > NVSUBQ_DIRAC)
    return fail(NVSUBQ_INVALID, "discretization (=%lld)", (long long)a->discretization);
  if (!present(a->x) || !present(a->dt_bias) || !present(a->D) || !present(a->y))
    return fail(NVSUBQ_INVALID, "x, dt_bias, D or y is absent");
  if (const int status = check_dense("conv_state", a->conv_state, a->width * a->taps)) return status;
  if (const int status = check_dense("conv_weight", a->conv_weight, a->taps)) return status;
  if (const int status = check_projections(a, a->width)) return status;
  if (const int status = check_weight("x_proj", a->x_proj, a->width, a->flags)) return status;
  if (const int status = check_weight("dt_weight", a->dt_weight, a->rank, a->flags)) return status;
  if (const int status = check_dense("A_log", a->A_log, a->states)) return status;
  return check_state(a->state, a->width * a->states, a->flags);
}

}  // namespace nvsubq

#endif
