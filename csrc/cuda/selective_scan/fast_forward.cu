// `selective_scan`, forward, fast.
#include "fast_backward.cuh"

namespace nvsubq {
namespace {

// A block: P states on each of Q = 4 lanes of a channel, R channels to a lane, COMPUTING warps that compute and SERVING
// that serve, tiles of T steps.
template <int P, int Q, int R, int COMPUTING, int SERVING, int T>
struct Shape {
  static constexpr int spread = 32 / Q, channels = COMPUTING * R * spread, states = P * Q;
  static constexpr int threads = (COMPUTING + SERVING) * 32, servers = SERVING * 32;
};

template <int CHANNELS, int STATES, int T>
struct Shared {
  float d[2][CHANNELS][T], w[2][CHANNELS][T], y[2][CHANNELS][T];
  float B[2][STATES * T], C[2][STATES * T];  // [step][state], or swizzled [state][step] with one on a lane
  Cells<T> cells[kRing];
};

template <class S, int P, int Q, int R, int COMPUTING, int SERVING, int T>
struct Forward {
  using Is = Shape<P, Q, R, COMPUTING, SERVING, T>;
  using Memory = Shared<Is::channels, Is::states, T>;
  static constexpr int kFours = Is::channels / 4;              // groups of four channels
  static constexpr int kRows = Is::servers / kFours;           // steps that are served at once
  static constexpr int kEach = (T + kRows - 1) / kRows;   // steps of one thread
  static constexpr int kStateFours = Is::states / 4 ? Is::states / 4 : 1;
  static constexpr int kStateRows = Is::servers / kStateFours;   // steps whose B and C are served at once
  static constexpr int kStateEach = (T + kStateRows - 1) / kStateRows;

  // A warp that computes: its lanes hold the states.
  struct Computing {
    Memory& m;
    const Selective& a;
    int lane, here[R], first_state;  // channels in the block
    int64_t row, channel[R];
    bool there[R];
    float A[R][P], h[R][P];

    __device__ __forceinline__ Computing(Memory& memory, const Selective& args, int64_t at_row, int64_t first, int run,
                                         const float* entering)
        : m(memory), a(args), lane(threadIdx.x % 32), first_state(lane % Q * P), row(at_row) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        here[r] = int(threadIdx.x / 32) * R * Is::spread + r * Is::spread + lane / Q;
        there[r] = here[r] < run;
        channel[r] = first + (there[r] ? here[r] : 0);
#pragma unroll
        for (int p = 0; p < P; ++p) {
          const int n = first_state + p;
          const bool real = there[r] && n < a.states;
          A[r][p] = real ? read_any<float>(a.A, at(a.A, channel[r], n)) * kLog2e : 0.0f;
          h[r][p] = 0;
          if (real && entering)
            h[r][p] = entering[channel[r] * a.states + n];
          else if (real && has(a.initial_state))
            h[r][p] = read_any<float>(a.initial_state, at(a.initial_state, row, channel[r], n));
        }
      }
    }

    __device__ __forceinline__ void keep(int64_t border) const {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (!there[r]) continue;
        float* to = static_cast<float*>(a.saved) + ((row * borders(a.length) + border) * a.width + channel[r]) * a.states;
#pragma unroll
        for (int p = 0; p < P; ++p)
          if (first_state + p < a.states) to[first_state + p] = h[r][p];
      }
    }

    // Steps from `from` on of a tile.
    template <bool STARTS>
    __device__ __forceinline__ void run(int buffer, int slot, int from, int steps) {
      const float *B = m.B[buffer], *C = m.C[buffer];
      const int g = lane / 4, t = lane % 4;
#pragma unroll 1
      for (int sixteen = from; sixteen < from + steps; sixteen += 16) {
        const uint32_t starts = STARTS ? m.cells[slot].starts[sixteen / 32] >> (sixteen % 32) : 0;
        float sum[R][4];
#pragma unroll
        for (int i = 0; i < 4 * R; ++i) sum[i / 4][i % 4] = 0;
#pragma unroll(P > 4 ? 1 : 4)
        for (int four = 0; four < 4; ++four) {
          const int k = sixteen / 4 + four;
          alignas(16) float ds[R][4], ws[R][4], y[R][4], b[4], c[4];
#pragma unroll
          for (int r = 0; r < R; ++r) {
            const int at = swizzled(here[r], k);
            *reinterpret_cast<float4*>(ds[r]) = *reinterpret_cast<const float4*>(&m.d[buffer][here[r]][at]);
            *reinterpret_cast<float4*>(ws[r]) = *reinterpret_cast<const float4*>(&m.w[buffer][here[r]][at]);
          }
          if constexpr (P == 1) {
            const int at = first_state * T + swizzled(first_state, k);
            *reinterpret_cast<float4*>(b) = *reinterpret_cast<const float4*>(B + at);
            *reinterpret_cast<float4*>(c) = *reinterpret_cast<const float4*>(C + at);
          }
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            alignas(16) float bs[P], cs[P];
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
#pragma unroll
            for (int r = 0; r < R; ++r) {
              float out = 0;
#pragma unroll
              for (int p = 0; p < P; ++p) {
                float decay = exp2_of(ds[r][j] * A[r][p]);
                if (STARTS && starts >> (4 * four + j) & 1) decay = 0;
                h[r][p] = fmaf(decay, h[r][p], bs[p] * ws[r][j]);
                out = p ? fmaf(cs[p], h[r][p], out) : cs[p] * h[r][p];
              }
              y[r][j] = out;
            }
          }
#pragma unroll
          for (int r = 0; r < R; ++r) add_quads<kExact<S>>(sum[r], y[r], four, g);
        }
#pragma unroll
        for (int r = 0; r < R; ++r) {
          float* to = m.y[buffer][here[r]] + swizzled(here[r], sixteen / 4 + t);
          *reinterpret_cast<float4*>(to) = make_float4(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
        }
      }
    }

    __device__ __forceinline__ void finish() const {
      if (!has(a.final_state)) return;
#pragma unroll
      for (int i = 0; i < R * P; ++i) {
        const int r = i / P, n = first_state + i % P;
        if (there[r] && n < a.states) write_any<float>(a.final_state, at(a.final_state, row, channel[r], n), h[r][i % P]);
      }
    }
  };

  // A warp that serves: its lanes hold four channels each.
  template <bool WHOLE>
  struct Serving {
    Memory& m;
    const Selective& a;
    const Options& is;
    int thread, four, first_row, valid, place[4];  // place: of the four channels at `first_row`, swizzled
    int n, state_row, states_left;                 // four states, from n on
    Pack<S, 4> Bs[kStateEach], Cs[kStateEach];
    Row<const S> u, delta, z, B, C;
    Row<S> y;
    float bias[4], skip[4];
    Pack<S, 4> us[kEach], deltas[kEach];
    Pack<S, 4> us_again[kEach], zs[kEach];  // of the tile that is written next

    __device__ __forceinline__ Serving(Memory& memory, const Selective& args, const Options& options, int64_t row,
                                       int64_t first, int run, int64_t group)
        : m(memory), a(args), is(options), thread(int(threadIdx.x) - COMPUTING * 32), four(thread % kFours),
          first_row(thread / kFours), valid(run - 4 * four), n(thread % kStateFours * 4),
          state_row(thread / kStateFours), states_left(int(args.states) - n), u(args.u, row, first + (valid > 0 ? 4 * four : 0)),
          delta(args.delta, row, first + (valid > 0 ? 4 * four : 0)),
          z(options.gated ? args.z : args.u, row, first + (valid > 0 ? 4 * four : 0)),
          B(args.B, row, group * args.B.stride[2] + (states_left > 0 ? n : 0)),
          C(args.C, row, group * args.C.stride[2] + (states_left > 0 ? n : 0)), y(args.y, row, first + (valid > 0 ? 4 * four : 0)) {
      valid = valid < 0 ? 0 : valid > 4 ? 4 : valid;
      const float zeros[4] = {0, 0, 0, 0};
#pragma unroll
      for (int i = 0; i < kStateEach; ++i) Bs[i] = Cs[i] = pack<S>(zeros);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t channel = first + 4 * four + j;
        bias[j] = has(a.delta_bias) && j < valid ? read_any<float>(a.delta_bias, channel * a.delta_bias.stride[0]) : 0.0f;
        skip[j] = has(a.D) && j < valid ? read_any<float>(a.D, channel * a.D.stride[0]) : 0.0f;
        place[j] = (4 * four + j) * T + swizzle(4 * four + j, first_row);
      }
    }
    // Step first_row + i kRows: the rows are a power of two, a multiple of 4, so that the swizzle is a xor.
    __device__ __forceinline__ int at(int j, int i) const { return place[j] ^ (i * kRows); }
    __device__ __forceinline__ int32_t cell(int slot, int i) const { return m.cells[slot].cell[first_row + i * kRows]; }

    // In place of a cell that is not there another is read, and has no weight.
    __device__ __forceinline__ void load(int slot) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int32_t from = some_cell(cell(slot, i));
        us[i] = load_four<WHOLE>(u.at(from), valid);
        deltas[i] = load_four<WHOLE>(delta.at(from), valid);
      }
      if (states_left <= 0) return;
#pragma unroll
      for (int i = 0; i < kStateEach; ++i) {
        const int t = state_row + i * kStateRows;
        if (kStateRows > T && t >= T) continue;
        const int32_t from = some_cell(m.cells[slot].cell[t]);
        Bs[i] = load_four<WHOLE>(B.at(from), states_left);
        Cs[i] = load_four<WHOLE>(C.at(from), states_left);
      }
    }

    __device__ __forceinline__ void stage(int slot, int buffer) {
      float *d_tile = m.d[buffer][0], *w_tile = m.w[buffer][0];
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
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
      for (int i = 0; i < kStateEach; ++i) {
        const int t = state_row + i * kStateRows;
        if (kStateRows > T && t >= T) continue;
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
      for (int i = 0; i < kEach; ++i) {
        const int32_t from = some_cell(cell(slot, i));
        us_again[i] = load_four<WHOLE>(u.at(from), valid);
        zs[i] = load_four<WHOLE>(z.at(from), valid);
      }
    }
    __device__ __forceinline__ void emit(int slot, int buffer) const {
      const float* sums = m.y[buffer][0];
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
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
      for (int64_t k = (steps.count > begin ? steps.count : begin) + first_row; k < end; k += kRows)
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
  static_assert(kRows % 4 == 0 && kRows <= T && T % kRows == 0 && (kRows & (kRows - 1)) == 0 && Is::servers >= T);
};

template <class S, int P, int Q, int R, int COMPUTING, int SERVING, int T, int BLOCKS>
__global__ void __launch_bounds__(Shape<P, Q, R, COMPUTING, SERVING, T>::threads, BLOCKS)
    selective_fast_forward(const __grid_constant__ Selective a, const __grid_constant__ Walk walk,
                           const __grid_constant__ Options is, const float* entering, int64_t pieces, int64_t each) {
  using F = Forward<S, P, Q, R, COMPUTING, SERVING, T>;
  extern __shared__ __align__(16) char memory[];
  auto& m = *reinterpret_cast<typename F::Memory*>(memory);
  constexpr int channels = F::Is::channels;
  const int run = int(a.width / a.groups), per_group = (run + channels - 1) / channels;
  const int64_t tile_here = blockIdx.x % (per_group * a.groups), piece = blockIdx.x / (per_group * a.groups);
  const int64_t row = piece / pieces, group = tile_here / per_group;
  const int within = int(tile_here % per_group) * channels;
  const int64_t first = group * run + within;
  const Steps steps = walk.steps(row, group * a.blocks / a.groups);
  const int64_t begin = piece % pieces * each, end = begin + each < steps.length ? begin + each : steps.length;
  const int64_t there = (steps.count < end ? steps.count : end) - begin;
  const int tiles = there > 0 ? int((there + T - 1) / T) : 0;

  if (threadIdx.x >= COMPUTING * 32) {
    const auto serve = [&](auto serving) {
      serving.run(steps, begin, tiles);
      serving.clear(steps, begin, end);
    };
    if (is.whole)
      serve(typename F::template Serving<true>(m, a, is, row, first, run - within, group));
    else
      serve(typename F::template Serving<false>(m, a, is, row, first, run - within, group));
    return;
  }
  const float* const states = entering ? entering + piece * a.width * a.states : nullptr;
  typename F::Computing computing(m, a, row, first, run - within, states);
  __syncthreads();
  for (int i = -1; i <= tiles; ++i) {
    if (i >= 0 && i < tiles) {
      const int64_t tile_begin = int64_t(i) * T, left = there - tile_begin;
      const int here = int(left < T ? left : T), slot = i & (kRing - 1);
      const bool starts = m.cells[slot].any_starts();
      constexpr int most = T < kBorder ? T : kBorder;
      for (int from = 0; from < here; from += most) {
        const int64_t step = begin + tile_begin + from;
        const int count = here - from < most ? here - from : most;
        if (a.saved && step && step % kBorder == 0) computing.keep(step / kBorder - 1);
        if (starts)
          computing.template run<true>(i & 1, slot, from, count);
        else
          computing.template run<false>(i & 1, slot, from, count);
      }
    }
    __syncthreads();
  }
  if (piece % pieces == pieces - 1) computing.finish();
}

template <class S, int P, int Q, int R, int COMPUTING, int SERVING, int T, int BLOCKS>
int run(const Selective& a, const float* entering, cudaStream_t stream) {
  using Is = Shape<P, Q, R, COMPUTING, SERVING, T>;
  const int64_t pieces = entering ? pieces_of(a.length) : 1, each = entering ? piece_steps(a.length) : a.length;
  const dim3 grid(unsigned(a.batch * pieces * a.groups * ceil_div(a.width / a.groups, Is::channels)));
  return launch("selective_scan", selective_fast_forward<S, P, Q, R, COMPUTING, SERVING, T, BLOCKS>, grid, Is::threads,
                sizeof(typename Forward<S, P, Q, R, COMPUTING, SERVING, T>::Memory), stream, a, Walk(a), options_of(a),
                entering, pieces, each);
}

// A long walk over few channels is cut, by a rule of one row's shape.
bool is_cut(const Selective& a) {
  return a.states <= kMostFast && a.length > 16 * a.width && pieces_of(a.length) > 1;
}

struct Plan {
  Arena arena;
  float *entering, *sums;

  Plan(const Selective& a, void* memory) : arena(memory) {
    const int64_t pieces = is_cut(a) ? a.batch * pieces_of(a.length) : 0;
    entering = arena.take<float>(pieces * a.width * a.states), sums = arena.take<float>(pieces * a.width);
  }
};

template <class S>
int for_states(const Selective& a, cudaStream_t stream) {
  const float* entering = nullptr;
  if (is_cut(a)) {
    const Plan plan(a, a.workspace);
    if (const int status = carry<S>(a, true, options_of(a), plan.entering, plan.sums, stream)) return status;
    entering = plan.entering;
  }
  if (a.states <= 4) return run<S, 1, 4, 1, 4, 4, 32, 2>(a, entering, stream);
  if (a.states > 16) return run<S, 16, 4, 1, 4, 4, 32, 1>(a, entering, stream);
  if (a.length > 1024) return run<S, 4, 4, 1, 4, 8, 64, 2>(a, entering, stream);
  return run<S, 4, 4, 2, 2, 4, 32, 4>(a, entering, stream);
}

}  // namespace

int64_t fast_forward_bytes(const Selective& a) { return is_cut(a) ? Plan(a, nullptr).arena.bytes() : 0; }

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

}  // namespace nvsubq
