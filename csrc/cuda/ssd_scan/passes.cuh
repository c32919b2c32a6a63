// `ssd_scan`: the passes of one kind of arithmetic, which each `.cu` file compiles for one.
#ifndef NVSUBQ_CUDA_SSD_SCAN_PASSES_CUH
#define NVSUBQ_CUDA_SSD_SCAN_PASSES_CUH

#include "carry.cuh"
#include "outputs.cuh"
#include "rates.cuh"
#include "served.h"
#include "shares.cuh"
#include "sums.cuh"
#include "walk_forward.cuh"

namespace nvsubq::ssd {

template <class Math>
int64_t workspace_bytes(const Ssd& a, bool backward) {
  Call<Math> call(a, backward);
  return call.take(nullptr, backward, backward || !walks_forward(call));
}

// run(units) for each round.
template <class Math, class F>
int each_round(Call<Math>& call, F run) {
  const int64_t all = call.plan.units;
  for (call.first_unit = 0; call.first_unit < all; call.first_unit += call.plan.round_units) {
    const int64_t left = all - call.first_unit;
    if (const int status = run(left < call.plan.round_units ? left : call.plan.round_units)) return status;
  }
  return NVSUBQ_OK;
}

template <class Math>
int forward_pass(const Ssd& a, cudaStream_t stream) {
  Call<Math> call(a, false);
  call.take(a.workspace, false, !walks_forward(call));
  if (const int status = prepare_all(call, stream)) return status;
  if (const int status = carry_borders<Math, Way::forward>(call, stream)) return status;
  if (walks_forward(call)) return walk_forward_of(call, stream);
  return each_round(call, [&](int64_t units) {
    if (const int status = carry_units<Math, Way::forward, Pass::second>(call, units, stream)) return status;
    return outputs_of(call, units, stream);
  });
}

template <class Math>
int backward_pass(const Ssd& a, cudaStream_t stream) {
  Call<Math> call(a, true);
  call.take(a.workspace, true, true);
  if (const int status = prepare_all(call, stream)) return status;
  if (const int status = carry_borders<Math, Way::backward>(call, stream)) return status;
  const int status = each_round(call, [&](int64_t units) {
    if (const int status = carry_units<Math, Way::forward, Pass::second>(call, units, stream)) return status;
    if (const int status = carry_units<Math, Way::backward, Pass::second>(call, units, stream)) return status;
    if (const int status = rates_of(call, units, stream)) return status;
    return shares_of(call, units, stream);
  });
  return status ? status : sums_of(call, stream);
}

template <class Math>
constexpr Passes passes_of() {
  return {workspace_bytes<Math>, forward_pass<Math>, backward_pass<Math>};
}

}  // namespace nvsubq::ssd

#endif
