// `selective_scan`, fast: where walks are cut into pieces, the states that enter each, or the cotangents that arrive at
// its end. First every piece alone, as if nothing came before (or behind) it; then the pieces of a row one after the
// other, where a piece lets through exp(A sum of delta) of what arrives.
#include "carrying.cuh"

namespace nvsubq::selective {
namespace {

template <class S, bool FORTH>
__global__ void __launch_bounds__(kThreads, FORTH && sizeof(S) == 2 ? 6 : 5)
    selective_carry(const __grid_constant__ Selective a, const __grid_constant__ Walk walk,
                    const __grid_constant__ Pieces pieces, const __grid_constant__ Options is,
                    float* __restrict__ local, float* __restrict__ sums) {
  extern __shared__ __align__(16) char bytes[];
  auto& memory = *reinterpret_cast<CarryMemory<S, FORTH>*>(bytes);
  const int run = int(a.width / a.groups), per_group = (run + kWide - 1) / kWide, parts = per_group * int(a.groups);
  const int part = blockIdx.x % parts, group = part / per_group, within = part % per_group * kWide;
  const int64_t number = blockIdx.x / parts, row = number / pieces.count, piece = number % pieces.count;
  if (piece == (FORTH ? pieces.count - 1 : 0)) return;  // nothing comes after it
  const int64_t first = int64_t(group) * run + within;
  const int there = run - within < kWide ? run - within : kWide;
  const Steps steps = walk.steps(row, group * a.blocks / a.groups);
  const int64_t begin = piece * pieces.each, left = steps.count - begin;
  const int length = int(left < 0 ? 0 : left < pieces.each ? left : pieces.each);

  const auto carry = [&](auto carrier) {
    const bool cut = carrier.run(steps, int(begin), length);
    const int64_t channels = number * a.width + first;
    const int states = int(a.states);
    for (int i = threadIdx.x; i < there * states; i += kThreads)
      local[channels * states + i] = carrier.made(i / states, i % states);
    constexpr int nothing = 0x7fffffff;  // no number: nothing passes
    if (threadIdx.x < there) sums[channels + threadIdx.x] = cut ? __int_as_float(nothing) : carrier.sum;
  };
  if (is.packed)
    carry(Carrier<S, FORTH, true>(memory, a, is, row, first, there, group));
  else
    carry(Carrier<S, FORTH, false>(memory, a, is, row, first, there, group));
}

// In place: what each piece makes becomes what arrives at it.
__global__ void __launch_bounds__(128)
    selective_arrive(const __grid_constant__ Selective a, int64_t pieces, bool forth, float* __restrict__ local,
                     const float* __restrict__ sums) {
  const int64_t i = int64_t(blockIdx.x) * 128 + threadIdx.x, each = a.width * a.states;
  if (i >= a.batch * each) return;
  const int64_t row = i / each, element = i - row * each;
  const int64_t channel = uint32_t(element) / uint32_t(a.states), n = element - channel * a.states;
  const float rate = read_any<float>(a.A, at(a.A, channel, n)) * kLog2e;
  const nvsubq_tensor& first = forth ? a.initial_state : a.d_final_state;
  float q = has(first) ? read_any<float>(first, at(first, row, channel, n)) : 0.0f;
  const auto piece_at = [&](int64_t k) { return row * pieces + (forth ? k : pieces - 1 - k); };
  constexpr int kBatch = 8;  // pieces that are read at once
  for (int64_t from = 0; from < pieces; from += kBatch) {
    float made[kBatch], sum[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (from + k >= pieces - 1) continue;  // the last makes nothing for others
      const int64_t piece = piece_at(from + k);
      made[k] = local[piece * each + element], sum[k] = sums[piece * a.width + channel];
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (from + k >= pieces) continue;
      local[piece_at(from + k) * each + element] = q;
      if (from + k == pieces - 1) continue;
      const float bits = rate * sum[k];  // a sum that is not whole has no weight
      q = bits > kNoWeight ? fmaf(exp2_of(bits), q, made[k]) : made[k];
    }
  }
}

}  // namespace

template <class S>
int carry(const Selective& a, const Pieces& pieces, bool forth, const Options& is, float* arriving, float* sums,
          cudaStream_t stream) {
  const int64_t parts = a.groups * ceil_div(a.width / a.groups, kWide);
  const dim3 grid(unsigned(a.batch * pieces.count * parts));
  const auto kernel = forth ? selective_carry<S, true> : selective_carry<S, false>;
  const int64_t shared = forth ? sizeof(CarryMemory<S, true>) : sizeof(CarryMemory<S, false>);
  if (const int status = launch("selective_scan carry", kernel, grid, kThreads, shared, stream, a, Walk(a), pieces, is,
                                arriving, sums))
    return status;
  const dim3 all(unsigned(ceil_div(a.batch * a.width * a.states, 128)));
  return launch("selective_scan arrive", selective_arrive, all, 128, 0, stream, a, pieces.count, forth, arriving,
                static_cast<const float*>(sums));
}

template int carry<float>(const Selective&, const Pieces&, bool, const Options&, float*, float*, cudaStream_t);
template int carry<f16>(const Selective&, const Pieces&, bool, const Options&, float*, float*, cudaStream_t);
template int carry<bf16>(const Selective&, const Pieces&, bool, const Options&, float*, float*, cudaStream_t);

}  // namespace nvsubq::selective
