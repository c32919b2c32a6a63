// One token of S5 in two kernels: the states, and what is read of them.
#include "../../checks/s5_step.h"
#include "../entry.h"
#include "../step/step.h"
#include "states.cuh"

NVSUBQ_DECLARE_STEP(s5_step, nvsubq_s5_step_args)

namespace nvsubq {
namespace {

using S5Args = nvsubq_s5_step_args;

int64_t workspace(const S5Args& a) {
  return a.batch * 2 * a.states * int64_t(a.flags & NVSUBQ_DOUBLE ? sizeof(double) : sizeof(float));
}

template <class T, class S>
int run_states(const S5Args& a, cudaStream_t stream) {
  const s5::States<T> states = {a.u,     a.A,      a.B,      a.log_dt,         a.timesteps,
                                a.state, a.batch,  a.width,  a.states,         a.discretization,
                                real_of(a.step_rescale), T(real_of(a.kappa)), static_cast<T*>(a.workspace)};
  return for_packs<S>(rows_are_packs(2 * a.width, sizeof(S), a.B.data), a.batch, [&](auto v, auto nb) {
    constexpr int V = decltype(v)::value, NB = decltype(nb)::value;
    const int warps = warps_of_row(a.states, 2 * a.width / V);
    return launch("s5_step", s5::states_kernel<T, S, V, NB>, grid_of_rows(a.states, warps, ceil_div(a.batch, NB)),
                  dim3(kStepThreads), 0, stream, states, warps);
  });
}

template <class T, class S>
int run_as(const S5Args& a, cudaStream_t stream) {
  if (const int status = run_states<T, S>(a, stream)) return status;
  const T* read = static_cast<const T*>(a.workspace);
  return project<T, S>({read, a.C, {}, a.batch, 2 * a.states, a.width, nullptr, a.y, a.D, a.u}, stream);
}

int run(const S5Args& a, cudaStream_t stream) {
  const nvsubq_tensor* alike[] = {&a.u, &a.B, &a.C, &a.y};
  if (const int status = check_alike(alike, 4)) return status;
  if (!a.batch || !a.width) return NVSUBQ_OK;
  return for_step(a, a.u.dtype, [&](auto compute, auto stored) {
    return run_as<decltype(compute), decltype(stored)>(a, stream);
  });
}

}  // namespace

const Step<S5Args> cuda_s5_step = {workspace, run};

}  // namespace nvsubq
