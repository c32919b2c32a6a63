// `selective_scan`, backward, for every call: a block walks back over a chunk of channels, a few of them at once. The
// states of a window are made again from those kept at its border, those of a short tile of it are held.
#include "general.cuh"

namespace nvsubq::selective {
namespace {

constexpr int kTile = 16, kWarps = kThreads / 32;

// Of one channel and tile, by step: cotangents, and sums over states.
template <class T>
struct TileOf {
  Step<T> x[kTile];
  T out[kTile], y[kTile], by_w[kTile], by_d[kTile], by_da[kTile], by_time[kTile];
  int64_t cell[kTile];
  bool starts[kTile];
  int cells;
};

// A block's sums over its channels, for one of each lane's states.
template <class T, bool CX>
struct Shared {
  Number<T, CX> sum[kWarps][kTile][32];
};

template <class T>
__device__ __forceinline__ T shuffled(T x, int by) {
  return __shfl_xor_sync(~0u, x, by);
}
template <class T>
__device__ __forceinline__ Cx<T> shuffled(Cx<T> x, int by) {
  return {shuffled(x.re, by), shuffled(x.im, by)};
}

// Adds the channels of a block up for each step and lane, and puts (or adds) the sums to those of the chunk.
template <class T, bool CX, class X>
__device__ void over_channels(Shared<T, CX>& shared, const Partials<T>& partials, const typename Partials<T>::Cells& to,
                              const Place& p, const TileOf<T>& tile, const X* values, int64_t n, int64_t most,
                              bool first) {
  const int warp = threadIdx.x / 32, thread = threadIdx.x % 32;
  for (int t = 0; t < tile.cells; ++t) {
    Number<T, CX> x;
    if constexpr (CX && std::is_same_v<X, T>)
      x = {values[t], T(0)};
    else
      x = values[t];
    for (int by = p.lanes; by < 32; by *= 2) x = x + shuffled(x, by);
    if (thread < p.lanes) shared.sum[warp][t][thread] = x;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < tile.cells * p.lanes; i += kThreads) {
    const int t = i / p.lanes, lane = i % p.lanes;
    const int64_t state = n - p.lane + lane;
    Number<T, CX> x = shared.sum[0][t][lane];
    for (int w = 1; w < kWarps; ++w) x = x + shared.sum[w][t][lane];
    if (state >= most) continue;
    T* sum = partials.of(to, p.row, tile.cell[t], p.chunk, state);
    for (int j = 0; j < to.parts; ++j) sum[j] = first ? part(x, j) : sum[j] + part(x, j);
  }
  __syncthreads();
}

template <class T, bool CX, int PER>
__global__ void __launch_bounds__(kThreads)
    selective_general_backward(const __grid_constant__ Selective a, const __grid_constant__ Walk walk,
                               const __grid_constant__ Chunks chunks, const __grid_constant__ Partials<T> partials,
                               int lanes) {
  using Num = Number<T, CX>;
  constexpr int parts = CX ? 2 : 1;
  constexpr T kReal = CX ? 2 : 1;  // of a real output 2 Re(C s) the cotangent counts twice
  __shared__ Shared<T, CX> shared;
  const Num zero = real_number<T, CX>(T(0));
  Place p;
  p.row = blockIdx.x / chunks.count, p.chunk = blockIdx.x % chunks.count;
  p.group = p.chunk / chunks.per_group;
  p.lane = int(threadIdx.x) % lanes, p.lanes = lanes;
  const Steps steps = walk.steps(p.row, p.group * a.blocks / chunks.groups);
  const int64_t kind = a.discretization, begin = p.chunk % chunks.per_group * chunks.width;
  const int64_t end = begin + chunks.width < chunks.run ? begin + chunks.width : chunks.run;
  const bool same = !has(a.delta_a), scaled = has_scale(kind), gated = has(a.decay_gate);
  const bool fixed_B = a.flags & NVSUBQ_FIXED_B, fixed_C = a.flags & NVSUBQ_FIXED_C;
  const bool fixed_gate = a.flags & NVSUBQ_FIXED_GATE, soft = a.flags & NVSUBQ_SOFTPLUS;
  TileOf<T> tile;

  for (int64_t from = begin; from < end; from += kThreads / lanes) {
    const bool first = from == begin;
    const int64_t within = from + threadIdx.x / lanes;
    p.there = within < end;
    p.channel = p.group * chunks.run + (p.there ? within : begin);
    const Channel<T> channel(a, p.channel);
    Num A[PER], arriving[PER], d_A[PER], d_B[PER], d_C[PER], entering[kBorder / kTile][PER];
    T d_gate[PER], d_skip = 0, d_bias = 0, d_step = 0;
    for (int i = 0; i < PER; ++i) {
      const int64_t n = p.lane + i * lanes;
      A[i] = arriving[i] = d_A[i] = d_B[i] = d_C[i] = zero;
      d_gate[i] = 0;
      if (n >= a.states) continue;
      A[i] = read_number<T, CX>(a.A, at(a.A, p.channel, n));
      if (has(a.d_final_state) && p.there)
        arriving[i] = read_number<T, CX>(a.d_final_state, at(a.d_final_state, p.row, p.channel, n));
    }

    for (int64_t window = steps.count > 0 ? (steps.count - 1) / kBorder : -1; window >= 0; --window) {
      const int64_t window_begin = window * kBorder;
      const int64_t left = steps.count - window_begin;
      const int in_window = int(left < kBorder ? left : kBorder), tiles = (in_window + kTile - 1) / kTile;
      for (int i = 0; i < PER; ++i) {
        const int64_t n = p.lane + i * lanes;
        entering[0][i] = zero;
        if (n >= a.states) continue;
        const int64_t border = (p.row * borders(a.length) + window - 1) * a.width + p.channel;
        if (window)
          entering[0][i] = get_number<T, CX>(static_cast<const T*>(a.saved) + (border * a.states + n) * parts);
        else if (has(a.initial_state))
          entering[0][i] = read_number<T, CX>(a.initial_state, at(a.initial_state, p.row, p.channel, n));
      }
      // The states that enter the tiles of the window.
      for (int t = 0; t < (tiles - 1) * kTile; ++t) {
        const int64_t k = window_begin + t, cell = steps.cell(k);
        const Step<T> x = channel.read(a, p, cell);
        const bool starts = steps.starts(k);
        for (int i = 0; i < PER; ++i) {
          const int64_t n = p.lane + i * lanes;
          if (n >= a.states) continue;
          Num& state = entering[t / kTile + 1][i];
          if (t % kTile == 0) state = entering[t / kTile][i];
          const Coefficients<T, CX> by(kind, x, same, A[i]);
          Num decay = by.decay, in = read_by_state<T, CX>(a.B, a, NVSUBQ_FIXED_B, p, cell, n) * x.w;
          if (scaled) in = in * by.scale;
          if (gated) decay = decay * read_by_state<T, false>(a.decay_gate, a, NVSUBQ_FIXED_GATE, p, cell, n);
          state = starts ? in : decay * state + in;
        }
      }

      for (int which = tiles - 1; which >= 0; --which) {
        tile.cells = min(kTile, in_window - which * kTile);
        for (int t = 0; t < tile.cells; ++t) {
          const int64_t k = window_begin + which * kTile + t;
          tile.cell[t] = steps.cell(k), tile.starts[t] = steps.starts(k);
          tile.x[t] = channel.read(a, p, tile.cell[t]);
          T out = p.there ? read_any<T>(a.d_y, at(a.d_y, p.row, tile.cell[t]) + p.channel) : T(0);
          if (has(a.z)) {
            const T z = read_any<T>(a.z, at(a.z, p.row, tile.cell[t]) + p.channel);
            out *= z * sigmoid_of(z);
          }
          tile.out[t] = out;
          tile.y[t] = tile.by_w[t] = tile.by_d[t] = tile.by_da[t] = tile.by_time[t] = 0;
        }
        for (int i = 0; i < PER; ++i) {
          const int64_t n = p.lane + i * lanes;
          if (n - p.lane >= a.states) break;
          Num state[kTile], by_B[kTile], by_C[kTile];
          T by_gate[kTile];
          Num s = entering[which][i], h = arriving[i];
          const bool real = n < a.states;
          for (int t = 0; t < tile.cells; ++t) {
            by_B[t] = by_C[t] = zero, by_gate[t] = 0;
            if (!real) continue;
            const int64_t cell = tile.cell[t];
            const Coefficients<T, CX> by(kind, tile.x[t], same, A[i]);
            Num decay = by.decay, in = read_by_state<T, CX>(a.B, a, NVSUBQ_FIXED_B, p, cell, n) * tile.x[t].w;
            if (scaled) in = in * by.scale;
            if (gated) decay = decay * read_by_state<T, false>(a.decay_gate, a, NVSUBQ_FIXED_GATE, p, cell, n);
            s = tile.starts[t] ? in : decay * s + in;
            state[t] = s;
            by_C[t] = conj(s) * (tile.out[t] * kReal);
            tile.y[t] += re(read_by_state<T, CX>(a.C, a, NVSUBQ_FIXED_C, p, cell, n) * s);
          }
          for (int t = tile.cells - 1; t >= 0 && real; --t) {
            const int64_t cell = tile.cell[t];
            const Step<T>& x = tile.x[t];
            const Coefficients<T, CX> by(kind, x, same, A[i]);
            const T gate = gated ? read_by_state<T, false>(a.decay_gate, a, NVSUBQ_FIXED_GATE, p, cell, n) : T(1);
            const Num b = conj(read_by_state<T, CX>(a.B, a, NVSUBQ_FIXED_B, p, cell, n));
            h = h + conj(read_by_state<T, CX>(a.C, a, NVSUBQ_FIXED_C, p, cell, n)) * (tile.out[t] * kReal);
            const Num before = tile.starts[t] ? zero : t ? state[t - 1] : entering[which][i];
            Num in = h, l = h * conj(before);  // l: the cotangent of the gated decay
            if (scaled) {
              const Num hb = h * b;
              tile.by_d[t] += re(hb * conj(by.by_d));
              d_A[i] = d_A[i] + hb * conj(by.by_a) * x.w;
              in = h * conj(by.scale);
            }
            by_B[t] = in * x.w;
            tile.by_w[t] += re(in * b);
            if (gated) by_gate[t] = re(l * conj(by.decay));
            l = l * gate;
            if (kind == NVSUBQ_NO_DISCRETIZATION) {
              d_A[i] = d_A[i] + l;
            } else {
              if (is_exponential(kind)) {
                l = l * conj(by.decay);
              } else {
                const Num q = same ? by.scale : inverse(real_number<T, CX>(T(1)) - A[i] * (x.da * T(0.5)));
                l = l * conj(q * q);
              }
              tile.by_da[t] += re(l * conj(A[i]));
              d_A[i] = d_A[i] + l * x.da;
            }
            h = tile.starts[t] ? zero : h * conj(by.decay) * gate;
          }
          arriving[i] = h;
          if (!p.there)
            for (int t = 0; t < tile.cells; ++t) by_B[t] = by_C[t] = zero, by_gate[t] = 0;
          for (int t = tile.cells - 1; t >= 0; --t) {
            d_B[i] = d_B[i] + by_B[t], d_C[i] = d_C[i] + by_C[t], d_gate[i] += by_gate[t];
          }
          if (!fixed_B) over_channels<T, CX>(shared, partials, partials.B, p, tile, by_B, n, a.states, first);
          if (!fixed_C) over_channels<T, CX>(shared, partials, partials.C, p, tile, by_C, n, a.states, first);
          if (gated && !fixed_gate)
            over_channels<T, CX>(shared, partials, partials.gate, p, tile, by_gate, n, a.states, first);
        }

        for (int t = tile.cells - 1; t >= 0; --t) {
          const int64_t cell = tile.cell[t];
          const Step<T>& x = tile.x[t];
          const T y = over_lanes(tile.y[t], lanes) * kReal + channel.skip * x.u, by_w = over_lanes(tile.by_w[t], lanes);
          const T by_d = over_lanes(tile.by_d[t], lanes), by_da = over_lanes(tile.by_da[t], lanes);
          const T du = (scales_input(kind) ? x.d * by_w : by_w) + channel.skip * tile.out[t];
          T dd = scaled ? x.u * by_d : scales_input(kind) ? x.u * by_w : T(0);
          if (same) dd += by_da;
          if (soft) dd *= x.raw > T(20) ? T(1) : sigmoid_of(x.raw);
          d_skip += tile.out[t] * x.u, d_bias += dd;
          if (has(a.timesteps)) {
            d_step += by_da * read_any<T>(a.timesteps, at(a.timesteps, p.row, cell));
            tile.by_time[t] = p.there ? by_da * channel.rate : T(0);
          }
          if (p.lane || !p.there) continue;
          write_any<T>(a.d_u, at(a.d_u, p.row, cell) + p.channel, du);
          write_any<T>(a.d_delta, at(a.d_delta, p.row, cell) + p.channel, dd);
          if (!same && !has(a.timesteps)) write_any<T>(a.d_delta_a, at(a.d_delta_a, p.row, cell) + p.channel, by_da);
          if (has(a.z)) {
            const T z = read_any<T>(a.z, at(a.z, p.row, cell) + p.channel), gate = sigmoid_of(z);
            const T d_y = read_any<T>(a.d_y, at(a.d_y, p.row, cell) + p.channel);
            write_any<T>(a.d_z, at(a.d_z, p.row, cell) + p.channel, d_y * y * gate * (T(1) + z * (T(1) - gate)));
          }
        }
        if (has(a.timesteps)) {  // one sum for each cell: as of a single state
          for (int t = 0; t < tile.cells; ++t) {
            T x = tile.by_time[t];
            for (int by = lanes; by < 32; by *= 2) x += shuffled(x, by);
            if (threadIdx.x % 32 == 0) shared.sum[threadIdx.x / 32][t][0] = real_number<T, CX>(x);
          }
          __syncthreads();
          if (threadIdx.x < tile.cells) {
            const int t = threadIdx.x;
            T x = 0;
            for (int w = 0; w < kWarps; ++w) x += re(shared.sum[w][t][0]);
            T* sum = partials.times + (p.row * a.length + tile.cell[t]) * partials.chunks + p.chunk;
            *sum = first ? x : *sum + x;
          }
          __syncthreads();
        }
      }
    }

    if (!p.there) continue;
    for (int i = 0; i < PER; ++i) {
      const int64_t n = p.lane + i * lanes;
      if (n >= a.states) continue;
      if (has(a.d_initial_state))
        write_number<T, CX>(a.d_initial_state, at(a.d_initial_state, p.row, p.channel, n), arriving[i]);
      put_number<T, CX>(partials.of(partials.A, p.row, p.channel, n), d_A[i]);
      for (int j = 0; j < parts; ++j) {
        if (j < partials.fixed_B.parts) partials.of(partials.fixed_B, p.row, p.channel, n)[j] = part(d_B[i], j);
        if (j < partials.fixed_C.parts) partials.of(partials.fixed_C, p.row, p.channel, n)[j] = part(d_C[i], j);
      }
      if (partials.fixed_gate.parts) *partials.of(partials.fixed_gate, p.row, p.channel, n) = d_gate[i];
    }
    if (p.lane == 0) {
      const int64_t by_row = p.row * a.width + p.channel;
      if (partials.D) partials.D[by_row] = d_skip;
      if (partials.bias) partials.bias[by_row] = d_bias;
      if (partials.step) partials.step[by_row] = d_step;
    }
    for (int64_t k = steps.count + p.lane; k < steps.length; k += lanes) {
      const int64_t cell = steps.cell(k);
      write_any<T>(a.d_u, at(a.d_u, p.row, cell) + p.channel, T(0));
      write_any<T>(a.d_delta, at(a.d_delta, p.row, cell) + p.channel, T(0));
      if (has(a.z)) write_any<T>(a.d_z, at(a.d_z, p.row, cell) + p.channel, T(0));
      if (!same && !has(a.timesteps)) write_any<T>(a.d_delta_a, at(a.d_delta_a, p.row, cell) + p.channel, T(0));
    }
  }

  for (int64_t k = steps.count; k < steps.length; ++k) {
    const int64_t cell = steps.cell(k);
    const auto clear = [&](const typename Partials<T>::Cells& sums) {
      T* first = partials.of(sums, p.row, cell, p.chunk, 0);
      for (int64_t i = threadIdx.x; i < a.states * sums.parts; i += kThreads) first[i] = 0;
    };
    clear(partials.B), clear(partials.C), clear(partials.gate);
    if (partials.times && threadIdx.x == 0)
      partials.times[(p.row * a.length + cell) * partials.chunks + p.chunk] = 0;
  }
}

template <class T, bool CX>
int run(const Selective& a, void* memory, cudaStream_t stream) {
  const Chunks chunks(a);
  Arena arena(memory);
  const Partials<T> partials(arena, a, chunks.count, a.batch);
  const int lanes = lanes_of(a.states);
  const auto kernel =
      a.states <= 32 ? selective_general_backward<T, CX, 1> : selective_general_backward<T, CX, int(kMostStates / 32)>;
  const dim3 grid(unsigned(a.batch * chunks.count));
  if (const int status = launch("selective_scan backward", kernel, grid, kThreads, 0, stream, a, Walk(a), chunks,
                                partials, lanes))
    return status;
  return add_up(a, partials, chunks.groups, stream);
}

}  // namespace

int general_backward(const Selective& a, void* memory, cudaStream_t stream) {
  if (in_double(a))
    return is_complex(a.A) ? run<double, true>(a, memory, stream) : run<double, false>(a, memory, stream);
  return is_complex(a.A) ? run<float, true>(a, memory, stream) : run<float, false>(a, memory, stream);
}

}  // namespace nvsubq::selective
