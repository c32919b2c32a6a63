// `selective_scan`, forward, fast.
#include "fast.cuh"
#ifdef NVSUBQ_TUNE
#include <stdlib.h>
#endif

namespace nvsubq {
namespace {

constexpr int kComputing = 4;  // warps

template <int P, int Q, int SERVING>
struct Shape {
  static constexpr int channels = kComputing * 32 / Q, states = P * Q;
  static constexpr int threads = (kComputing + SERVING) * 32, servers = SERVING * 32;
};

template <int CHANNELS, int STATES>
struct Shared {
  float d[2][CHANNELS][kSteps], w[2][CHANNELS][kSteps], y[2][CHANNELS][kSteps];
  float B[2][STATES * kSteps], C[2][STATES * kSteps];  // [step][state], or swizzled [state][step] with one on a lane
  Cells cells;
};

template <class S, int P, int Q, int SERVING>
struct Forward {
  using Is = Shape<P, Q, SERVING>;
  using Memory = Shared<Is::channels, Is::states>;
  static constexpr int kFours = Is::channels / 4;              // groups of four channels
  static constexpr int kRows = Is::servers / kFours;           // steps that are served at once
  static constexpr int kEach = (kSteps + kRows - 1) / kRows;   // steps of one thread
  static constexpr int kStateFours = Is::states / 4 ? Is::states / 4 : 1;
  static constexpr int kStateEach = (kSteps * kStateFours + Is::servers - 1) / Is::servers;

  // A warp that computes: its lanes hold the states.
  struct Computing {
    Memory& m;
    const Selective& a;
    int lane, channel_here, first_state;  // in the block; of the channel
    int64_t row, channel;
    bool there;
    float A[P], h[P];

    __device__ __forceinline__ Computing(Memory& memory, const Selective& args, int64_t at_row, int64_t first, int run)
        : m(memory), a(args), row(at_row) {
      const int warp = threadIdx.x / 32;
      lane = threadIdx.x % 32;
      channel_here = warp * (32 / Q) + lane / Q;
      first_state = lane % Q * P;
      there = channel_here < run;
      channel = first + (there ? channel_here : 0);
#pragma unroll
      for (int p = 0; p < P; ++p) {
        const int n = first_state + p;
        const bool real = there && n < a.states;
        A[p] = real ? read_any<float>(a.A, at(a.A, channel, n)) * kLog2e : 0.0f;
        h[p] = real && has(a.initial_state) ? read_any<float>(a.initial_state, at(a.initial_state, row, channel, n)) : 0.0f;
      }
    }

    __device__ __forceinline__ void keep(int64_t border) const {
      if (!there) return;
      float* to = static_cast<float*>(a.saved) + ((row * borders(a.length) + border) * a.width + channel) * a.states;
#pragma unroll
      for (int p = 0; p < P; ++p)
        if (first_state + p < a.states) to[first_state + p] = h[p];
    }

    template <bool STARTS>
    __device__ __forceinline__ void run(int buffer, int slot, int steps) {
      const float *d_row = m.d[buffer][channel_here], *w_row = m.w[buffer][channel_here];
      const float *B = m.B[buffer], *C = m.C[buffer];
      const uint32_t starts = STARTS ? m.cells.starts[slot] : 0;
      const int g = lane / 4, t = lane % 4;
#pragma unroll 1
      for (int sixteen = 0; sixteen < steps; sixteen += 16) {
        float sum[4] = {0, 0, 0, 0};
#pragma unroll(P > 4 ? 1 : 4)
        for (int four = 0; four < 4; ++four) {
          const int k = sixteen / 4 + four;
          float ds[4], ws[4], y[4], b[4], c[4];
          *reinterpret_cast<float4*>(ds) = *reinterpret_cast<const float4*>(d_row + swizzled(channel_here, k));
          *reinterpret_cast<float4*>(ws) = *reinterpret_cast<const float4*>(w_row + swizzled(channel_here, k));
          if constexpr (P == 1) {
            const int at = first_state * kSteps + swizzled(first_state, k);
            *reinterpret_cast<float4*>(b) = *reinterpret_cast<const float4*>(B + at);
            *reinterpret_cast<float4*>(c) = *reinterpret_cast<const float4*>(C + at);
          }
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float bs[P], cs[P];
            if constexpr (P == 1) {
              bs[0] = b[j], cs[0] = c[j];
            } else {
              const int at = (4 * k + j) * Is::states + first_state;
              constexpr int V = P < 4 ? P : 4;
#pragma unroll
              for (int p = 0; p < P; p += V) {
                *reinterpret_cast<Pack<float, V>*>(bs + p) = load_pack<float, V>(B + at + p);
                *reinterpret_cast<Pack<float, V>*>(cs + p) = load_pack<float, V>(C + at + p);
              }
            }
            float out = 0;
#pragma unroll
            for (int p = 0; p < P; ++p) {
              float decay = exp2_of(ds[j] * A[p]);
              if (STARTS && starts >> (4 * k + j) & 1) decay = 0;
              h[p] = fmaf(decay, h[p], bs[p] * ws[j]);
              out = p ? fmaf(cs[p], h[p], out) : cs[p] * h[p];
            }
            y[j] = out;
          }
          add_quads<kExact<S>>(sum, y, four, g);
        }
        float* y_row = m.y[buffer][channel_here];
        if constexpr (Q == 4) {
          *reinterpret_cast<float4*>(y_row + swizzled(channel_here, sixteen / 4 + t)) =
              make_float4(sum[0], sum[1], sum[2], sum[3]);
        } else {  // four quads of a channel: each is left with one step of its four
          const bool one = lane & 4, two = lane & 8;
          const float even = (two ? sum[2] : sum[0]) + __shfl_xor_sync(~0u, two ? sum[0] : sum[2], 8);
          const float odd = (two ? sum[3] : sum[1]) + __shfl_xor_sync(~0u, two ? sum[1] : sum[3], 8);
          const float all = (one ? odd : even) + __shfl_xor_sync(~0u, one ? even : odd, 4);
          y_row[swizzled(channel_here, sixteen / 4 + t) + 2 * two + one] = all;
        }
      }
    }

    __device__ __forceinline__ void finish() const {
      if (!there || !has(a.final_state)) return;
#pragma unroll
      for (int p = 0; p < P; ++p)
        if (first_state + p < a.states)
          write_any<float>(a.final_state, at(a.final_state, row, channel, first_state + p), h[p]);
    }
  };

  // A warp that serves: its lanes hold four channels each.
  struct Serving {
    Memory& m;
    const Selective& a;
    const Options& is;
    int thread, four, first_row, valid;
    Row<const S> u, delta, z, B, C;
    Row<S> y;
    float bias[4], skip[4];
    Pack<S, 4> us[kEach], deltas[kEach], Bs[kStateEach], Cs[kStateEach];

    __device__ __forceinline__ Serving(Memory& memory, const Selective& args, const Options& options, int64_t row,
                                       int64_t first, int run, int64_t group)
        : m(memory), a(args), is(options), thread(int(threadIdx.x) - kComputing * 32), four(thread % kFours),
          first_row(thread / kFours), valid(run - 4 * four), u(args.u, row, first + 4 * four),
          delta(args.delta, row, first + 4 * four), z(args.z, row, first + 4 * four), B(args.B, row, group * args.B.stride[2]),
          C(args.C, row, group * args.C.stride[2]), y(args.y, row, first + 4 * four) {
      valid = valid < 0 ? 0 : valid > 4 ? 4 : valid;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t channel = first + 4 * four + j;
        bias[j] = has(a.delta_bias) && j < valid ? read_any<float>(a.delta_bias, channel * a.delta_bias.stride[0]) : 0.0f;
        skip[j] = has(a.D) && j < valid ? read_any<float>(a.D, channel * a.D.stride[0]) : 0.0f;
      }
    }

    __device__ __forceinline__ void load(int slot) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int t = first_row + i * kRows;
        const int32_t cell = t < kSteps ? m.cells.cell[slot][t] : -1;
        if (cell < 0) continue;
        us[i] = load_four(u.at(cell), valid, is.whole);
        deltas[i] = load_four(delta.at(cell), valid, is.whole);
      }
#pragma unroll
      for (int i = 0; i < kStateEach; ++i) {
        const int at = thread + i * Is::servers, t = at / kStateFours, n = at % kStateFours * 4;
        const int32_t cell = t < kSteps ? m.cells.cell[slot][t] : -1;
        Bs[i] = Cs[i] = zero_four<S>();
        if (cell < 0 || n >= a.states) continue;
        Bs[i] = load_four(B.at(cell) + n, int(a.states) - n, is.whole);
        Cs[i] = load_four(C.at(cell) + n, int(a.states) - n, is.whole);
      }
    }

    __device__ __forceinline__ void stage(int slot, int buffer) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int t = first_row + i * kRows;
        if (t >= kSteps) continue;
        const bool there = m.cells.cell[slot][t] >= 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float raw = widen<float>(deltas[i].lane[j]) + bias[j];
          const float d = is.soft ? fast_softplus(raw) : raw;
          const int at = swizzle(4 * four + j, t);
          m.d[buffer][4 * four + j][at] = there ? d : 0.0f;
          m.w[buffer][4 * four + j][at] = there ? d * widen<float>(us[i].lane[j]) : 0.0f;
        }
      }
#pragma unroll
      for (int i = 0; i < kStateEach; ++i) {
        const int at = thread + i * Is::servers, t = at / kStateFours, n = at % kStateFours * 4;
        if (t >= kSteps) continue;
        if constexpr (P == 1) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            m.B[buffer][(n + j) * kSteps + swizzle(n + j, t)] = widen<float>(Bs[i].lane[j]);
            m.C[buffer][(n + j) * kSteps + swizzle(n + j, t)] = widen<float>(Cs[i].lane[j]);
          }
        } else {
          float b[4], c[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) b[j] = widen<float>(Bs[i].lane[j]), c[j] = widen<float>(Cs[i].lane[j]);
          *reinterpret_cast<float4*>(&m.B[buffer][t * Is::states + n]) = *reinterpret_cast<float4*>(b);
          *reinterpret_cast<float4*>(&m.C[buffer][t * Is::states + n]) = *reinterpret_cast<float4*>(c);
        }
      }
    }

    // What `emit` reads of its tile, asked for early.
    struct Again {
      Pack<S, 4> u[kEach], z[kEach];
    };
    __device__ __forceinline__ void ask(Again& again, int slot) const {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int t = first_row + i * kRows;
        const int32_t cell = t < kSteps ? m.cells.cell[slot][t] : -1;
        if (cell < 0) continue;
        again.u[i] = load_four(u.at(cell), valid, is.whole);
        if (is.gated) again.z[i] = load_four(z.at(cell), valid, is.whole);
      }
    }
    __device__ __forceinline__ void emit(const Again& again, int slot, int buffer) const {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int t = first_row + i * kRows;
        const int32_t cell = t < kSteps ? m.cells.cell[slot][t] : -1;
        if (cell < 0) continue;
        Pack<S, 4> out;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float sum = m.y[buffer][4 * four + j][swizzle(4 * four + j, t)];
          if (!kExact<S>) sum *= kCut;
          sum = fmaf(skip[j], widen<float>(again.u[i].lane[j]), sum);
          if (is.gated) {
            const float gate = widen<float>(again.z[i].lane[j]);
            sum *= gate * fast_sigmoid(gate);
          }
          out.lane[j] = narrow<S>(sum);
        }
        store_four(y.at(cell), out, valid, is.whole);
      }
    }
    // Zeros at the cells that are not there.
    __device__ __forceinline__ void clear(const Steps& steps) const {
      for (int64_t k = steps.count + first_row; k < steps.length; k += kRows)
        store_four(y.at(int32_t(steps.cell(k))), zero_four<S>(), valid, is.whole);
    }
  };
};

template <class S, int P, int Q, int SERVING, int BLOCKS>
__global__ void __launch_bounds__(Shape<P, Q, SERVING>::threads, BLOCKS)
    selective_fast_forward(const __grid_constant__ Selective a, const __grid_constant__ Walk walk,
                           const __grid_constant__ Options is) {
  using F = Forward<S, P, Q, SERVING>;
  extern __shared__ __align__(16) char memory[];
  auto& m = *reinterpret_cast<typename F::Memory*>(memory);
  constexpr int channels = F::Is::channels;
  const int run = int(a.width / a.groups), per_group = (run + channels - 1) / channels;
  const int64_t tile_here = blockIdx.x % (per_group * a.groups), row = blockIdx.x / (per_group * a.groups);
  const int64_t group = tile_here / per_group;
  const int within = int(tile_here % per_group) * channels;
  const int64_t first = group * run + within;
  const Steps steps = walk.steps(row, group * a.blocks / a.groups);
  const int tiles = int((steps.count + kSteps - 1) / kSteps);

  if (threadIdx.x >= kComputing * 32) {
    typename F::Serving serving(m, a, is, row, first, run - within, group);
    Ahead ahead;
    const bool leads = serving.thread < 32;
    const int lane = serving.thread;
    for (int i = 0; i < 3 && leads; ++i) {
      ahead.read(steps, i * kSteps + lane);
      if (i < 2) ahead.put(m.cells, i, lane);
    }
    __syncthreads();
    serving.load(0);
    for (int i = -1; i <= tiles; ++i) {
      typename F::Serving::Again again;
      if (i > 0) serving.ask(again, (i - 1) % kRing);
      if (leads) {
        ahead.put(m.cells, (i + 3) % kRing, lane);
        ahead.read(steps, int64_t(i + 4) * kSteps + lane);
      }
      if (i + 1 < tiles) serving.stage((i + 1) % kRing, (i + 1) % 2);
      if (i + 2 < tiles) serving.load((i + 2) % kRing);
      if (i > 0) serving.emit(again, (i - 1) % kRing, (i - 1) % 2);
      __syncthreads();
    }
    serving.clear(steps);
    return;
  }
  typename F::Computing computing(m, a, row, first, run - within);
  __syncthreads();
  for (int i = -1; i <= tiles; ++i) {
    if (i >= 0 && i < tiles) {
      const int64_t begin = int64_t(i) * kSteps, left = steps.count - begin;
      const int here = int(left < kSteps ? left : kSteps);
      if (a.saved && i && begin % kBorder == 0) computing.keep(begin / kBorder - 1);
      if (m.cells.starts[i % kRing])
        computing.template run<true>(i % 2, i % kRing, here);
      else
        computing.template run<false>(i % 2, i % kRing, here);
    }
    __syncthreads();
  }
  computing.finish();
}

template <class S, int P, int Q, int SERVING, int BLOCKS>
int run(const Selective& a, cudaStream_t stream) {
  using Is = Shape<P, Q, SERVING>;
  Options is;
  is.soft = a.flags & NVSUBQ_SOFTPLUS, is.gated = present(a.z);
  is.whole = a.width / a.groups % 4 == 0 && a.states % 4 == 0;
  for (const nvsubq_tensor* t : {&a.u, &a.delta, &a.z, &a.y, &a.B, &a.C}) is.whole = is.whole && packs_fit(*t, 4);
  is.whole = is.whole && a.B.stride[2] % 4 == 0 && a.C.stride[2] % 4 == 0;
  const dim3 grid(unsigned(a.batch * a.groups * ceil_div(a.width / a.groups, Is::channels)));
  return launch("selective_scan", selective_fast_forward<S, P, Q, SERVING, BLOCKS>, grid, Is::threads,
                sizeof(typename Forward<S, P, Q, SERVING>::Memory), stream, a, Walk(a), is);
}

template <class S>
int for_states(const Selective& a, cudaStream_t stream) {
  if (a.states <= 4) return run<S, 1, 4, 4, 2>(a, stream);
  if (a.states <= 16) {
#ifdef NVSUBQ_TUNE
    if constexpr (std::is_same_v<S, bf16>) {
      switch (getenv("VAR") ? atoi(getenv("VAR")) : -1) {
        case 0: return run<S, 4, 4, 2, 3>(a, stream);
        case 1: return run<S, 4, 4, 4, 3>(a, stream);
        case 2: return run<S, 4, 4, 2, 2>(a, stream);
        case 3: return run<S, 4, 4, 4, 4>(a, stream);
        case 4: return run<S, 1, 16, 2, 2>(a, stream);
        case 5: return run<S, 1, 16, 2, 3>(a, stream);
        case 6: return run<S, 1, 16, 4, 2>(a, stream);
        case 7: return run<S, 1, 16, 1, 2>(a, stream);
        case 8: return run<S, 4, 4, 1, 4>(a, stream);
      }
    }
#endif
    // A long walk over few channels: one state on a lane, so that there is work for more of them.
    if (a.states > 8 && a.length > 16 * a.width) return run<S, 1, 16, 2, 2>(a, stream);
    return run<S, 4, 4, 2, 3>(a, stream);
  }
  return run<S, 16, 4, 2, 1>(a, stream);
}

}  // namespace

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
    if (t->dtype != a.u.dtype || t->stride[1] >= most || t->stride[1] <= -most) return false;
  }
  return true;
}

}  // namespace nvsubq
