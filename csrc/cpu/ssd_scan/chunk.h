// `ssd_scan`: the cells of one chunk, as one head sees them, and what all heads of a group share.
#ifndef NVSUBQ_CPU_SSD_SCAN_CHUNK_H
#define NVSUBQ_CPU_SSD_SCAN_CHUNK_H

#include <initializer_list>

#include "common.h"

namespace {

// Of one row and one group, for the cells of a window by step: B, C [cells][N], the products C_i B_j [cells][T]
// (i by step, j within its chunk), and for a backward C again as one block [N][cells of the chunk] per chunk.
template <class T>
struct Shared {
  T *B, *C, *scores, *C_turned;

  static int64_t elements(const Ssd& a, int64_t cells, bool backward) {
    return cells * ((backward ? 3 : 2) * a.states + chunk_cells(a)) + kMaxChunk;
  }
  Shared(const Ssd& a, T* memory, int64_t cells) {
    B = memory;
    C = B + cells * a.states;
    scores = C + cells * a.states;
    C_turned = scores + cells * chunk_cells(a);
  }
};

// Fills what is shared for the chunks of one segment; `turned` is scratch [N][T].
template <class T>
inline void share(const Ssd& a, int64_t row, int64_t group, const Steps& steps, const Chunks& chunks, int64_t begin,
                  bool backward, const Shared<T>& to, T* turned) {
  const int64_t N = a.states, most = chunk_cells(a);
  for (int i = 0; i < chunks.count; ++i) {
    const Chunk& c = chunks.chunk[i];
    const int64_t first = c.begin - begin;
    T *B = to.B + first * N, *C = to.C + first * N;
    for (int t = 0; t < c.cells; ++t) {
      const int64_t cell = steps.cell(c.begin + t);
      read_elements<T>(a.B, at(a.B, row, cell, group), N, B + t * N);
      read_elements<T>(a.C, at(a.C, row, cell, group), N, C + t * N);
    }
    transpose<T>(B, N, c.cells, N, turned, most);
    multiply<T, Left::rows, Span::all>(
        {c.cells, N, whole_vectors<T>(c.cells), C, N, turned, most, to.scores + first * most, most, nullptr, 0});
    if (backward) transpose<T>(C, N, c.cells, N, to.C_turned + first * N, c.cells);
  }
}

// Of one head, by cell of the chunk. Rows have the padded width, matrices [cells][T] the columns of a chunk.
template <class T>
struct HeadChunk {
  T *raw, *step, *decay;  // dt with its bias, Δ, exp(Δ A)
  T* since;               // decay from before the chunk to a cell
  T* until;               // decay from a cell to the chunk's end
  T *x, *w;               // x, and Δ x
  T *between, *weights;   // decay from cell j to cell i >= j, and that times C_i B_j

  HeadChunk(Arena& arena, const Ssd& a) {
    const int64_t rows = kMaxChunk * padded_width<T>(a);
    for (T** p : {&raw, &step, &decay, &since, &until}) *p = arena.take<T>(kMaxChunk);
    for (T** p : {&x, &w}) *p = arena.take<T>(rows);
    for (T** p : {&between, &weights}) *p = arena.take<T>(kMaxChunk * kMaxChunk);
  }

  void read(const Ssd& a, const Place& place, const Steps& steps, const Chunk& chunk, const T* scores) {
    read_steps(a, place, steps, chunk);
    read_inputs(a, place, steps, chunk);
    constexpr int W = Simd<T>::W;
    const int64_t most = chunk_cells(a);
    for (int64_t j = 0; j < most; j += W) store<T>(between + j, Vec<T>{});
    between[0] = 1;
    since[0] = decay[0];
    // Products of decays, as a walk cell by cell would make them: no difference of sums that could cancel.
    for (int i = 0; i < chunk.cells; ++i) {
      T* row = between + i * most;
      if (i) {
        for (int64_t j = 0; j < most; j += W) store<T>(row + j, load<T>(row - most + j) * decay[i]);
        row[i] = 1;
        since[i] = since[i - 1] * decay[i];
      }
      for (int64_t j = 0; j < most; j += W)
        store<T>(weights + i * most + j, load<T>(row + j) * load<T>(scores + i * most + j));
    }
    memcpy(until, between + (chunk.cells - 1) * most, most * sizeof(T));
  }

  void read_steps(const Ssd& a, const Place& place, const Steps& steps, const Chunk& chunk) {
    constexpr int W = Simd<T>::W;
    const T bias = has(a.dt_bias) ? read_one<T>(a.dt_bias, at(a.dt_bias, place.head)) : T(0);
    const T rate = read_one<T>(a.A, at(a.A, place.head)) * T(kLog2E);
    const Vec<T> lowest = splat<T>(T(limit(a.lowest))), highest = splat<T>(T(limit(a.highest)));
    for (int t = 0; t < chunk.cells; ++t)
      raw[t] = read_one<T>(a.dt, at(a.dt, place.row, steps.cell(chunk.begin + t), place.head)) + bias;
    for (int64_t t = chunk.cells; t < whole_vectors<T>(chunk.cells) * W; ++t) raw[t] = 0;
    for (int64_t t = 0; t < chunk.cells; t += W) {
      Vec<T> d = load<T>(raw + t);
      if (a.flags & NVSUBQ_SOFTPLUS) d = softplus<T>(d);
      d = d < lowest ? lowest : d;
      d = d > highest ? highest : d;
      store<T>(step + t, d);
      store<T>(decay + t, exp2v(d * rate));
    }
  }

  void read_inputs(const Ssd& a, const Place& place, const Steps& steps, const Chunk& chunk) {
    constexpr int W = Simd<T>::W;
    const int64_t width = padded_width<T>(a);
    for (int t = 0; t < chunk.cells; ++t) {
      read_row<T>(a, a.x, place, steps.cell(chunk.begin + t), x + t * width);
      fetch_row(a, a.x, place, steps, chunk.begin + t + kMaxChunk);
      for (int64_t p = 0; p < width; p += W) store<T>(w + t * width + p, load<T>(x + t * width + p) * step[t]);
    }
  }

  static double limit(int64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
  }
};

// to[t] = factor[t] from[t], rows of the padded width.
template <class T>
inline void scale_rows(const T* from, const T* factor, int cells, int64_t width, T* to) {
  constexpr int W = Simd<T>::W;
  for (int t = 0; t < cells; ++t)
    for (int64_t p = 0; p < width; p += W) store<T>(to + t * width + p, load<T>(from + t * width + p) * factor[t]);
}

// y before skip and gate: what a chunk's cells read from the entering state and from each other.
template <class T>
inline void read_outputs(const Ssd& a, const Chunk& chunk, const HeadChunk<T>& x, const T* C, const T* state, T* y) {
  const int64_t width = padded_width<T>(a), vectors = width / Simd<T>::W, cells = chunk.cells;
  if (chunk.enters)
    multiply<T, Left::rows, Span::all>({cells, a.states, vectors, C, a.states, state, width, y, width, nullptr, 0});
  multiply<T, Left::rows, Span::upto>(
      {cells, cells, vectors, x.weights, chunk_cells(a), x.w, width, y, width, chunk.enters ? x.since : nullptr, 1});
}

// The state after a chunk in place of the one before it; `scratch` has a chunk's rows.
template <class T>
inline void advance(const Ssd& a, const Chunk& chunk, const HeadChunk<T>& x, const T* B, T* state, T* scratch) {
  const int64_t width = padded_width<T>(a);
  scale_rows<T>(x.w, x.until, chunk.cells, width, scratch);
  multiply<T, Left::columns, Span::all>({a.states, chunk.cells, width / Simd<T>::W, B, a.states, scratch, width, state,
                                         width, chunk.enters ? x.since + chunk.cells - 1 : nullptr, 0});
}

}  // namespace
#endif
