// `ssd_scan`, backward: one chunk of one head.
#ifndef NVSUBQ_CPU_SSD_SCAN_ADJOINT_H
#define NVSUBQ_CPU_SSD_SCAN_ADJOINT_H

#include "sums.h"

namespace {

template <class T>
struct AdjointScratch {
  HeadChunk<T> head;
  T *out, *since_out;          // cotangent of y before the gate, and that times the decay since the chunk began
  T *y, *d_w;                  // y before the gate; gradient of Δ x
  T *w_turned, *out_turned;    // [P][T]
  T *between;                  // out_i w_j times the decay between, [T][T]
  T *block;                    // [N][T]
  T *by_input, *by_output;     // by cell: what the leaving state does with its input, its output with the entering
  T *d_log;                    // gradient of Δ A
  T *row, *skip, *skip_sum = nullptr;
  T *states, *d_state;         // that enter the chunks of a segment; cotangent of the one that leaves the chunk
  T* entering[kMaxSegment];

  AdjointScratch(Arena& arena, const Ssd& a) : head(arena, a) {
    const int64_t width = padded_width<T>(a), rows = kMaxChunk * width;
    for (T** p : {&out, &since_out, &y, &d_w, &w_turned, &out_turned}) *p = arena.take<T>(rows);
    between = arena.take<T>(kMaxChunk * kMaxChunk);
    block = arena.take<T>(kMaxChunk * a.states);
    for (T** p : {&by_input, &by_output, &d_log}) *p = arena.take<T>(kMaxChunk);
    for (T** p : {&row, &skip}) *p = arena.take<T>(width);
    states = arena.take<T>((segment_cells(a) / chunk_cells(a) + 1) * state_elements<T>(a));
    d_state = arena.take<T>(state_elements<T>(a));
  }
};

template <class T>
struct Adjoint {
  static constexpr int W = Simd<T>::W;
  const Ssd& a;
  const Place& place;
  const Steps& steps;
  const Chunk& chunk;
  const Shared<T>& group;
  const HeadPart<T>& part;
  AdjointScratch<T>& x;

  int64_t cell(int t) const { return steps.cell(chunk.begin + t); }

  // `state` enters the chunk; `d_state` comes as the cotangent of the one that leaves and goes as that of `state`.
  void run(const T* state, T* d_state, T* d_rate, T* d_bias) {
    const int64_t N = a.states, most = chunk_cells(a), cells = chunk.cells;
    const int64_t width = padded_width<T>(a), vectors = width / W, columns = whole_vectors<T>(cells);
    HeadChunk<T>& h = x.head;
    h.read(a, place, steps, chunk, group.scores);
    read_cotangents(state);
    transpose<T>(h.w, width, cells, a.head_width, x.w_turned, most);
    multiply<T, Left::rows, Span::all>(
        {cells, a.head_width, columns, x.out, width, x.w_turned, most, x.between, most, nullptr, 0});
    for (int64_t i = 0; i < cells; ++i)
      for (int64_t j = 0; j < columns * W; j += W)
        store<T>(x.between + i * most + j, load<T>(x.between + i * most + j) * load<T>(h.between + i * most + j));
    for (int64_t i = 0; i < cells; ++i) memcpy(part.weights + i * most, x.between + i * most, most * sizeof(T));
    if (chunk.leaves) {
      multiply<T, Left::rows, Span::all>({cells, N, vectors, group.B, N, d_state, width, x.d_w, width, nullptr, 0});
      for (int64_t j = 0; j < cells; ++j)
        x.by_input[j] = h.until[j] * dot<T>(x.d_w + j * width, h.w + j * width, vectors);
      for (int64_t p = 0; p < a.head_width; ++p)
        for (int64_t j = 0; j < columns * W; j += W)
          store<T>(x.w_turned + p * most + j, load<T>(x.w_turned + p * most + j) * load<T>(h.until + j));
      over_lanes(d_state, x.w_turned);
      keep_block(part.B);
    }
    multiply<T, Left::columns, Span::from>({cells, cells, vectors, h.weights, most, x.out, width, x.d_w, width,
                                            chunk.leaves ? h.until : nullptr, 1});
    scale_rows<T>(x.out, h.since, chunk.cells, width, x.since_out);
    T whole = 0;  // of the decay of the entering state over all of the chunk
    if (chunk.enters) {
      transpose<T>(x.since_out, width, cells, a.head_width, x.out_turned, most);
      over_lanes(state, x.out_turned);
      keep_block(part.C);
      read_by_output();
      if (chunk.leaves) whole = h.since[cells - 1] * dot<T>(state, d_state, N * vectors);
      multiply<T, Left::columns, Span::all>({N, cells, vectors, group.C, N, x.since_out, width, d_state, width,
                                             chunk.leaves ? h.since + cells - 1 : nullptr, 0});
    }
    sum_decays(whole);
    write(d_rate, d_bias);
  }

  // Through the gate, for which y is made again.
  void read_cotangents(const T* state) {
    const int64_t width = padded_width<T>(a);
    if (has(a.z)) read_outputs<T>(a, chunk, x.head, group.C, state, x.y);
    for (int t = 0; t < chunk.cells; ++t) {
      T* out = x.out + t * width;
      read_row<T>(a, a.d_y, place, cell(t), out);
      fetch_row(a, a.d_y, place, steps, chunk.begin + t - kMaxChunk);
      fetch_row(a, a.x, place, steps, chunk.begin + t - segment_cells(a));
      if (!has(a.z)) continue;
      T *y = x.y + t * width, *z = x.row;
      read_row<T>(a, a.z, place, cell(t), z);
      fetch_row(a, a.z, place, steps, chunk.begin + t - kMaxChunk);
      for (int64_t p = 0; p < width; p += W) {
        Vec<T> full = load<T>(y + p);
        if (has(a.D)) full = full + load<T>(x.skip + p) * load<T>(x.head.x + t * width + p);
        const Vec<T> g = load<T>(out + p), at_z = load<T>(z + p), gate = sigmoid<T>(at_z);
        store<T>(y + p, g * full * gate * (T(1) + at_z * (T(1) - gate)));
        store<T>(out + p, g * (at_z * gate));
      }
      write_row<T>(a, a.d_z, place, cell(t), y);
    }
  }

  // block[n][t] = sum_p state[n][p] turned[p][t]
  void over_lanes(const T* state, const T* turned) {
    multiply<T, Left::rows, Span::all>({a.states, a.head_width, whole_vectors<T>(chunk.cells), state,
                                        padded_width<T>(a), turned, chunk_cells(a), x.block, chunk_cells(a), nullptr,
                                        0});
  }
  void keep_block(T* to) {
    const int64_t most = chunk_cells(a);
    if (chunk.cells == most) {
      memcpy(to, x.block, a.states * most * sizeof(T));
      return;
    }
    for (int64_t n = 0; n < a.states; ++n) memcpy(to + n * chunk.cells, x.block + n * most, chunk.cells * sizeof(T));
  }

  void read_by_output() {
    const int64_t most = chunk_cells(a);
    for (int64_t t = 0; t < chunk.cells; t += W) {
      Vec<T> sum = {};
      for (int64_t n = 0; n < a.states; ++n)
        sum = sum + load<T>(x.block + n * most + t) * load<T>(group.C_turned + n * chunk.cells + t);
      store<T>(x.by_output + t, sum);
    }
  }

  // The gradient of cell t's Δ A: all that passes over t, from a cell j < t or the entering state to a cell i >= t
  // or the leaving state. Sums of these alone: differences of sums over all pairs would cancel.
  void sum_decays(T whole) {
    const int64_t most = chunk_cells(a), columns = whole_vectors<T>(chunk.cells);
    constexpr int kColumns = kMaxChunk / W;
    using I = typename Simd<T>::I;
    I number;
    for (int l = 0; l < W; ++l) number[l] = l;
    Vec<T> below[kColumns];  // by j, over i >= t
    for (int64_t v = 0; v < columns; ++v) below[v] = chunk.leaves ? load<T>(x.by_input + v * W) : Vec<T>{};
    T outputs = whole;
    for (int t = chunk.cells - 1; t >= 0; --t) {
      Vec<T> sum = {};
      for (int64_t v = 0; v * W <= t; ++v) {
        const auto earlier = number + int(v * W) < t;
        const int64_t at = t * most + v * W;
        below[v] = below[v] + (earlier ? load<T>(x.between + at) * load<T>(group.scores + at) : Vec<T>{});
        sum = sum + (earlier ? below[v] : Vec<T>{});
      }
      if (chunk.enters) outputs += x.by_output[t];
      x.d_log[t] = outputs + sum_lanes<T>(sum);
    }
  }

  void write(T* d_rate, T* d_bias) {
    const int64_t width = padded_width<T>(a), vectors = width / W;
    const HeadChunk<T>& h = x.head;
    const T rate = read_one<T>(a.A, at(a.A, place.head));
    const T lowest = T(HeadChunk<T>::limit(a.lowest)), highest = T(HeadChunk<T>::limit(a.highest));
    const bool soft = a.flags & NVSUBQ_SOFTPLUS;
    T slope[kMaxChunk];
    for (int t = 0; t < chunk.cells; t += W) {
      const Vec<T> raw = load<T>(h.raw + t);
      const Vec<T> s = soft ? (raw > T(20) ? splat<T>(T(1)) : sigmoid<T>(raw)) : splat<T>(T(1));
      const Vec<T> d = soft ? softplus<T>(raw) : raw;
      const auto inside = (d >= lowest) & (d <= highest);
      store<T>(slope + t, inside ? s : Vec<T>{});
    }
    for (int t = 0; t < chunk.cells; ++t) {
      const T *in = h.x + t * width, *out = x.out + t * width;
      T* d_w = x.d_w + t * width;
      const T by_step = rate * x.d_log[t] + dot<T>(in, d_w, vectors);
      *d_rate += h.step[t] * x.d_log[t];
      const T d_raw = slope[t] * by_step;
      *d_bias += d_raw;
      write_one<T>(a.d_dt, at(a.d_dt, place.row, cell(t), place.head), d_raw);
      for (int64_t p = 0; p < width; p += W) {
        Vec<T> d_x = load<T>(d_w + p) * h.step[t];
        if (has(a.D)) {
          d_x = d_x + load<T>(x.skip + p) * load<T>(out + p);
          store<T>(x.skip_sum + p, load<T>(x.skip_sum + p) + load<T>(out + p) * load<T>(in + p));
        }
        store<T>(d_w + p, d_x);
      }
      write_row<T>(a, a.d_x, place, cell(t), d_w);
    }
  }
};

}  // namespace
#endif
