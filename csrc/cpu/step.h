// What the steps of all cores share: phases of tasks, the convolution's step, small parts of rows.
//
// A step is a few phases; a phase is cut by chunks of its outputs, each for all rows of the batch, and how it is cut
// changes no sum, so neither threads nor the batch change a bit.
#ifndef NVSUBQ_CPU_STEP_H
#define NVSUBQ_CPU_STEP_H

#include "matvec.h"
#include "op.h"
#include "pool.h"

namespace {

constexpr int64_t kChunk = 64;               // channels of a task
constexpr int64_t kWorkOfOneThread = 200000;  // multiply-adds: less is done sooner than another thread wakes

// A double that comes as the integer of the same bits.
inline double real_of(int64_t bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t chunks_of(int64_t width, int64_t chunk = kChunk) { return (width + chunk - 1) / chunk; }

// Calls todo(task, slot) for each task, on several threads where the phase's work (multiply-adds) is worth it.
template <class F>
void run_phase(int64_t threads, int64_t tasks, int64_t work, F& todo) {
  nvsubq::run_tasks(work < kWorkOfOneThread ? 1 : threads, tasks,
                    [](void* f, int64_t task, int64_t slot) { (*static_cast<F*>(f))(task, slot); }, &todo);
}

// Lanes of the compute dtype in memory; the tail of a row goes by single elements.
template <class T>
inline Vec<T> load(const T* p, int64_t n) {
  Vec<T> v = {};
  if (n >= Simd<T>::W)
    memcpy(&v, p, sizeof v);
  else
    for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
template <class T>
inline void store(T* p, int64_t n, Vec<T> v) {
  if (n >= Simd<T>::W)
    memcpy(p, &v, sizeof v);
  else
    for (int i = 0; i < n; ++i) p[i] = v[i];
}

// Elements of a row, by whole vectors: the pad of the last one is written too, so memory must reach that far.
template <class T>
inline int64_t padded(int64_t n) {
  return (n + Simd<T>::W - 1) / Simd<T>::W * Simd<T>::W;
}

// y_c = bias_c + sum_j weight_cj seen_cj, where seen is the state moved on by one, with x as its newest.
template <class T, int K>
inline void sum_taps(const T* __restrict state, const T* __restrict weight, const T* __restrict x, int64_t channels,
                     int64_t taps_, T* __restrict y) {
  const int64_t taps = K ? K : taps_;
  for (int64_t c = 0; c < channels; ++c) {
    T sum = y[c] + weight[c * taps + taps - 1] * x[c];
    for (int64_t j = 0; j + 1 < taps; ++j) sum += weight[c * taps + j] * state[c * taps + j + 1];
    y[c] = sum;
  }
}

template <class E, int K>
inline void shift(E* __restrict state, const E* __restrict newest, int64_t channels, int64_t taps_) {
  const int64_t taps = K ? K : taps_;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t j = 0; j + 1 < taps; ++j) state[c * taps + j] = state[c * taps + j + 1];
    state[c * taps + taps - 1] = newest[c];
  }
}

template <class E>
inline void shift_any(const nvsubq_tensor& state, int64_t offset, const void* newest, int64_t channels, int64_t taps) {
  E* to = static_cast<E*>(state.data) + offset;
  if (taps == 4)
    shift<E, 4>(to, static_cast<const E*>(newest), channels, taps);
  else
    shift<E, 0>(to, static_cast<const E*>(newest), channels, taps);
}

// Rows of any dtype in the workspace.
template <class T>
void enter(const nvsubq_tensor& x, int64_t batch, int64_t width, T* to) {
  for (int64_t b = 0; b < batch; ++b) read_row<T>(x, at(x, b), width, to + b * width);
}

// y [B][out] = weight [out, in] x [B][in] + bias, all in the workspace but the weight.
template <class T>
void project(int64_t threads, const nvsubq_tensor& weight, const nvsubq_tensor* bias, int64_t batch, int64_t in,
             int64_t out, const T* x, T* y) {
  auto rows = [&](int64_t task, int64_t) {
    const int64_t first = task * kChunk, n = least(kChunk, out - first);
    matvec<T>(weight, in, first, n, {x, in, batch, in, y + first, out});
    if (!bias || !has(*bias)) return;
    T added[kChunk];
    read_row<T>(*bias, first, n, added);
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < n; ++i) y[b * out + first + i] += added[i];
  };
  run_phase(threads, chunks_of(out), batch * in * out, rows);
}

// The projection in, or x as it is where there is none.
template <class T>
void project_in(const nvsubq_tensor& weight, const nvsubq_tensor& bias, const nvsubq_tensor& x, int64_t threads,
                int64_t batch, int64_t model, int64_t width, T* copy, T* to) {
  if (!has(weight)) return enter(x, batch, width, to);
  enter(x, batch, model, copy);
  project(threads, weight, &bias, batch, model, width, copy, to);
}

// The projection out of v [B][width] to y, or v itself where there is none.
template <class T>
void project_out(const nvsubq_tensor& weight, const nvsubq_tensor& bias, const nvsubq_tensor& y, int64_t threads,
                 int64_t batch, int64_t model, int64_t width, const T* v, T* copy) {
  if (has(weight)) project(threads, weight, &bias, batch, width, model, v, copy);
  const T* from = has(weight) ? copy : v;
  const int64_t wide = has(weight) ? model : width;
  for (int64_t b = 0; b < batch; ++b) write_row<T>(y, at(y, b), wide, from + b * wide);
}

// The convolution of a step: state [B, D, K], dense, is moved on, and u [B][D] in the workspace is its output.
template <class T>
struct ConvStep {
  const T* x;        // of the first channel; rows are x_stride apart
  int64_t x_stride;
  const nvsubq_tensor &state, &weight, &bias;
  int64_t batch, width, taps;
  bool silu;
  T* u;

  int64_t tasks() const { return chunks_of(width); }
  int64_t work() const { return batch * width * (taps + 4); }

  struct Scratch {
    T *weight, *state;
    Scratch(Arena& arena, int64_t taps) {
      weight = arena.take<T>(kChunk * taps);
      state = arena.take<T>(kChunk * taps);
    }
  };

  // Channels of a task, for all rows.
  void run(int64_t task, const Scratch& scratch) const {
    const int64_t c = task * kChunk, n = least(kChunk, width - c);
    const T* taps_of = dense(weight, c * taps, n * taps, scratch.weight);
    T biases[kChunk] = {};
    if (has(bias)) read_row<T>(bias, c, n, biases);
    for (int64_t b = 0; b < batch; ++b) {
      T* y = u + b * width + c;
      const T* xs = x + b * x_stride + c;
      memcpy(y, biases, n * sizeof(T));
      const int64_t offset = (b * width + c) * taps;
      const T* seen = dense(state, offset, n * taps, scratch.state);
      if (taps == 4)
        sum_taps<T, 4>(seen, taps_of, xs, n, taps, y);
      else
        sum_taps<T, 0>(seen, taps_of, xs, n, taps, y);
      push(offset, xs, n);
      if (silu)
        for (int64_t i = 0; i < n; i += Simd<T>::W) {
          const Vec<T> v = load<T>(y + i, n - i);
          store<T>(y + i, n - i, v * sigmoid<T>(v));
        }
    }
  }

 private:
  // The elements themselves, or a copy of them in the compute dtype.
  static const T* dense(const nvsubq_tensor& t, int64_t offset, int64_t count, T* copy) {
    if (t.dtype == DtypeOf<T>::value) return static_cast<const T*>(t.data) + offset;
    read_row<T>(t, offset, count, copy);
    return copy;
  }

  void push(int64_t offset, const T* newest, int64_t n) const {
    double memory[kChunk];
    nvsubq_tensor stored = {memory, {1, 0, 0, 0}, state.dtype, NVSUBQ_PRESENT};
    write_row<T>(stored, 0, n, newest);
    if (state.dtype == NVSUBQ_F32)
      shift_any<float>(state, offset, memory, n, taps);
    else if (state.dtype == NVSUBQ_F64)
      shift_any<double>(state, offset, memory, n, taps);
    else
      shift_any<uint16_t>(state, offset, memory, n, taps);
  }
};

}  // namespace
#endif
