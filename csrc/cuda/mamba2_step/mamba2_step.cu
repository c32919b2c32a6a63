// One token of Mamba2 in three or four kernels: the projection in with the convolution, the heads and the MLP, the norm
// where it is not one over all that the projection out takes, the projection out.
#include "../../checks/mamba2_step.h"
#include "../entry.h"
#include "../step/step.h"
#include "heads.cuh"

NVSUBQ_DECLARE_STEP(mamba2_step, nvsubq_mamba2_step_args)

namespace nvsubq {
namespace {

using Mamba2Args = nvsubq_mamba2_step_args;

template <class T>
struct Memory {
  int64_t conv_width, x_at, in_width, blocks, bytes;
  T *in, *u, *out;  // [B][in_width], [B][conv_width], [B][mlp + D]
  T* squares;       // [B][blocks of channels]
  explicit Memory(const Mamba2Args& a)
      : conv_width(a.width + 2 * a.groups * a.states), x_at(2 * a.mlp + a.width), in_width(x_at + conv_width + a.heads),
        blocks(ceil_div(a.width, kStepWarps)) {
    Arena arena(a.workspace);
    in = arena.take<T>(a.batch * in_width);
    u = arena.take<T>(a.batch * conv_width);
    out = arena.take<T>(a.batch * (a.mlp + a.width));
    squares = arena.take<T>(a.batch * blocks);
    bytes = arena.bytes();
  }
};

int64_t workspace(const Mamba2Args& given) {
  Mamba2Args a = given;
  a.workspace = nullptr;  // only counted
  return a.flags & NVSUBQ_DOUBLE ? Memory<double>(a).bytes : Memory<float>(a).bytes;
}

// Whether the projection out can divide what it gives by the norm.
bool norm_comes_last(const Mamba2Args& a) {
  return present(a.norm_weight) && present(a.out_weight) && !a.norm_before_gate && a.groups == 1 && !a.mlp;
}

template <class T>
int run_heads(const Mamba2Args& a, const Memory<T>& m, cudaStream_t stream) {
  const bool norm = present(a.norm_weight);
  mamba2::Heads<T> h = {};
  h.dt_bias = a.dt_bias, h.A_log = a.A_log, h.D = a.D, h.norm_weight = a.norm_weight, h.state = a.state;
  h.width = a.width, h.head_width = a.width / a.heads, h.heads = a.heads, h.states = a.states, h.groups = a.groups;
  h.mlp = a.mlp, h.in_width = m.in_width, h.conv_width = m.conv_width;
  h.by_channel = a.channel_skip, h.gate_here = !norm || !a.norm_before_gate;
  h.dt_low = T(real_of(a.dt_low)), h.dt_high = T(real_of(a.dt_high)), h.norm_eps = T(real_of(a.norm_eps));
  h.in = m.in, h.u = m.u, h.out = m.out, h.squares = norm_comes_last(a) ? m.squares : nullptr;
  constexpr int V = kLanes<T>;
  const bool packs = a.states % V == 0 && reinterpret_cast<uintptr_t>(a.state.data) % 16 == 0;
  const unsigned blocks = unsigned(m.blocks);
  const dim3 grid(blocks + unsigned(ceil_div(a.mlp, kStepThreads)), unsigned(a.batch));
  const auto kernel = packs ? mamba2::heads_kernel<T, V> : mamba2::heads_kernel<T, 1>;
  if (const int status = launch_next("mamba2_step", kernel, grid, dim3(kStepThreads), stream, h, blocks)) return status;
  if (!norm || h.squares) return NVSUBQ_OK;
  return launch_next("mamba2_step's norm", mamba2::norm_kernel<T>, dim3(unsigned(a.groups), unsigned(a.batch)),
                     dim3(mamba2::kNormThreads), stream, h);
}

template <class T, class S>
int run_as(const Mamba2Args& a, cudaStream_t stream) {
  const Memory<T> m(a);
  const ProjectIn<T> in = {a.x, {}, a.in_weight, a.in_bias, {}, {}, a.batch, a.model, m.in_width, 0, m.in};
  const ConvStep<T> conv = {a.conv_state, a.conv_weight, a.conv_bias, m.x_at, m.conv_width, a.taps, true, m.u};
  if (const int status = project_in<T, S>(in, conv, stream)) return status;
  if (const int status = run_heads<T>(a, m, stream)) return status;
  Project<T> out = {m.out, a.out_weight, a.out_bias, a.batch, a.mlp + a.width, a.model, nullptr, a.y};
  if (norm_comes_last(a)) out.squares = m.squares, out.parts = m.blocks, out.norm_eps = T(real_of(a.norm_eps));
  return project<T, S>(out, stream);
}

int run(const Mamba2Args& a, cudaStream_t stream) {
  const nvsubq_tensor* alike[] = {&a.x, &a.in_weight, &a.in_bias, &a.out_weight, &a.out_bias, &a.y};
  if (const int status = check_alike(alike, 6)) return status;
  if (!a.batch || !a.width) return NVSUBQ_OK;
  return for_step(a, a.x.dtype, [&](auto compute, auto stored) {
    return run_as<decltype(compute), decltype(stored)>(a, stream);
  });
}

}  // namespace

const Step<Mamba2Args> cuda_mamba2_step = {workspace, run};

}  // namespace nvsubq
