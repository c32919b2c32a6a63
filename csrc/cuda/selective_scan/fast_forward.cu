// `selective_scan`, forward, fast: the kernel, and which of its shapes serves a call.
#include "forward_computing.cuh"
#include "forward_serving.cuh"
#include "pieces.cuh"

namespace nvsubq::selective {
namespace {

// BLOCKS: as many as a multiprocessor should hold. Pieces as a grid constant cost four registers that are not there.
template <class S, class Is, int BLOCKS>
__global__ void __launch_bounds__(Is::threads, BLOCKS)
    selective_fast_forward(const __grid_constant__ Selective a, const __grid_constant__ Walk walk,
                           const __grid_constant__ Options is, Pieces pieces, const float* entering) {
  extern __shared__ __align__(16) char memory[];
  auto& m = *reinterpret_cast<typename Is::Memory*>(memory);
  constexpr int channels = Is::channels, T = Is::T;
  const int run = int(a.width / a.groups), per_group = (run + channels - 1) / channels;
  const int64_t tile_here = blockIdx.x % (per_group * a.groups), piece = blockIdx.x / (per_group * a.groups);
  const int64_t row = piece / pieces.count, group = tile_here / per_group;
  const int within = int(tile_here % per_group) * channels;
  const int64_t first = group * run + within;
  const Steps steps = walk.steps(row, group * a.blocks / a.groups);
  const int64_t begin = piece % pieces.count * pieces.each;
  const int64_t end = begin + pieces.each < steps.length ? begin + pieces.each : steps.length;
  const int64_t there = (steps.count < end ? steps.count : end) - begin;
  const int tiles = there > 0 ? int((there + T - 1) / T) : 0;

  if (threadIdx.x >= Is::computers) {
    const auto serve = [&](auto serving) {
      serving.run(steps, begin, there, tiles);
      serving.clear(steps, begin, end);
    };
    if (is.whole)
      serve(Serving<S, Is, true>(m, a, is, row, first, run - within, group));
    else
      serve(Serving<S, Is, false>(m, a, is, row, first, run - within, group));
    return;
  }
  const float* const states = entering ? entering + piece * a.width * a.states : nullptr;
  Computing<S, Is> computing(m, a, row, first, run - within, states);
  __syncthreads();
  const int first_step = int(begin), steps_there = int(there);
  for (int i = -1; i <= tiles; ++i) {
    if (i >= 0 && i < tiles) {
      const int here = min(T, steps_there - i * T), slot = i & (kRing - 1);
      const bool starts = m.cells[slot].any_starts();
      constexpr int most = T < kBorder ? T : kBorder;
      for (int from = 0; from < here; from += most) {
        const int step = first_step + i * T + from, count = min(most, here - from);
        if (a.saved && step && step % kBorder == 0) computing.keep(step / kBorder - 1);
        if (starts)
          computing.template run<true>(i & 1, slot, from, count);
        else
          computing.template run<false>(i & 1, slot, from, count);
      }
    }
    __syncthreads();
  }
  if (piece % pieces.count == pieces.count - 1) computing.finish();
}

// A long walk over few channels is cut, by a rule of one row's shape.
Pieces pieces_of(const Selective& a) {
  const bool cut = a.states <= kMostFast && a.length > 16 * a.width;
  return cut ? Pieces(a, true) : Pieces::whole(a);
}

struct Plan {
  Arena arena;
  Pieces pieces;
  float *entering = nullptr, *sums = nullptr;  // where a walk is cut

  Plan(const Selective& a, void* memory) : arena(memory), pieces(pieces_of(a)) {
    if (pieces.count == 1) return;
    const int64_t channels = a.batch * pieces.count * a.width;
    entering = arena.take<float>(channels * a.states), sums = arena.take<float>(channels);
  }
};

template <class S, class Is, int BLOCKS>
int run(const Selective& a, const Plan& plan, cudaStream_t stream) {
  const dim3 grid(unsigned(a.batch * plan.pieces.count * a.groups * ceil_div(a.width / a.groups, Is::channels)));
  return launch("selective_scan", selective_fast_forward<S, Is, BLOCKS>, grid, Is::threads,
                sizeof(typename Is::Memory), stream, a, Walk(a), options_of(a), plan.pieces, plan.entering);
}

template <class S>
int for_states(const Selective& a, cudaStream_t stream) {
  const Plan plan(a, a.workspace);
  if (plan.pieces.count > 1)
    if (const int status = carry<S>(a, plan.pieces, true, options_of(a), plan.entering, plan.sums, stream))
      return status;
  if (a.states <= 4) return run<S, Shape<1, 4, 1, 4, 4, 32>, 2>(a, plan, stream);
  if (a.states > 16) return run<S, Shape<16, 4, 1, 4, 4, 32>, 1>(a, plan, stream);
  return run<S, Shape<2, 8, 2, 4, 4, 32>, 3>(a, plan, stream);
}

}  // namespace

int64_t fast_forward_bytes(const Selective& a) { return Plan(a, nullptr).arena.bytes(); }

int fast_forward(const Selective& a, cudaStream_t stream) {
  switch (a.u.dtype) {
    case NVSUBQ_F32: return for_states<float>(a, stream);
    case NVSUBQ_F16: return for_states<f16>(a, stream);
    default: return for_states<bf16>(a, stream);
  }
}

bool is_fast(const Selective& a) {
  constexpr int64_t most = int64_t(1) << 31;
  if (in_double(a) || is_complex(a.A) || a.discretization != NVSUBQ_MAMBA) return false;
  if (present(a.delta_a) || present(a.decay_gate) || a.flags & (NVSUBQ_FIXED_B | NVSUBQ_FIXED_C)) return false;
  if (a.states < 1 || a.states > 64 || a.length >= most || !a.width) return false;
  for (const nvsubq_tensor* t : {&a.u, &a.delta, &a.B, &a.C, &a.z, &a.y, &a.d_y, &a.d_u, &a.d_delta, &a.d_z}) {
    if (!present(*t)) continue;
    if (t->dtype != a.u.dtype || t->stride[1] < 0 || t->stride[1] * item_bytes(*t) >= 2 * most) return false;
  }
  return true;
}

}  // namespace nvsubq::selective
