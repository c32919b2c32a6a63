// One token of Mamba in four kernels: the projection in with the convolution, x_proj, the scan, the projection out.
#include "../../checks/mamba_step.h"
#include "../entry.h"
#include "../step/step.h"
#include "scan.cuh"

NVSUBQ_DECLARE_STEP(mamba_step, nvsubq_mamba_step_args)

namespace nvsubq {
namespace {

using MambaArgs = nvsubq_mamba_step_args;

template <class T>
struct Memory {
  T *xz, *u, *low, *y;  // [B][2D], [B][D], [B][R + 2N], [B][D]
  int64_t bytes;
  explicit Memory(const MambaArgs& a) {
    Arena arena(a.workspace);
    xz = arena.take<T>(a.batch * 2 * a.width);
    u = arena.take<T>(a.batch * a.width);
    low = arena.take<T>(a.batch * (a.rank + 2 * a.states));
    y = arena.take<T>(a.batch * a.width);
    bytes = arena.bytes();
  }
};

int64_t workspace(const MambaArgs& given) {
  MambaArgs a = given;
  a.workspace = nullptr;  // only counted
  return a.flags & NVSUBQ_DOUBLE ? Memory<double>(a).bytes : Memory<float>(a).bytes;
}

template <class T, class S>
int run_as(const MambaArgs& a, cudaStream_t stream) {
  const Memory<T> m(a);
  const ProjectIn<T> in = {a.x, {}, a.in_weight, a.in_bias, {}, {}, a.batch, a.model, 2 * a.width, 0, m.xz};
  const ConvStep<T> conv = {a.conv_state, a.conv_weight, a.conv_bias, 0, a.width, a.taps, true, m.u};
  if (const int status = project_in<T, S>(in, conv, stream)) return status;
  const int64_t rows = a.rank + 2 * a.states;
  if (const int status = project<T, S>({m.u, a.x_proj, {}, a.batch, a.width, rows, m.low, {}}, stream)) return status;
  const mamba::Scan<T> scan = {a.dt_weight, a.dt_bias, a.A_log, a.D, a.timesteps,      a.state, a.width,
                               a.states,    a.rank,    a.discretization, m.low, m.u, m.xz,    m.y};
  const dim3 grid(unsigned(ceil_div(a.width * mamba::kShared, kStepThreads)), unsigned(a.batch));
  if (const int status =
          launch_next("mamba_step", mamba::scan_kernel<T, S>, grid, dim3(kStepThreads), stream, scan))
    return status;
  return project<T, S>({m.y, a.out_weight, a.out_bias, a.batch, a.width, a.model, nullptr, a.y}, stream);
}

int run(const MambaArgs& a, cudaStream_t stream) {
  const nvsubq_tensor* alike[] = {&a.x,         &a.in_weight,  &a.in_bias,  &a.x_proj,
                                  &a.dt_weight, &a.out_weight, &a.out_bias, &a.y};
  if (const int status = check_alike(alike, 8)) return status;
  if (!a.batch || !a.width) return NVSUBQ_OK;
  return for_step(a, a.x.dtype, [&](auto compute, auto stored) {
    return run_as<decltype(compute), decltype(stored)>(a, stream);
  });
}

}  // namespace

const Step<MambaArgs> cuda_mamba_step = {workspace, run};

}  // namespace nvsubq
