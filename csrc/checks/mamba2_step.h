// What a struct of `mamba2_step` must hold, on any device.
#ifndef NVSUBQ_CHECKS_MAMBA2_STEP_H
#define NVSUBQ_CHECKS_MAMBA2_STEP_H

#include "step.h"

namespace nvsubq {

inline int check(const nvsubq_mamba2_step_args* a) {
  if (const int status = check_common(a)) return status;
  if (a->states < 1 || a->heads < 1 || a->groups < 1 || a->taps < 1 || a->mlp < 0)
    return fail(NVSUBQ_INVALID, "states, heads, groups or taps is below 1, or mlp below 0");
  if (a->width % a->heads || a->heads % a->groups)
    return fail(NVSUBQ_INVALID, "groups (=%lld) must divide heads (=%lld), and these width (=%lld)", (long long)a->groups,
                (long long)a->heads, (long long)a->width);
  if (!present(a->x) || !present(a->dt_bias) || !present(a->A_log) || !present(a->D) || !present(a->y))
    return fail(NVSUBQ_INVALID, "x, dt_bias, A_log, D or y is absent");
  const int64_t conv_width = a->width + 2 * a->groups * a->states;
  if (const int status = check_dense("conv_state", a->conv_state, conv_width * a->taps)) return status;
  if (const int status = check_dense("conv_weight", a->conv_weight, a->taps)) return status;
  if (const int status = check_projections(a, a->mlp + a->width)) return status;
  return check_state(a->state, a->width * a->states, a->flags);
}

}  // namespace nvsubq

#endif
