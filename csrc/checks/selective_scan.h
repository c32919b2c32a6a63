// What a struct of `selective_scan` must hold, on any device.
#ifndef NVSUBQ_CHECKS_SELECTIVE_SCAN_H
#define NVSUBQ_CHECKS_SELECTIVE_SCAN_H

#include <initializer_list>

#include "check.h"

namespace nvsubq {

inline int check(const nvsubq_selective_scan_args* a) {
  if (const int status = check_head(a)) return status;
  if (a->states < 0) return fail(NVSUBQ_INVALID, "states (=%lld)", (long long)a->states);
  const int64_t fixed = NVSUBQ_FIXED_B | NVSUBQ_FIXED_C;
  if (a->groups < 1 || a->width % a->groups || (a->groups % a->blocks && (a->flags & fixed) != fixed))
    return fail(NVSUBQ_INVALID, "groups (=%lld) must divide width (=%lld) and be a multiple of blocks (=%lld)",
                (long long)a->groups, (long long)a->width, (long long)a->blocks);
  if (a->discretization < NVSUBQ_MAMBA || a->discretization > NVSUBQ_NO_DISCRETIZATION)
    return fail(NVSUBQ_INVALID, "discretization (=%lld)", (long long)a->discretization);
  if (present(a->timesteps) && !present(a->delta_a)) return fail(NVSUBQ_INVALID, "timesteps need delta_a");
  for (const nvsubq_tensor* t : {&a->u, &a->delta, &a->A, &a->B, &a->C})
    if (!present(*t)) return fail(NVSUBQ_INVALID, "u, delta, A, B or C is absent");
  const bool is_complex = a->A.flags & NVSUBQ_COMPLEX;
  if (!is_complex && ((a->B.flags | a->C.flags) & NVSUBQ_COMPLEX))
    return fail(NVSUBQ_INVALID, "B or C is complex, A is real");
  for (const nvsubq_tensor* t : {&a->initial_state, &a->final_state, &a->d_final_state, &a->d_initial_state, &a->d_A})
    if (present(*t) && bool(t->flags & NVSUBQ_COMPLEX) != is_complex)
      return fail(NVSUBQ_INVALID, "states and gradients must be complex as A is");
  for (const nvsubq_tensor* t :
       {&a->u, &a->delta, &a->D, &a->z, &a->delta_bias, &a->delta_a, &a->timesteps, &a->decay_gate})
    if (t->flags & NVSUBQ_COMPLEX) return fail(NVSUBQ_INVALID, "only A, B, C and states may be complex");
  if (present(a->d_B) && ((a->d_B.flags ^ a->B.flags) | (a->d_C.flags ^ a->C.flags)) & NVSUBQ_COMPLEX)
    return fail(NVSUBQ_INVALID, "the gradients of B and C must be complex as they are");
  return NVSUBQ_OK;
}

}  // namespace nvsubq

#endif
