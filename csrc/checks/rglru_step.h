// What a struct of `rglru_step` must hold, on any device.
#ifndef NVSUBQ_CHECKS_RGLRU_STEP_H
#define NVSUBQ_CHECKS_RGLRU_STEP_H

#include "step.h"

namespace nvsubq {

inline int check(const nvsubq_rglru_step_args* a) {
  if (const int status = check_common(a)) return status;
  if (a->taps < 1) return fail(NVSUBQ_INVALID, "taps (=%lld) is below 1", (long long)a->taps);
  if (!present(a->x) || (!present(a->gate) && !present(a->gate_weight)) || !present(a->r_bias) || !present(a->i_bias) || !present(a->a_log) || !present(a->y))
    return fail(NVSUBQ_INVALID, "x, gate, r_bias, i_bias, a_log or y is absent");
  if (const int status = check_dense("conv_state", a->conv_state, a->width * a->taps)) return status;
  if (const int status = check_dense("conv_weight", a->conv_weight, a->taps)) return status;
  if (const int status = check_weight("r_weight", a->r_weight, a->width, a->flags)) return status;
  if (const int status = check_weight("i_weight", a->i_weight, a->width, a->flags)) return status;
  if (const int status = check_projections(a, a->width)) return status;
  if (present(a->gate_weight))
    if (const int status = check_weight("gate_weight", a->gate_weight, a->model, a->flags)) return status;
  return check_state(a->state, a->width, a->flags);
}

}  // namespace nvsubq

#endif
