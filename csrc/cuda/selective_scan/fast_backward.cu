// `selective_scan`, backward, fast.
#include "fast_backward.cuh"

namespace nvsubq {
namespace {

constexpr int kEighths = kWindow / 8;

struct Memory {
  Window window;
  alignas(16) float entering[kEighths - 1][kWide][kMostFast];  // the states that enter each 8 steps but the first
  alignas(16) float by_state[kWarps][3][8][32];                // of 4 steps: sums to be made over states
  alignas(16) float by_channel[kWarps][kWindow / 2][32];       // d_B and d_C of half a window, from 8 channels
};

// sum += A B for A and B of 22 bits: see `multiply`.
template <bool EXACT>
__device__ __forceinline__ void multiply_by(float (&sum)[4], const float (&x)[4], float b0, float b1) {
  if constexpr (!EXACT) {
    multiply(sum, x[0], x[1], x[2], x[3], b0, b1);
  } else {
    float kept[4], rest[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) kept[i] = kept_part(x[i]), rest[i] = x[i] - kept[i];
    const float kept0 = kept_part(b0), kept1 = kept_part(b1);
    multiply(sum, kept[0], kept[1], kept[2], kept[3], kept0, kept1);
    multiply(sum, kept[0], kept[1], kept[2], kept[3], b0 - kept0, b1 - kept1);
    multiply(sum, rest[0], rest[1], rest[2], rest[3], kept0, kept1);
  }
}

// A lane's two channels and two states of each; of an array [4] the channel is i / 2.
template <class S>
struct Computing {
  Memory& m;
  int warp, g, t, here[2];  // channels in the block
  float A[4], q[4], d_A[4];  // q: the cotangent of the states that come next, as it arrives

  __device__ __forceinline__ explicit Computing(Memory& memory)
      : m(memory), warp(threadIdx.x / 32), g(threadIdx.x % 32 / 4), t(threadIdx.x % 4) {
    here[0] = warp * 8 + t, here[1] = here[0] + 4;
  }

  __device__ __forceinline__ static void read_four(const float (&rows)[kWide][kWindow], int channel, int four,
                                                   float (&to)[4]) {
    *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(&rows[channel][swizzled(channel, four)]);
  }
  template <bool STARTS>
  __device__ __forceinline__ float decay(float d, float rate, int step) const {
    const float x = exp2_of(d * rate);
    return STARTS && (m.window.cells.starts[step / 32] >> (step % 32) & 1) ? 0.0f : x;
  }

  // The states that enter each 8 steps, from those that enter the window.
  template <bool STARTS>
  __device__ __forceinline__ void ahead(const float (&first)[4], int eighths) {
    float h[4] = {first[0], first[1], first[2], first[3]};
#pragma unroll 1
    for (int e = 0; e < eighths - 1; ++e) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        alignas(16) float d[2][4], w[2][4];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          read_four(m.window.d, here[r], 2 * e + half, d[r]);
          read_four(m.window.w, here[r], 2 * e + half, w[r]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int step = 8 * e + 4 * half + j;
          const float2 b = *reinterpret_cast<const float2*>(&m.window.B[step][2 * g]);
#pragma unroll
          for (int i = 0; i < 4; ++i)
            h[i] = fmaf(decay<STARTS>(d[i / 2][j], A[i], step), h[i], (i % 2 ? b.y : b.x) * w[i / 2][j]);
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r)
        *reinterpret_cast<float2*>(&m.entering[e][here[r]][2 * g]) = make_float2(h[2 * r], h[2 * r + 1]);
    }
  }

  // Eight steps: the states forth, and the cotangents back.
  template <bool STARTS>
  __device__ __forceinline__ void back(const float (&first)[4], int e) {
    float before[4], a[8][4], h[8][4], y[8][2], d_B[4] = {0, 0, 0, 0}, d_C[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 4; ++i) before[i] = e ? m.entering[e - 1][here[i / 2]][2 * g + i % 2] : first[i];
    // Of step g of the eight: a column of the tensor cores' second factor.
    float w_column[2], out_column[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = swizzle(here[r], 8 * e + g);
      w_column[r] = m.window.w[here[r]][at], out_column[r] = m.window.out[here[r]][at];
    }
    __syncwarp();  // results will be put in their place
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      alignas(16) float d[2][4], w[2][4];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        read_four(m.window.d, here[r], 2 * e + half, d[r]);
        read_four(m.window.w, here[r], 2 * e + half, w[r]);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int s = 4 * half + j, step = 8 * e + s;
        const float2 b = *reinterpret_cast<const float2*>(&m.window.B[step][2 * g]);
        const float2 c = *reinterpret_cast<const float2*>(&m.window.C[step][2 * g]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          a[s][i] = decay<STARTS>(d[i / 2][j], A[i], step);
          h[s][i] = fmaf(a[s][i], s ? h[s - 1][i] : before[i], (i % 2 ? b.y : b.x) * w[i / 2][j]);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) y[s][r] = fmaf(c.y, h[s][2 * r + 1], c.x * h[s][2 * r]);
        const bool mine = g == s;
        multiply_by<kExact<S>>(d_C, h[s], mine ? out_column[0] : 0.0f, mine ? out_column[1] : 0.0f);
      }
    }
#pragma unroll
    for (int half = 1; half >= 0; --half) {
      alignas(16) float d[2][4], out[2][4], by_w[2][4], by_d[2][4];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        read_four(m.window.d, here[r], 2 * e + half, d[r]);
        read_four(m.window.out, here[r], 2 * e + half, out[r]);
      }
#pragma unroll
      for (int j = 3; j >= 0; --j) {
        const int s = 4 * half + j, step = 8 * e + s;
        const float2 b = *reinterpret_cast<const float2*>(&m.window.B[step][2 * g]);
        const float2 c = *reinterpret_cast<const float2*>(&m.window.C[step][2 * g]);
        float h_bar[4], l[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          h_bar[i] = fmaf(i % 2 ? c.y : c.x, out[i / 2][j], q[i]);
          q[i] = a[s][i] * h_bar[i];
          l[i] = q[i] * (s ? h[s - 1][i] : before[i]);
          d_A[i] = fmaf(l[i], d[i / 2][j], d_A[i]);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          by_w[r][j] = fmaf(b.y, h_bar[2 * r + 1], b.x * h_bar[2 * r]);
          by_d[r][j] = fmaf(A[2 * r + 1], l[2 * r + 1], A[2 * r] * l[2 * r]);
        }
        const bool mine = g == s;
        multiply_by<kExact<S>>(d_B, h_bar, mine ? w_column[0] : 0.0f, mine ? w_column[1] : 0.0f);
      }
      __syncwarp();  // the sums before these have been made
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int channel = t + 4 * r, at = 4 * (g ^ ((2 * t + r) & 7));
        float(*to)[8][32] = m.by_state[warp];
        *reinterpret_cast<float4*>(&to[0][channel][at]) =
            make_float4(y[4 * half][r], y[4 * half + 1][r], y[4 * half + 2][r], y[4 * half + 3][r]);
        *reinterpret_cast<float4*>(&to[1][channel][at]) = *reinterpret_cast<float4*>(by_w[r]);
        *reinterpret_cast<float4*>(&to[2][channel][at]) = *reinterpret_cast<float4*>(by_d[r]);
      }
      __syncwarp();
      add_states(2 * e + half);
    }
    // States 2g and 2g + 1 of steps 2t and 2t + 1, where the bank depends on both.
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const float* from = which ? d_C : d_B;
#pragma unroll
      for (int i = 0; i < 2; ++i)
        *reinterpret_cast<float2*>(&m.by_channel[warp][8 * (e % 4) + 2 * t + i][(16 * which + 2 * g) ^ (8 * t)]) =
            make_float2(from[i], from[2 + i]);
    }
  }

  // Lanes 0 to 23 have one sum (y, by_w, by_d) of one channel each, of four steps; y goes where `out` was, and so on.
  __device__ __forceinline__ void add_states(int four) {
    const int lane = threadIdx.x % 32, which = lane / 8, channel = lane % 8;
    if (lane >= 24) return;
    const float* from = m.by_state[warp][which][channel];
    const int turn = (2 * (channel % 4) + channel / 4) & 7;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float4 x = *reinterpret_cast<const float4*>(from + 4 * (i ^ turn));
      sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    }
    const int c = warp * 8 + channel;
    float* to = which == 0 ? m.window.out[c] : which == 1 ? m.window.w[c] : m.window.d[c];
    *reinterpret_cast<float4*>(to + swizzled(c, four)) = sum;
  }
};

template <class S>
struct Writer {
  const Layer<S>& from;
  Row<S> d_u, d_delta, d_z;

  __device__ __forceinline__ Writer(const Layer<S>& layer, const Selective& a, int64_t row, int64_t first)
      : from(layer), d_u(a.d_u, row, first + (layer.valid ? 4 * layer.four : 0)),
        d_delta(a.d_delta, row, first + (layer.valid ? 4 * layer.four : 0)),
        d_z(layer.is.gated ? a.d_z : a.d_u, row, first + (layer.valid ? 4 * layer.four : 0)) {}

  template <bool WHOLE>
  __device__ __forceinline__ void write(int steps, float (&d_skip)[4], float (&d_bias)[4]) const {
    const Window& m = from.m;
    Pack<S, 4> u_of[kRounds], delta_of[kRounds], z_of[kRounds], d_y_of[kRounds];
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int32_t read = some_cell(from.cell(i));
      u_of[i] = load_four<WHOLE>(from.u.at(read), from.valid), z_of[i] = load_four<WHOLE>(from.z.at(read), from.valid);
      delta_of[i] = load_four<WHOLE>(from.delta.at(read), from.valid);
      d_y_of[i] = load_four<WHOLE>(from.d_y.at(read), from.valid);
    }
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      if (i * kAtOnce >= steps) break;
      const int32_t here = from.cell(i);
      if (here < 0) continue;
      float us[4], deltas[4], zs[4], d_ys[4], dus[4], dds[4], dzs[4];
      unpack(u_of[i], us), unpack(delta_of[i], deltas), unpack(z_of[i], zs), unpack(d_y_of[i], d_ys);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = from.at(j, i);
        const float sum = (&m.out[0][0])[at], by_w = (&m.w[0][0])[at];
        const float by_d = (&m.d[0][0])[at] * kLn2;
        const float raw = deltas[j] + from.bias[j];
        const float e = exp2_of(-fabsf(raw) * kLog2e), over = reciprocal(1.0f + e);
        const float d = from.is.soft ? fmaxf(raw, 0.0f) + log1p_of(e) : raw;
        const float slope = from.is.soft ? (raw < 0.0f ? e * over : over) : 1.0f;
        const float gate = fast_sigmoid(zs[j]), silu = from.is.gated ? zs[j] * gate : 1.0f;
        const float out = d_ys[j] * silu, y = fmaf(from.skip[j], us[j], sum);
        dus[j] = fmaf(d, by_w, from.skip[j] * out);
        dds[j] = fmaf(us[j], by_w, by_d) * slope;
        dzs[j] = d_ys[j] * y * gate * fmaf(zs[j], 1.0f - gate, 1.0f);
        d_skip[j] = fmaf(out, us[j], d_skip[j]), d_bias[j] += dds[j];
      }
      store_four<WHOLE>(d_u.at(here), pack<S>(dus), from.valid);
      store_four<WHOLE>(d_delta.at(here), pack<S>(dds), from.valid);
      if (from.is.gated) store_four<WHOLE>(d_z.at(here), pack<S>(dzs), from.valid);
    }
  }
  template <bool WHOLE>
  __device__ __forceinline__ void clear(int32_t cell) const {
    const float zeros[4] = {0, 0, 0, 0};
    store_four<WHOLE>(d_u.at(cell), pack<S>(zeros), from.valid);
    store_four<WHOLE>(d_delta.at(cell), pack<S>(zeros), from.valid);
    if (from.is.gated) store_four<WHOLE>(d_z.at(cell), pack<S>(zeros), from.valid);
  }
};

// Sums of d_D and d_bias over the threads that have the same channels.
__device__ __forceinline__ void add_threads(float* scratch, const float (&d_skip)[4], const float (&d_bias)[4],
                                            const Partials<float>& partials, int64_t piece, int64_t first, int there) {
  const int four = threadIdx.x % (kWide / 4), first_row = threadIdx.x / (kWide / 4);
  __syncthreads();
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    scratch[first_row * kWide + 4 * four + j] = d_skip[j];
    scratch[(kAtOnce + first_row) * kWide + 4 * four + j] = d_bias[j];
  }
  __syncthreads();
  const int channel = threadIdx.x % kWide, which = threadIdx.x / kWide;
  float* to = which == 0 ? partials.D : which == 1 ? partials.bias : nullptr;
  if (to && channel < there) {
    float sum = 0;
    for (int i = 0; i < kAtOnce; ++i) sum += scratch[(which * kAtOnce + i) * kWide + channel];
    to[piece * partials.width + first + channel] = sum;
  }
  __syncthreads();
}

// Half a window's d_B and d_C, from all warps, to (or added to) the chunk's sums: a thread has one number of eight steps.
template <bool EXACT>
__device__ __forceinline__ void add_warps(const Memory& m, int begin, int steps, int states, bool adds, float* sums,
                                          int64_t by_cell) {
  constexpr int each = 32 / kWarps;
  const int v = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (v % 16 >= states) return;
  float before[each];
#pragma unroll
  for (int j = 0; j < each; ++j) {
    const int step = begin + warp + j * kWarps;
    before[j] = adds && step < steps ? sums[m.window.cells.cell[step] * by_cell] : 0.0f;
  }
#pragma unroll
  for (int j = 0; j < each; ++j) {
    const int k = warp + j * kWarps, where = v ^ (8 * (k / 2 % 4));
    if (begin + k >= steps) continue;
    float sum = m.by_channel[0][k][where];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) sum += m.by_channel[w][k][where];
    sums[m.window.cells.cell[begin + k] * by_cell] = before[j] + (EXACT ? sum : sum * (kCut * kCut));
  }
}

template <class S>
__global__ void __launch_bounds__(kBackThreads, 3)
    selective_fast_backward(const __grid_constant__ Selective a, const __grid_constant__ Walk walk,
                            const __grid_constant__ Chunks chunks, const __grid_constant__ Partials<float> partials,
                            const __grid_constant__ Options is, bool carried) {
  extern __shared__ __align__(16) char memory[];
  auto& m = *reinterpret_cast<Memory*>(memory);
  const Piece at_piece(a, chunks, blockIdx.x);
  const int64_t row = at_piece.row, states = a.states;
  const Steps steps = walk.steps(row, at_piece.group * a.blocks / chunks.groups);
  const int64_t chunk_begin = at_piece.group * chunks.run + at_piece.chunk % chunks.per_group * chunks.width;
  const int64_t group_end = (at_piece.group + 1) * chunks.run;
  const int64_t chunk_end = chunk_begin + chunks.width < group_end ? chunk_begin + chunks.width : group_end;
  const int64_t end = steps.count < at_piece.end ? steps.count : at_piece.end;
  const int64_t last = end > at_piece.begin ? (end - 1) / kWindow : -1, first_window = at_piece.begin / kWindow;

  // This thread's column of d_B or d_C, and how far cells are apart in it.
  const int v = threadIdx.x % 32;
  float* const v_sums = partials.of(v < 16 ? partials.B : partials.C, row, 0, at_piece.chunk, v % 16);
  const int64_t by_cell = partials.chunks * states;

  for (int64_t first = chunk_begin; first < chunk_end; first += kWide) {
    const bool adds = first != chunk_begin;
    const int there = int(chunk_end - first < kWide ? chunk_end - first : kWide);
    m.window.read_parameters(a, first, there);
    Computing<S> computing(m);
    float d_skip[4] = {0, 0, 0, 0}, d_bias[4] = {0, 0, 0, 0};
    const auto is_real = [&](int i) { return computing.here[i / 2] < there && 2 * computing.g + i % 2 < states; };
    const auto element = [&](int i) {  // of [D, N]
      return (hidden(first) + computing.here[i / 2]) * states + 2 * computing.g + i % 2;
    };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t channel = first + computing.here[i / 2], n = 2 * computing.g + i % 2;
      computing.A[i] = is_real(i) ? read_any<float>(a.A, at(a.A, channel, n)) * kLog2e : 0.0f;
      computing.d_A[i] = computing.q[i] = 0;
      if (!is_real(i)) continue;
      if (carried)
        computing.q[i] = partials.A.sums[at_piece.number * a.width * states + element(i)];
      else if (has(a.d_final_state))
        computing.q[i] = read_any<float>(a.d_final_state, at(a.d_final_state, row, channel, n));
    }
    NextCell next;
    const bool leads = threadIdx.x < kWindow;
    if (leads && last >= 0) next.ask(steps, last * kWindow + threadIdx.x);
    for (int64_t window = last; window >= first_window; --window) {
      const int64_t begin = window * kWindow;
      const int in_window = int(end - begin < kWindow ? end - begin : kWindow), eighths = (in_window + 7) / 8;
      if (leads) next.put(steps, m.window.cells, int(threadIdx.x));
      float entering[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        entering[i] = 0;
        if (!is_real(i)) continue;
        if (window)
          entering[i] = static_cast<const float*>(a.saved)[(row * borders(a.length) + window - 1) * a.width * states + element(i)];
        else if (has(a.initial_state))
          entering[i] = read_any<float>(a.initial_state, at(a.initial_state, row, first + computing.here[i / 2], 2 * computing.g + i % 2));
      }
      __syncthreads();
      if (leads && window > first_window) next.ask(steps, begin - kWindow + threadIdx.x);
      {
        const Layer<S> layer(a, is, m.window, row, hidden(first), there, at_piece.group);
        if (is.whole)
          layer.template lay<true, Part::all>(in_window);
        else
          layer.template lay<false, Part::all>(in_window);
      }
      __syncthreads();
      const bool starts = m.window.cells.any_starts();
      if (starts)
        computing.template ahead<true>(entering, eighths);
      else
        computing.template ahead<false>(entering, eighths);
      __syncwarp();
      for (int e = eighths - 1; e >= 0; --e) {
        if (starts)
          computing.template back<true>(entering, e);
        else
          computing.template back<false>(entering, e);
        if (e % 4) continue;
        __syncthreads();
        // Half a window is done: its sums over the block's channels.
        const int half_begin = e / 4 * 32;
        add_warps<kExact<S>>(m, half_begin, in_window, int(states), adds, v_sums, by_cell);
        __syncthreads();
      }
      const Layer<S> layer(a, is, m.window, row, hidden(first), there, at_piece.group);
      const Writer<S> writer(layer, a, row, hidden(first));
      if (is.whole)
        writer.template write<true>(in_window, d_skip, d_bias);
      else
        writer.template write<false>(in_window, d_skip, d_bias);
      __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!is_real(i)) continue;
      partials.A.sums[at_piece.number * a.width * states + element(i)] = computing.d_A[i];
      const int64_t channel = first + computing.here[i / 2], n = 2 * computing.g + i % 2;
      if (has(a.d_initial_state) && at_piece.piece == 0)
        write_any<float>(a.d_initial_state, at(a.d_initial_state, row, channel, n), computing.q[i]);
    }
    add_threads(&m.by_channel[0][0][0], d_skip, d_bias, partials, at_piece.number, first, there);
    if (steps.count >= at_piece.end) continue;
    const Layer<S> layer(a, is, m.window, row, first, there, at_piece.group);
    const Writer<S> writer(layer, a, row, first);
    for (int64_t k = (steps.count > at_piece.begin ? steps.count : at_piece.begin) + layer.first_row; k < at_piece.end; k += kAtOnce)
      writer.template clear<false>(int32_t(steps.cell(k)));
  }
  for (int64_t k = steps.count > at_piece.begin ? steps.count : at_piece.begin; k < at_piece.end; ++k) {
    const int n = threadIdx.x % 32;
    if (threadIdx.x < 32 && n % 16 < states)
      *partials.of(n < 16 ? partials.B : partials.C, row, steps.cell(k), at_piece.chunk, n % 16) = 0;
  }
}

template <class S>
int run(const Selective& a, const Partials<float>& partials, float* sums, cudaStream_t stream) {
  const Chunks chunks(a);
  const Options is = options_of(a);
  const int64_t pieces = pieces_of(a.length);
  if (pieces > 1)
    if (const int status = carry<S>(a, false, is, partials.A.sums, sums, stream)) return status;
  const dim3 grid(unsigned(a.batch * pieces * chunks.count));
  if (const int status = launch("selective_scan backward", selective_fast_backward<S>, grid, kBackThreads, sizeof(Memory),
                                stream, a, Walk(a), chunks, partials, is, pieces > 1))
    return status;
  return add_up(a, partials, chunks.groups, stream);
}

struct Plan {
  Arena arena;
  Partials<float> partials;
  float* sums;  // of delta, [pieces][D]

  Plan(const Selective& a, void* memory)
      : arena(memory), partials(arena, a, Chunks(a).count, a.batch * pieces_of(a.length)),
        sums(arena.take<float>(a.batch * pieces_of(a.length) * a.width)) {}
};

}  // namespace

bool is_fast_backward(const Selective& a) { return is_fast(a) && a.states <= kMostFast; }

int64_t fast_backward_bytes(const Selective& a) { return Plan(a, nullptr).arena.bytes(); }

int fast_backward(const Selective& a, void* memory, cudaStream_t stream) {
  const Plan plan(a, memory);
  switch (a.u.dtype) {
    case NVSUBQ_F32: return run<float>(a, plan.partials, plan.sums, stream);
    case NVSUBQ_F16: return run<f16>(a, plan.partials, plan.sums, stream);
    default: return run<bf16>(a, plan.partials, plan.sums, stream);
  }
}

}  // namespace nvsubq
