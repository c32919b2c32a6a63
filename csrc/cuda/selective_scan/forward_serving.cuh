// `selective_scan`, forward, fast: the warps that serve.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_FORWARD_SERVING_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_FORWARD_SERVING_CUH

#include "forward_shape.cuh"

namespace nvsubq::selective {

// A thread that serves. It has four channels, of each tile `each` steps in runs of neighbours, and four states of B or
// of C.
template <class S, class Is, bool WHOLE>
struct Serving {
  static constexpr int T = Is::T, V = Is::V, G = Is::G;
  static_assert(T >= 16 && (T & (T - 1)) == 0);  // for `at`
  static constexpr float cut = kExact<S> ? 1.0f : kCut;  // sums are too small by this
  typename Is::Memory& m;
  const Selective& a;
  const Options& is;
  int thread, four, first_row, valid, place;  // place: of the first channel at the first step, swizzled
  bool second;                                // C, not B
  int n, group, states_left;                  // four states, from n on, of G steps
  Row<const S> u, delta, z, states;
  Row<S> y;
  Pack<S, 4> packs[Is::packed][G], us[Is::each], deltas[Is::each];
  Pack<S, 4> us_again[Is::each], zs[Is::each];  // of the tile that is written next

  __device__ __forceinline__ Serving(typename Is::Memory& memory, const Selective& args, const Options& options,
                                     int64_t row, int64_t first, int run, int64_t of_group)
      : m(memory), a(args), is(options), thread(int(threadIdx.x) - Is::computers), four(thread % Is::fours),
        first_row(thread / Is::fours), valid(run - 4 * four), second(thread >= Is::halves),
        u(args.u, row, first + (valid > 0 ? 4 * four : 0)), delta(args.delta, row, first + (valid > 0 ? 4 * four : 0)),
        z(options.gated ? args.z : args.u, row, first + (valid > 0 ? 4 * four : 0)),
        states(args.B, row, of_group * args.B.stride[2]), y(args.y, row, first + (valid > 0 ? 4 * four : 0)) {
    valid = valid < 0 ? 0 : valid > 4 ? 4 : valid;
    // With one state on a lane, neighbouring threads have neighbouring groups of steps: other banks.
    const int here = thread % Is::halves;
    n = 4 * (Is::P == 1 ? here / Is::state_rows : here % Is::state_fours);
    group = Is::P == 1 ? here % Is::state_rows : here / Is::state_fours;
    states_left = int(args.states) - n;
    if (second) states = Row<const S>(args.C, row, of_group * args.C.stride[2]);
    if (states_left > 0) states.data += n * int(sizeof(S));
    // Else each access adds a pointer from the constant bank to its offset again.
    for (char** data : {&u.data, &delta.data, &z.data, &states.data, &y.data}) asm volatile("" : "+l"(*data));
    const float zeros[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < Is::packed * G; ++i) packs[i / G][i % G] = pack<S>(zeros);
    place = 4 * four * T + swizzle(4 * four, first_row * V);
    for (int c = thread; c < Is::channels; c += Is::servers) {
      m.bias[c] = of_channel(a.delta_bias, first, c, run);
      m.skip[c] = of_channel(a.D, first, c, run) / cut;
    }
  }
  // The first step of run i, and where it is in channel j's row: xors, as rows and runs are powers of two, and channel j
  // swizzles as the first does, but for j.
  __device__ __forceinline__ int step(int i) const { return (first_row + i * Is::rows) * V; }
  __device__ __forceinline__ int at(int j, int i) const { return place ^ j * (T + 4) ^ i * Is::rows * V; }
  __device__ __forceinline__ Pack<int32_t, V> cells(int slot, int i) const {
    return load_pack<int32_t, V>(m.cells[slot].cell + step(i));
  }
  __device__ __forceinline__ void four_of(const float* from, float (&to)[4]) const {
    *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(from + 4 * four);
  }
  __device__ __forceinline__ int group_of(int i) const { return group + i * Is::state_rows; }
  __device__ __forceinline__ bool has_group(int i) const {
    return Is::groups % Is::state_rows == 0 || group_of(i) < Is::groups;
  }

  __device__ __forceinline__ void load(int slot) {
#pragma unroll
    for (int i = 0; i < Is::runs; ++i) {
      const auto from = cells(slot, i);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        us[i * V + v] = load_four<WHOLE>(u.at(from.lane[v]), valid);
        deltas[i * V + v] = load_four<WHOLE>(delta.at(from.lane[v]), valid);
      }
    }
    if (states_left <= 0) return;
#pragma unroll
    for (int i = 0; i < Is::packed; ++i) {
      if (!has_group(i)) continue;
      const auto from = load_pack<int32_t, G>(m.cells[slot].cell + group_of(i) * G);
#pragma unroll
      for (int k = 0; k < G; ++k) packs[i][k] = load_four<WHOLE>(states.at(from.lane[k]), states_left);
    }
  }

  // `left`: steps of the tile that are there; the others have no weight.
  __device__ __forceinline__ void stage(int buffer, int left) {
    float *d_tile = m.d[buffer][0], *w_tile = m.w[buffer][0];
    alignas(16) float bias[4];
    four_of(m.bias, bias);
#pragma unroll
    for (int i = 0; i < Is::runs; ++i) {
      if (step(i) < left) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          Pack<float, V> d, w;
#pragma unroll
          for (int v = 0; v < V; ++v) {
            float deltas_here[4], us_here[4];
            unpack(deltas[i * V + v], deltas_here), unpack(us[i * V + v], us_here);
            const float raw = deltas_here[j] + bias[j], soft = fast_softplus(raw);
            d.lane[v] = is.soft ? soft : raw;
            w.lane[v] = d.lane[v] * us_here[j];
          }
          store_pack<float, V>(d_tile + at(j, i), d), store_pack<float, V>(w_tile + at(j, i), w);
        }
      }
      if (left == T) continue;
#pragma unroll 1
      for (int v = 0; v < V; ++v) {
        if (step(i) + v < left) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j) d_tile[at(j, i) + v] = w_tile[at(j, i) + v] = 0.0f;
      }
    }
    float* const to = second ? m.C[buffer] : m.B[buffer];
#pragma unroll
    for (int i = 0; i < Is::packed; ++i) {
      if (!has_group(i)) continue;
      alignas(16) float x[G][4];
#pragma unroll
      for (int k = 0; k < G; ++k) unpack(packs[i][k], x[k]);
#pragma unroll
      for (int p = 0; p < 4; p += Is::W) {  // W states of G steps
        alignas(16) float out[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) out[k] = x[k / Is::W][p + k % Is::W];
        *reinterpret_cast<float4*>(to + Is::pack_at(group_of(i), (n + p) / Is::W)) = *reinterpret_cast<float4*>(out);
      }
    }
  }

  // Asks for what `emit` reads of its tile.
  __device__ __forceinline__ void ask(int slot) {
#pragma unroll
    for (int i = 0; i < Is::runs; ++i) {
      const auto from = cells(slot, i);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        us_again[i * V + v] = load_four<WHOLE>(u.at(from.lane[v]), valid);
        zs[i * V + v] = load_four<WHOLE>(z.at(from.lane[v]), valid);
      }
    }
  }
  __device__ __forceinline__ void emit(int slot, int buffer, int left) const {
    alignas(16) float skip[4];
    four_of(m.skip, skip);
#pragma unroll
    for (int i = 0; i < Is::runs; ++i) {
      if (step(i) >= left) continue;
      float out[V][4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        Pack<float, V> sums = load_pack<float, V>(m.y[buffer][0] + at(j, i));
#pragma unroll
        for (int part = 1; part < Is::parts; ++part) {
          const auto more = load_pack<float, V>(m.y[buffer][part] + at(j, i));
#pragma unroll
          for (int v = 0; v < V; ++v) sums.lane[v] += more.lane[v];
        }
#pragma unroll
        for (int v = 0; v < V; ++v) {
          float us_here[4], gates[4];
          unpack(us_again[i * V + v], us_here), unpack(zs[i * V + v], gates);
          const float sum = fmaf(skip[j], us_here[j], sums.lane[v]);
          const float gate = gates[j] * reciprocal(fmaf(exp2_always(-gates[j] * kLog2e), 1 / cut, 1 / cut));
          out[v][j] = sum * (is.gated ? gate : cut);
        }
      }
      const auto here = cells(slot, i);
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (step(i) + v < left) store_four<WHOLE>(y.at(here.lane[v]), pack<S>(out[v]), valid);
    }
  }
  // Zeros at the cells that are not there.
  __device__ __forceinline__ void clear(const Steps& steps, int64_t begin, int64_t end) const {
    const float zeros[4] = {0, 0, 0, 0};
    for (int64_t k = (steps.count > begin ? steps.count : begin) + first_row; k < end; k += Is::rows)
      store_four<WHOLE>(y.at(int32_t(steps.cell(k))), pack<S>(zeros), valid);
  }

  // While tile i is computed, tile i + 1 is laid out and tile i - 1 written. Cells are looked up for four tiles at once,
  // one step by each thread, so that other tiles do not wait for that.
  __device__ __forceinline__ void run(const Steps& steps, int64_t begin, int64_t there, int tiles) {
    constexpr int kMany = Is::servers / T;
    static_assert(kMany * T == Is::servers && kRing == 2 * kMany);
    NextCell next, first[2];
    const auto ask_many = [&](NextCell& cell, int tile) { cell.ask(steps, begin + int64_t(tile) * T + thread); };
    const auto put_many = [&](const NextCell& cell, int tile) {
      cell.put_any(steps, m.cells[(tile + thread / T) & (kRing - 1)], thread % T);
    };
    ask_many(first[0], 0), ask_many(first[1], kMany);
    put_many(first[0], 0), put_many(first[1], kMany);
    ask_many(next, 2 * kMany);
    __syncthreads();
    if (tiles) load(0);
    const int last_left = int(there - int64_t(tiles - 1) * T);
    const auto left = [&](int i) { return i < tiles - 1 ? T : last_left; };
#pragma unroll 1
    for (int i = -1; i <= tiles; ++i) {
      const int slot = (i + kRing) & (kRing - 1), buffer = i & 1;
      if (i > kMany && i % kMany == 1) {  // the cells before tile i - 1 are used up
        put_many(next, i - 1 + kMany);
        ask_many(next, i - 1 + 2 * kMany);
      }
      if (i + 1 < tiles) stage(buffer ^ 1, left(i + 1));
      if (i + 2 < tiles) load((slot + 2) & (kRing - 1));
      if (i > 0) emit((slot - 1) & (kRing - 1), buffer ^ 1, left(i - 1));
      if (i >= 0 && i < tiles) ask(slot);
      __syncthreads();
    }
  }
};

}  // namespace nvsubq::selective

#endif
