// `selective_scan`, forward, fast: the warps that serve.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_FORWARD_SERVING_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_FORWARD_SERVING_CUH

#include "forward_shape.cuh"

namespace nvsubq::selective {

// A warp that serves: its lanes hold four channels each.
template <class S, class Is, bool WHOLE>
struct Serving {
  static constexpr int P = Is::P, T = Is::T;
  typename Is::Memory& m;
  const Selective& a;
  const Options& is;
  int thread, four, first_row, valid, place[4];  // place: of the four channels at `first_row`, swizzled
  int n, state_row, states_left;                 // four states, from n on
  Pack<S, 4> Bs[Is::state_each], Cs[Is::state_each];
  Row<const S> u, delta, z, B, C;
  Row<S> y;
  float bias[4], skip[4];
  Pack<S, 4> us[Is::each], deltas[Is::each];
  Pack<S, 4> us_again[Is::each], zs[Is::each];  // of the tile that is written next

  __device__ __forceinline__ Serving(typename Is::Memory& memory, const Selective& args, const Options& options,
                                     int64_t row, int64_t first, int run, int64_t group)
      : m(memory), a(args), is(options), thread(int(threadIdx.x) - Is::computers), four(thread % Is::fours),
        first_row(thread / Is::fours), valid(run - 4 * four), n(thread % Is::state_fours * 4),
        state_row(thread / Is::state_fours), states_left(int(args.states) - n),
        u(args.u, row, first + (valid > 0 ? 4 * four : 0)), delta(args.delta, row, first + (valid > 0 ? 4 * four : 0)),
        z(options.gated ? args.z : args.u, row, first + (valid > 0 ? 4 * four : 0)),
        B(args.B, row, group * args.B.stride[2] + (states_left > 0 ? n : 0)),
        C(args.C, row, group * args.C.stride[2] + (states_left > 0 ? n : 0)),
        y(args.y, row, first + (valid > 0 ? 4 * four : 0)) {
    valid = valid < 0 ? 0 : valid > 4 ? 4 : valid;
    const float zeros[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < Is::state_each; ++i) Bs[i] = Cs[i] = pack<S>(zeros);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t channel = first + 4 * four + j;
      bias[j] = has(a.delta_bias) && j < valid ? read_any<float>(a.delta_bias, channel * a.delta_bias.stride[0]) : 0.0f;
      skip[j] = has(a.D) && j < valid ? read_any<float>(a.D, channel * a.D.stride[0]) : 0.0f;
      place[j] = (4 * four + j) * T + swizzle(4 * four + j, first_row);
    }
  }
  // Step first_row + i Is::rows: the rows are a power of two, a multiple of 4, so that the swizzle is a xor.
  __device__ __forceinline__ int at(int j, int i) const { return place[j] ^ (i * Is::rows); }
  __device__ __forceinline__ int32_t cell(int slot, int i) const {
    return m.cells[slot].cell[first_row + i * Is::rows];
  }

  // In place of a cell that is not there another is read, and has no weight.
  __device__ __forceinline__ void load(int slot) {
#pragma unroll
    for (int i = 0; i < Is::each; ++i) {
      const int32_t from = some_cell(cell(slot, i));
      us[i] = load_four<WHOLE>(u.at(from), valid);
      deltas[i] = load_four<WHOLE>(delta.at(from), valid);
    }
    if (states_left <= 0) return;
#pragma unroll
    for (int i = 0; i < Is::state_each; ++i) {
      const int t = state_row + i * Is::state_rows;
      if (Is::state_rows > T && t >= T) continue;
      const int32_t from = some_cell(m.cells[slot].cell[t]);
      Bs[i] = load_four<WHOLE>(B.at(from), states_left);
      Cs[i] = load_four<WHOLE>(C.at(from), states_left);
    }
  }

  __device__ __forceinline__ void stage(int slot, int buffer) {
    float *d_tile = m.d[buffer][0], *w_tile = m.w[buffer][0];
#pragma unroll
    for (int i = 0; i < Is::each; ++i) {
      const bool there = cell(slot, i) >= 0;
      float deltas_here[4], us_here[4];
      unpack(deltas[i], deltas_here), unpack(us[i], us_here);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float raw = deltas_here[j] + bias[j], soft = fast_softplus(raw);
        const float d = is.soft ? soft : raw;
        d_tile[at(j, i)] = there ? d : 0.0f;
        w_tile[at(j, i)] = there ? d * us_here[j] : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < Is::state_each; ++i) {
      const int t = state_row + i * Is::state_rows;
      if (Is::state_rows > T && t >= T) continue;
      alignas(16) float b[4], c[4];
      unpack(Bs[i], b), unpack(Cs[i], c);
      if constexpr (P == 1) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          m.B[buffer][(n + j) * T + swizzle(n + j, t)] = b[j];
          m.C[buffer][(n + j) * T + swizzle(n + j, t)] = c[j];
        }
      } else {
        *reinterpret_cast<float4*>(&m.B[buffer][t * Is::states + n]) = *reinterpret_cast<float4*>(b);
        *reinterpret_cast<float4*>(&m.C[buffer][t * Is::states + n]) = *reinterpret_cast<float4*>(c);
      }
    }
  }

  // Asks for what `emit` reads of its tile.
  __device__ __forceinline__ void ask(int slot) {
#pragma unroll
    for (int i = 0; i < Is::each; ++i) {
      const int32_t from = some_cell(cell(slot, i));
      us_again[i] = load_four<WHOLE>(u.at(from), valid);
      zs[i] = load_four<WHOLE>(z.at(from), valid);
    }
  }
  __device__ __forceinline__ void emit(int slot, int buffer) const {
    const float* sums = m.y[buffer][0];
#pragma unroll
    for (int i = 0; i < Is::each; ++i) {
      float us_here[4], gates[4], out[4];
      unpack(us_again[i], us_here), unpack(zs[i], gates);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float sum = fmaf(skip[j], us_here[j], sums[at(j, i)] * (kExact<S> ? 1.0f : kCut));
        const float gate = gates[j] * fast_sigmoid(gates[j]);
        out[j] = is.gated ? sum * gate : sum;
      }
      const int32_t here = cell(slot, i);
      if (here >= 0) store_four<WHOLE>(y.at(here), pack<S>(out), valid);
    }
  }
  // Zeros at the cells that are not there.
  __device__ __forceinline__ void clear(const Steps& steps, int64_t begin, int64_t end) const {
    const float zeros[4] = {0, 0, 0, 0};
    for (int64_t k = (steps.count > begin ? steps.count : begin) + first_row; k < end; k += Is::rows)
      store_four<WHOLE>(y.at(int32_t(steps.cell(k))), pack<S>(zeros), valid);
  }

  // While tile i is computed, tile i + 1 is laid out and tile i - 1 written.
  __device__ __forceinline__ void run(const Steps& steps, int64_t begin, int tiles) {
    NextCell next;
    const bool leads = thread < T;
    for (int i = 0; i < 3 && leads; ++i) {
      next.ask(steps, begin + i * T + thread);
      if (i < 2) next.put(steps, m.cells[i], thread);
    }
    __syncthreads();
    if (tiles) load(0);
#pragma unroll 1
    for (int i = -1; i <= tiles; ++i) {
      const int slot = (i + kRing) & (kRing - 1), buffer = i & 1;
      if (leads) next.put(steps, m.cells[(slot + 3) & (kRing - 1)], thread);
      if (i + 1 < tiles) stage((slot + 1) & (kRing - 1), buffer ^ 1);
      if (i + 2 < tiles) load((slot + 2) & (kRing - 1));
      if (leads) next.ask(steps, begin + int64_t(i + 4) * T + thread);
      if (i > 0) emit((slot - 1) & (kRing - 1), buffer ^ 1);
      if (i >= 0 && i < tiles) ask(slot);
      __syncthreads();
    }
  }
};

}  // namespace nvsubq::selective

#endif
