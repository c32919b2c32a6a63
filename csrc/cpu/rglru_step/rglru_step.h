// One token of the RG-LRU: projections in, convolution, both gates, recurrence and GELU gate, projection out.
#ifndef NVSUBQ_CPU_RGLRU_STEP_H
#define NVSUBQ_CPU_RGLRU_STEP_H

#include "../simd_math.h"
#include "../step.h"

namespace {

using RGLRUArgs = nvsubq_rglru_step_args;

template <class T>
struct RGLRUStep {
  using V = Vec<T>;
  static constexpr int W = Simd<T>::W;
  const RGLRUArgs& a;
  T *outer, *x, *gate, *u, *y;  // [B][M], [B][D] each
  int64_t shared_bytes, slot_bytes;

  struct Scratch {
    typename ConvStep<T>::Scratch conv;
    T *r, *i;  // logits [B][kChunk]
    Scratch(Arena& arena, const RGLRUArgs& a) : conv(arena, a.taps) {
      r = arena.take<T>(a.batch * kChunk);
      i = arena.take<T>(a.batch * kChunk);
    }
  };

  explicit RGLRUStep(const RGLRUArgs& args) : a(args) {
    Arena shared(a.workspace), slot(nullptr);
    outer = shared.take<T>(a.batch * a.model);
    x = shared.take<T>(a.batch * a.width);
    gate = shared.take<T>(a.batch * a.width);
    u = shared.take<T>(a.batch * a.width);
    y = shared.take<T>(a.batch * a.width);
    shared_bytes = shared.bytes();
    Scratch(slot, a);
    slot_bytes = slot.bytes();
  }

  int64_t bytes() const { return shared_bytes + slot_bytes * a.threads; }
  Scratch scratch(int64_t slot) const {
    Arena arena(static_cast<char*>(a.workspace) + shared_bytes + slot * slot_bytes);
    return Scratch(arena, a);
  }

  void run() const {
    const nvsubq_tensor& gate_in = has(a.gate_weight) ? a.x : a.gate;
    project_in(a.gate_weight, a.gate_bias, gate_in, a.threads, a.batch, a.model, a.width, outer, gate);
    project_in(a.in_weight, a.in_bias, a.x, a.threads, a.batch, a.model, a.width, outer, x);
    const ConvStep<T> conv = {x, a.width, a.conv_state, a.conv_weight, a.conv_bias, a.batch, a.width, a.taps, false, u};
    auto convolve = [&](int64_t task, int64_t slot) { conv.run(task, scratch(slot).conv); };
    run_phase(a.threads, conv.tasks(), conv.work(), convolve);
    auto recur = [&](int64_t task, int64_t slot) { recur_chunk(task * kChunk, scratch(slot)); };
    run_phase(a.threads, chunks_of(a.width), 2 * a.batch * a.width * a.width, recur);
    project_out(a.out_weight, a.out_bias, a.y, a.threads, a.batch, a.model, a.width, y, outer);
  }

  // The channels from c on, for all rows.
  void recur_chunk(int64_t c, const Scratch& s) const {
    const int64_t n = least(kChunk, a.width - c);
    matvec<T>(a.r_weight, a.width, c, n, {u, a.width, a.batch, a.width, s.r, kChunk});
    matvec<T>(a.i_weight, a.width, c, n, {u, a.width, a.batch, a.width, s.i, kChunk});
    T r_bias[kChunk] = {}, i_bias[kChunk] = {}, log_a[kChunk] = {};
    read_row<T>(a.r_bias, c, n, r_bias);
    read_row<T>(a.i_bias, c, n, i_bias);
    read_row<T>(a.a_log, c, n, log_a);
    for (int64_t k = 0; k < n; k += W) store<T>(log_a + k, W, T(real_of(a.c)) * log_sigmoid<T>(load<T>(log_a + k, W)));
    for (int64_t b = 0; b < a.batch; ++b) {
      T* state = static_cast<T*>(a.state.data) + b * a.width + c;
      T* to = y + b * a.width + c;
      const T* g = gate + b * a.width + c;
      for (int64_t k = 0; k < n; k += W) {
        const V r = sigmoid<T>(load<T>(s.r + b * kChunk + k, n - k) + load<T>(r_bias + k, W));
        const V i = sigmoid<T>(load<T>(s.i + b * kChunk + k, n - k) + load<T>(i_bias + k, W));
        const V exponent = r * load<T>(log_a + k, W);
        const V rest = -expm1v<T>(T(2) * exponent);  // 1 - a^2 with all its digits where a is close to 1
        const V norm = sqrtv(rest > T(0) ? rest : V{});
        const V now = expv<T>(exponent) * load<T>(state + k, n - k) + norm * i * load<T>(u + b * a.width + c + k, n - k);
        store<T>(state + k, n - k, now);
        store<T>(to + k, n - k, now * gelu_erf<T>(load<T>(g + k, n - k)).value);
      }
    }
  }
};

}  // namespace
#endif
