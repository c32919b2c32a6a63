// `selective_scan`, forward, for every call.
#include "general.cuh"

namespace nvsubq::selective {
namespace {

template <class T, bool CX, int PER>
__global__ void __launch_bounds__(kThreads)
    selective_general_forward(const __grid_constant__ Selective a, const __grid_constant__ Walk walk,
                              const __grid_constant__ Chunks chunks, int lanes) {
  using Num = Number<T, CX>;
  constexpr int parts = CX ? 2 : 1;
  const int at_once = kThreads / lanes;
  const int64_t per_group = (chunks.run + at_once - 1) / at_once, tile = blockIdx.x % (per_group * chunks.groups);
  Place p;
  p.row = blockIdx.x / (per_group * chunks.groups);
  p.group = tile / per_group;
  p.lane = int(threadIdx.x) % lanes, p.lanes = lanes;
  const int64_t within = tile % per_group * at_once + threadIdx.x / lanes;
  p.there = within < chunks.run;
  p.channel = p.group * chunks.run + (p.there ? within : 0);
  const Steps steps = walk.steps(p.row, p.group * a.blocks / chunks.groups);
  const Channel<T> channel(a, p.channel);
  const bool same = !has(a.delta_a), scaled = has_scale(a.discretization), gated = has(a.decay_gate);

  Num A[PER], state[PER];
  for (int i = 0; i < PER; ++i) {
    const int64_t n = p.lane + i * lanes;
    A[i] = state[i] = real_number<T, CX>(T(0));
    if (n >= a.states) continue;
    A[i] = read_number<T, CX>(a.A, at(a.A, p.channel, n));
    if (has(a.initial_state)) state[i] = read_number<T, CX>(a.initial_state, at(a.initial_state, p.row, p.channel, n));
  }
  for (int64_t k = 0; k < steps.count; ++k) {
    const int64_t cell = steps.cell(k);
    if (a.saved && k && k % kBorder == 0 && p.there)
      for (int i = 0; i < PER; ++i) {
        const int64_t n = p.lane + i * lanes;
        const int64_t border = (p.row * borders(a.length) + k / kBorder - 1) * a.width + p.channel;
        if (n < a.states) put_number<T, CX>(static_cast<T*>(a.saved) + (border * a.states + n) * parts, state[i]);
      }
    const Step<T> x = channel.read(a, p, cell);
    const bool starts = steps.starts(k);
    T out = 0;
    for (int i = 0; i < PER; ++i) {
      const int64_t n = p.lane + i * lanes;
      if (n >= a.states) continue;
      const Coefficients<T, CX> by(a.discretization, x, same, A[i]);
      Num decay = by.decay, in = read_by_state<T, CX>(a.B, a, NVSUBQ_FIXED_B, p, cell, n) * x.w;
      if (scaled) in = in * by.scale;
      if (gated) decay = decay * read_by_state<T, false>(a.decay_gate, a, NVSUBQ_FIXED_GATE, p, cell, n);
      state[i] = starts ? in : decay * state[i] + in;
      out += re(read_by_state<T, CX>(a.C, a, NVSUBQ_FIXED_C, p, cell, n) * state[i]);
    }
    out = over_lanes(out, lanes);
    if (p.lane || !p.there) continue;
    T y = (CX ? T(2) * out : out) + channel.skip * x.u;
    if (has(a.z)) {
      const T z = read_any<T>(a.z, at(a.z, p.row, cell) + p.channel);
      y *= z * sigmoid_of(z);
    }
    write_any<T>(a.y, at(a.y, p.row, cell) + p.channel, y);
  }
  if (!p.there) return;
  for (int i = 0; i < PER && has(a.final_state); ++i) {
    const int64_t n = p.lane + i * lanes;
    if (n < a.states) write_number<T, CX>(a.final_state, at(a.final_state, p.row, p.channel, n), state[i]);
  }
  for (int64_t k = steps.count + p.lane; k < steps.length; k += lanes)
    write_any<T>(a.y, at(a.y, p.row, steps.cell(k)) + p.channel, T(0));
}

template <class T, bool CX>
int run(const Selective& a, cudaStream_t stream) {
  const Chunks chunks(a);
  const int lanes = lanes_of(a.states);
  const dim3 grid(unsigned(a.batch * chunks.groups * ceil_div(chunks.run, kThreads / lanes)));
  const auto kernel =
      a.states <= 32 ? selective_general_forward<T, CX, 1> : selective_general_forward<T, CX, int(kMostStates / 32)>;
  return launch("selective_scan", kernel, grid, kThreads, 0, stream, a, Walk(a), chunks, lanes);
}

}  // namespace

int general_forward(const Selective& a, cudaStream_t stream) {
  if (in_double(a)) return is_complex(a.A) ? run<double, true>(a, stream) : run<double, false>(a, stream);
  return is_complex(a.A) ? run<float, true>(a, stream) : run<float, false>(a, stream);
}

}  // namespace nvsubq::selective
