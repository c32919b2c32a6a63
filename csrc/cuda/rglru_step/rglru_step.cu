// One token of the RG-LRU in three kernels: both projections in with the convolution, the gates with the recurrence,
// the projection out.
#include "../../checks/rglru_step.h"
#include "../entry.h"
#include "../step/step.h"
#include "gates.cuh"

NVSUBQ_DECLARE_STEP(rglru_step, nvsubq_rglru_step_args)

namespace nvsubq {
namespace {

using RGLRUArgs = nvsubq_rglru_step_args;

template <class T>
struct Memory {
  T *in, *u, *y;  // [B][2D], [B][D], [B][D]
  int64_t bytes;
  explicit Memory(const RGLRUArgs& a) {
    Arena arena(a.workspace);
    in = arena.take<T>(a.batch * 2 * a.width);
    u = arena.take<T>(a.batch * a.width);
    y = arena.take<T>(a.batch * a.width);
    bytes = arena.bytes();
  }
};

int64_t workspace(const RGLRUArgs& given) {
  RGLRUArgs a = given;
  a.workspace = nullptr;  // only counted
  return a.flags & NVSUBQ_DOUBLE ? Memory<double>(a).bytes : Memory<float>(a).bytes;
}

template <class T, class S>
int run_gates(const RGLRUArgs& a, const Memory<T>& m, cudaStream_t stream) {
  const rglru::Gates<T> gates = {a.r_weight, a.r_bias, a.i_weight,        a.i_bias, a.a_log, a.state,
                                 a.batch,    a.width,  T(real_of(a.c)), m.u,      m.in,    m.y};
  const bool fits = rows_are_packs(a.width, sizeof(S), a.r_weight.data, a.i_weight.data);
  return for_packs<S>(fits, a.batch, [&](auto v, auto nb) {
    constexpr int V = decltype(v)::value, NB = decltype(nb)::value;
    const int warps = warps_of_row(a.width, a.width / V);
    const dim3 grid = grid_of_rows(a.width, warps, ceil_div(a.batch, NB));
    return launch_next("rglru_step", rglru::gates_kernel<T, S, V, NB>, grid, dim3(kStepThreads), stream, gates, warps);
  });
}

template <class T, class S>
int run_as(const RGLRUArgs& a, cudaStream_t stream) {
  const Memory<T> m(a);
  const ProjectIn<T> in = {a.x,     a.gate,    a.in_weight, a.in_bias, a.gate_weight, a.gate_bias,
                           a.batch, a.model,     a.width,   a.width,       m.in};
  const ConvStep<T> conv = {a.conv_state, a.conv_weight, a.conv_bias, 0, a.width, a.taps, false, m.u};
  if (const int status = project_in<T, S>(in, conv, stream)) return status;
  if (const int status = run_gates<T, S>(a, m, stream)) return status;
  return project<T, S>({m.y, a.out_weight, a.out_bias, a.batch, a.width, a.model, nullptr, a.y}, stream);
}

int run(const RGLRUArgs& a, cudaStream_t stream) {
  if (present(a.in_weight) != present(a.gate_weight))
    return fail(NVSUBQ_UNSUPPORTED, "in_weight and gate_weight must both be there, or neither");
  const nvsubq_tensor* alike[] = {&a.x,        &a.gate,     &a.in_weight, &a.in_bias,    &a.gate_weight, &a.gate_bias,
                                  &a.r_weight, &a.i_weight, &a.out_weight, &a.out_bias, &a.y};
  if (const int status = check_alike(alike, 11)) return status;
  if (!a.batch || !a.width) return NVSUBQ_OK;
  return for_step(a, a.x.dtype, [&](auto compute, auto stored) {
    return run_as<decltype(compute), decltype(stored)>(a, stream);
  });
}

}  // namespace

const Step<RGLRUArgs> cuda_rglru_step = {workspace, run};

}  // namespace nvsubq
