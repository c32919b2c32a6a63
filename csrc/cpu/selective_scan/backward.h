// `selective_scan`, backward: segments from the last to the first; the states of one are made again from the one
// kept at its border. Sums over channels (dB, dC) and over rows (dA and other parameters) go through partial sums
// that are added in a fixed order.
#ifndef NVSUBQ_CPU_SELECTIVE_SCAN_BACKWARD_H
#define NVSUBQ_CPU_SELECTIVE_SCAN_BACKWARD_H

#include "common.h"

namespace {

// By step, of one tile: the cotangent of the output before the gate, that output, and gradient sums over states.
template <class T>
struct TileGradients {
  using V = Vec<T>;
  V *out, *y, *by_w, *by_d, *by_da;

  void take(Arena& arena) {
    for (V** p : {&out, &y, &by_w, &by_d, &by_da}) *p = arena.take<V>(kMaxCells);
  }
};

// Of NB states over a segment: states and decays by step, then the adjoints of B and C, summed over tiles.
template <class T>
struct Recomputed {
  Vec<T> state[kMaxCells * kTogether], decay[kMaxCells * kTogether];
  Vec<T> dB[kMaxCells * kTogether], dC[kMaxCells * kTogether];
};

template <class T, int KIND, int NB, bool STARTS, bool GATED>
inline void recompute(const Tile<T>& x, const TileGradients<T>& g, const Segment& segment, int64_t states, const T* B,
                      const T* C, const Vec<T>* A, const Vec<T>* entering, Recomputed<T>& r) {
  using V = Vec<T>;
  V s[NB], rate[NB];
  for (int j = 0; j < NB; ++j) s[j] = entering[j], rate[j] = A[j];
  for (int t = 0; t < segment.cells; ++t, B += states, C += states) {
    if (STARTS && segment.starts[t])
      for (int j = 0; j < NB; ++j) s[j] = V{};
    const V da = x.da[t], w = x.w[t], out = g.out[t];
    V sum = GATED ? g.y[t] : V{};
#pragma GCC unroll 4
    for (int j = 0; j < NB; ++j) {
      V in = w * B[j];
      if (has_scale(KIND)) in = in * input_scale<T, KIND>(x.d[t], rate[j]).value;
      const V a = decay<T, KIND>(da, rate[j]);
      s[j] = a * s[j] + in;
      r.state[t * NB + j] = s[j];
      r.decay[t * NB + j] = a;
      r.dC[t * NB + j] += out * s[j];
      if (GATED) sum = sum + s[j] * C[j];
    }
    if (GATED) g.y[t] = sum;
  }
}

template <class T, int KIND, int NB, bool STARTS>
inline void adjoint(const Tile<T>& x, const TileGradients<T>& g, const Segment& segment, int64_t states, const T* B,
                    const T* C, const Vec<T>* A, const Vec<T>* entering, Vec<T>* arriving, Vec<T>* d_rate,
                    Recomputed<T>& r) {
  using V = Vec<T>;
  V h[NB], rate[NB], by_rate[NB];
  for (int j = 0; j < NB; ++j) h[j] = arriving[j], rate[j] = A[j], by_rate[j] = d_rate[j];
  for (int t = segment.cells - 1; t >= 0; --t) {
    const T *b = B + t * states, *c = C + t * states;
    const bool start = STARTS && segment.starts[t];
    const V da = x.da[t], w = x.w[t], out = g.out[t];
    const V* before = t ? r.state + (t - 1) * NB : entering;
    V by_w = g.by_w[t], by_da = g.by_da[t], by_d = has_scale(KIND) ? g.by_d[t] : V{};
#pragma GCC unroll 4
    for (int j = 0; j < NB; ++j) {
      const V a = r.decay[t * NB + j];
      h[j] = h[j] + out * c[j];
      if (has_scale(KIND)) {
        const Scale<T> scale = input_scale<T, KIND>(x.d[t], rate[j]);
        const V hb = h[j] * b[j];
        r.dB[t * NB + j] += h[j] * w * scale.value;
        by_w = by_w + hb * scale.value;
        by_d = by_d + hb * scale.by_d;
        by_rate[j] = by_rate[j] + hb * w * scale.by_a;
      } else {
        r.dB[t * NB + j] += h[j] * w;
        by_w = by_w + h[j] * b[j];
      }
      const V s = start ? V{} : before[j];
      if (is_exponential(KIND)) {
        h[j] = h[j] * a;
        const V l = h[j] * s;
        by_da = by_da + l * rate[j];
        by_rate[j] = by_rate[j] + l * da;
      } else if (KIND == NVSUBQ_BILINEAR) {
        const V q = T(1) / (T(1) - da * rate[j] * T(0.5));
        const V l = h[j] * s * q * q;
        by_da = by_da + l * rate[j];
        by_rate[j] = by_rate[j] + l * da;
        h[j] = h[j] * a;
      } else {
        by_rate[j] = by_rate[j] + h[j] * s;
        h[j] = h[j] * a;
      }
      if (start) h[j] = V{};
    }
    g.by_w[t] = by_w;
    g.by_da[t] = by_da;
    if (has_scale(KIND)) g.by_d[t] = by_d;
  }
  for (int j = 0; j < NB; ++j) arriving[j] = h[j], d_rate[j] = by_rate[j];
}

template <class T>
struct BackwardScratch {
  Tile<T>* tile;
  TileGradients<T>* grad;
  Vec<T>*rates, *entering, *arriving, *d_rate;
  Vec<T>*d_skip, *d_bias, *d_step;  // sums over the walk, by tile
  T *B, *C, *times;
  Recomputed<T>* again;

  BackwardScratch(Arena& arena, const Selective& a) {
    const int64_t tiles = (Chunks(a).width + Simd<T>::W - 1) / Simd<T>::W;
    tile = arena.take<Tile<T>>(tiles);
    grad = arena.take<TileGradients<T>>(tiles);
    if (arena.base) {
      for (int64_t i = 0; i < tiles; ++i) tile[i].take(arena), grad[i].take(arena);
    } else {
      Tile<T> one;
      TileGradients<T> other;
      for (int64_t i = 0; i < tiles; ++i) one.take(arena), other.take(arena);
    }
    for (Vec<T>** p : {&rates, &entering, &arriving, &d_rate}) *p = arena.take<Vec<T>>(tiles * a.states);
    for (Vec<T>** p : {&d_skip, &d_bias, &d_step}) *p = arena.take<Vec<T>>(tiles);
    B = arena.take<T>(kMaxCells * a.states);
    C = arena.take<T>(kMaxCells * a.states);
    times = arena.take<T>(kMaxCells);
    again = arena.take<Recomputed<T>>(1);
  }
};

// Partial sums: over the channels of a chunk, and over the walk of a row.
template <class T>
struct Partial {
  T *B, *C;       // [B][L][chunks][N]
  T* times;       // [B][L][chunks]
  T* A;           // [B][N][D]
  T *D, *bias, *step;  // [B][D]

  Partial(Arena& arena, const Selective& a, const Chunks& chunks) {
    const int64_t cells = a.batch * a.length * chunks.count, channels = a.batch * a.width;
    B = arena.take<T>(cells * a.states);
    C = arena.take<T>(cells * a.states);
    times = arena.take<T>(has(a.timesteps) ? cells : 0);
    A = arena.take<T>(channels * a.states);
    D = arena.take<T>(channels);
    bias = arena.take<T>(channels);
    step = arena.take<T>(has(a.timesteps) ? channels : 0);
  }
};

template <class T, int KIND>
struct Backward {
  using V = Vec<T>;
  const Selective& a;
  Chunks chunks;
  int64_t slot_bytes, partial_bytes;
  Partial<T> partial;

  explicit Backward(const Selective& args) : a(args), chunks(args), partial(measure(args, chunks)) {
    Arena slot(nullptr);
    BackwardScratch<T>(slot, a);
    slot_bytes = slot.bytes();
    Arena arena(a.workspace);
    partial = Partial<T>(arena, a, chunks);
    partial_bytes = arena.bytes();
  }
  static Partial<T> measure(const Selective& args, const Chunks& chunks) {
    Arena arena(nullptr);
    return Partial<T>(arena, args, chunks);
  }

  int64_t bytes() const { return partial_bytes + slot_bytes * a.threads; }

  static constexpr int64_t kSumCells = 64, kSumChannels = 32;
  int64_t cell_sums() const { return a.batch * ((a.length + kSumCells - 1) / kSumCells); }

  void run() {
    nvsubq::run_tasks(
        a.threads, a.batch * chunks.count,
        [](void* self, int64_t task, int64_t slot) { static_cast<Backward*>(self)->one(task, slot); }, this);
    nvsubq::run_tasks(
        a.threads, cell_sums() + (a.width + kSumChannels - 1) / kSumChannels,
        [](void* self, int64_t task, int64_t) { static_cast<Backward*>(self)->add_up(task); }, this);
  }

  void one(int64_t task, int64_t slot) {
    const Place place = Place::of<T>(chunks, task);
    const Steps steps = steps_at(a, place);
    Arena arena(static_cast<char*>(a.workspace) + partial_bytes + slot * slot_bytes);
    BackwardScratch<T> x(arena, a);
    read_rates<T, KIND>(a, place, x.rates);
    read_state<T>(a.d_final_state, place, a.states, x.arriving);
    for (int64_t i = 0; i < place.tiles * a.states; ++i) x.d_rate[i] = V{};
    for (int i = 0; i < place.tiles; ++i) x.d_skip[i] = x.d_bias[i] = x.d_step[i] = V{};
    const int64_t most = segment_cells(a.states);
    Segment segment;
    for (int64_t i = segments(a.length, a.states) - 1; i >= 0; --i) {
      segment.read(steps, i * most, most);
      if (!segment.cells) continue;
      read_states<T>(a.B, place, segment, a.states, x.B);
      read_states<T>(a.C, place, segment, a.states, x.C);
      if (i) {
        for (int tile = 0; tile < place.tiles; ++tile) {
          const T* from = saved_states<T>(a, place, i, tile);
          for (int64_t n = 0; n < a.states; ++n)
            x.entering[tile * a.states + n] = read_part<T>(from + n * a.width, place.lanes<T>(tile));
        }
      } else {
        read_state<T>(a.initial_state, place, a.states, x.entering);
      }
      for (int tile = 0; tile < place.tiles; ++tile) read_tile(place, segment, tile, x);
      if (segment.any_starts)
        over_states<true>(place, segment, x);
      else
        over_states<false>(place, segment, x);
      for (int t = 0; t < segment.cells; ++t) x.times[t] = 0;
      for (int tile = 0; tile < place.tiles; ++tile) write_tile(place, segment, tile, x);
      if (has(a.timesteps))
        for (int t = 0; t < segment.cells; ++t)
          partial.times[(place.row * a.length + segment.cell[t]) * chunks.count + place.chunk] = x.times[t];
    }
    finish(place, steps, x);
  }

  void read_tile(const Place& place, const Segment& segment, int tile, BackwardScratch<T>& x) {
    const int n = place.lanes<T>(tile);
    const int64_t channel = place.channel<T>(tile);
    TileGradients<T>& g = x.grad[tile];
    x.tile[tile].template read<KIND>(a, place, segment, tile);
    for (int t = 0; t < segment.cells; ++t) {
      V out = read_lanes<T>(a.d_y, at(a.d_y, place.row, segment.cell[t], channel), n);
      if (has(a.z)) {
        const V z = read_lanes<T>(a.z, at(a.z, place.row, segment.cell[t], channel), n);
        out = out * (z * sigmoid<T>(z));
      }
      g.out[t] = out;
      g.y[t] = g.by_w[t] = g.by_d[t] = g.by_da[t] = V{};
    }
  }

  template <bool STARTS>
  void over_states(const Place& place, const Segment& segment, BackwardScratch<T>& x) {
    int64_t n = 0;
    for (; n + kTogether <= a.states; n += kTogether) some_states<kTogether, STARTS>(place, segment, n, x);
    for (; n < a.states; ++n) some_states<1, STARTS>(place, segment, n, x);
  }

  template <int NB, bool STARTS>
  void some_states(const Place& place, const Segment& segment, int64_t n, BackwardScratch<T>& x) {
    Recomputed<T>& r = *x.again;
    for (int i = 0; i < segment.cells * NB; ++i) r.dB[i] = r.dC[i] = V{};
    const T *B = x.B + n, *C = x.C + n;
    for (int tile = 0; tile < place.tiles; ++tile) {
      const int64_t from = tile * a.states + n;
      const Tile<T>& in = x.tile[tile];
      const TileGradients<T>& g = x.grad[tile];
      if (has(a.z))
        recompute<T, KIND, NB, STARTS, true>(in, g, segment, a.states, B, C, x.rates + from, x.entering + from, r);
      else
        recompute<T, KIND, NB, STARTS, false>(in, g, segment, a.states, B, C, x.rates + from, x.entering + from, r);
      adjoint<T, KIND, NB, STARTS>(in, g, segment, a.states, B, C, x.rates + from, x.entering + from,
                                   x.arriving + from, x.d_rate + from, r);
    }
    for (int t = 0; t < segment.cells; ++t) {
      const int64_t to = ((place.row * a.length + segment.cell[t]) * chunks.count + place.chunk) * a.states + n;
      for (int j = 0; j < NB; ++j) {
        partial.B[to + j] = sum_lanes<T>(r.dB[t * NB + j]);
        partial.C[to + j] = sum_lanes<T>(r.dC[t * NB + j]);
      }
    }
  }

  void write_tile(const Place& place, const Segment& segment, int tile, BackwardScratch<T>& x) {
    const int n = place.lanes<T>(tile);
    const int64_t channel = place.channel<T>(tile), row = place.row;
    const Tile<T>& in = x.tile[tile];
    const TileGradients<T>& g = x.grad[tile];
    const V skip = has(a.D) ? read_lanes<T>(a.D, at(a.D, channel), n) : V{};
    const V rate = has(a.timesteps) ? read_lanes<T>(a.delta_a, at(a.delta_a, channel), n) : V{};
    for (int t = 0; t < segment.cells; ++t) {
      const int64_t cell = segment.cell[t];
      const V out = g.out[t], by_da = is_exponential(KIND) ? g.by_da[t] * T(kLn2) : g.by_da[t];
      V du = scales_input(KIND) ? in.d[t] * g.by_w[t] : g.by_w[t];
      if (has(a.D)) du = du + skip * out;
      write_lanes<T>(a.d_u, at(a.d_u, row, cell, channel), n, du);
      x.d_skip[tile] += out * in.u[t];
      V dd = has_scale(KIND) ? in.u[t] * g.by_d[t] : scales_input(KIND) ? in.u[t] * g.by_w[t] : V{};
      if (!has(a.delta_a)) {
        dd = dd + by_da;
      } else if (has(a.timesteps)) {
        x.d_step[tile] += by_da * read_one<T>(a.timesteps, at(a.timesteps, row, cell));
        x.times[t] += sum_lanes<T>(by_da * rate);
      } else {
        write_lanes<T>(a.d_delta_a, at(a.d_delta_a, row, cell, channel), n, by_da);
      }
      if (a.flags & NVSUBQ_SOFTPLUS) dd = in.raw[t] > T(20) ? dd : dd * sigmoid<T>(in.raw[t]);
      write_lanes<T>(a.d_delta, at(a.d_delta, row, cell, channel), n, dd);
      x.d_bias[tile] += dd;
      if (has(a.z)) {
        const V z = read_lanes<T>(a.z, at(a.z, row, cell, channel), n), gate = sigmoid<T>(z);
        V y = g.y[t];
        if (has(a.D)) y = y + skip * in.u[t];
        const V dy = read_lanes<T>(a.d_y, at(a.d_y, row, cell, channel), n);
        write_lanes<T>(a.d_z, at(a.d_z, row, cell, channel), n, dy * y * gate * (T(1) + z * (T(1) - gate)));
      }
    }
  }

  void finish(const Place& place, const Steps& steps, BackwardScratch<T>& x) {
    if (has(a.d_initial_state)) write_state<T>(a.d_initial_state, place, a.states, x.arriving);
    for (int tile = 0; tile < place.tiles; ++tile) {
      const int n = place.lanes<T>(tile);
      const int64_t channel = place.channel<T>(tile), by_row = place.row * a.width + channel;
      for (int64_t s = 0; s < a.states; ++s)
        write_part<T>(partial.A + (place.row * a.states + s) * a.width + channel, n, x.d_rate[tile * a.states + s]);
      write_part<T>(partial.D + by_row, n, x.d_skip[tile]);
      write_part<T>(partial.bias + by_row, n, x.d_bias[tile]);
      if (has(a.timesteps)) write_part<T>(partial.step + by_row, n, x.d_step[tile]);
    }
    for (const nvsubq_tensor* t : {&a.d_u, &a.d_delta, &a.d_z}) clear_absent<T>(*t, place, steps);
    if (!has(a.timesteps)) clear_absent<T>(a.d_delta_a, place, steps);
    for (int64_t k = steps.count; k < steps.length; ++k) {
      const int64_t to = (place.row * a.length + steps.cell(k)) * chunks.count + place.chunk;
      for (int64_t n = 0; n < a.states; ++n) partial.B[to * a.states + n] = partial.C[to * a.states + n] = 0;
      if (has(a.timesteps)) partial.times[to] = 0;
    }
  }

  // Over chunks for a piece of a row, or over rows for a few channels.
  void add_up(int64_t task) {
    if (task < cell_sums()) {
      const int64_t pieces = (a.length + kSumCells - 1) / kSumCells, row = task / pieces;
      const int64_t begin = task % pieces * kSumCells;
      const int64_t end = begin + kSumCells < a.length ? begin + kSumCells : a.length;
      for (int64_t cell = begin; cell < end; ++cell) {
        const int64_t from = (row * a.length + cell) * chunks.count;
        sum_chunks(a.d_B, partial.B + from * a.states, row, cell);
        sum_chunks(a.d_C, partial.C + from * a.states, row, cell);
        if (!has(a.timesteps)) continue;
        T sum = 0;
        for (int64_t i = 0; i < chunks.count; ++i) sum += partial.times[from + i];
        write_one<T>(a.d_timesteps, at(a.d_timesteps, row, cell), sum);
      }
      return;
    }
    const int64_t begin = (task - cell_sums()) * kSumChannels;
    const int64_t end = begin + kSumChannels < a.width ? begin + kSumChannels : a.width;
    for (int64_t c = begin; c < end; ++c) {
      for (int64_t n = 0; n < a.states; ++n)
        sum_rows(a.d_A, at(a.d_A, c, n), partial.A + n * a.width + c, a.states * a.width);
      if (has(a.d_D)) sum_rows(a.d_D, at(a.d_D, c), partial.D + c, a.width);
      if (has(a.d_delta_bias)) sum_rows(a.d_delta_bias, at(a.d_delta_bias, c), partial.bias + c, a.width);
      if (has(a.timesteps)) sum_rows(a.d_delta_a, at(a.d_delta_a, c), partial.step + c, a.width);
    }
  }

  void sum_rows(const nvsubq_tensor& to, int64_t offset, const T* from, int64_t stride) {
    T sum = 0;
    for (int64_t row = 0; row < a.batch; ++row) sum += from[row * stride];
    write_one<T>(to, offset, sum);
  }

  // The gradient has as many groups as its tensor: one (stride 0 over groups) or G.
  void sum_chunks(const nvsubq_tensor& to, const T* from, int64_t row, int64_t cell) {
    const int64_t groups = to.stride[2] == 0 ? 1 : a.groups, each = chunks.count / groups;
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t n = 0; n < a.states; ++n) {
        T sum = 0;
        for (int64_t i = g * each; i < (g + 1) * each; ++i) sum += from[i * a.states + n];
        write_one<T>(to, at(to, row, cell, g, n), sum);
      }
  }
};

}  // namespace
#endif
