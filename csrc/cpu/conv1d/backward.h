// `causal_conv1d`, backward.
#ifndef NVSUBQ_CPU_CONV1D_BACKWARD_H
#define NVSUBQ_CPU_CONV1D_BACKWARD_H

#include "common.h"

namespace {

template <class T>
void ConvTask<T>::backward() {
  const bool usual = is_usual() && !has(a.d_final_state);
  for_tiles([this, usual] {
    const int64_t stop = end + p.reach < steps.count ? end + p.reach : steps.count;
    for (int64_t k = 0; k < a.taps; ++k) s.d_weight[k] = V{};
    const V d_bias = usual ? gradients_of_four(stop) : gradients_of_any(stop);
    clear(a.d_x);
    if (number == 0 && has(a.d_initial_state))
      for (int64_t i = 0; i < a.state_width; ++i)
        write_column<T>(a.d_initial_state, at(a.d_initial_state, row, channel, i), a.d_initial_state.stride[1], n,
                        gradient(i - a.state_width, stop));
    T* sums = p.partial(row, number) + channel;
    for (int64_t k = 0; k < a.taps; ++k) write_part<T>(sums + k * a.width, n, s.d_weight[k]);
    write_part<T>(sums + a.taps * a.width, n, d_bias);
  });
}

// Gradients of the inputs and taps, and the cotangents before SiLU; gives the gradient of the bias. That of an input
// is whole three steps later.
template <class T>
Vec<T> ConvTask<T>::gradients_of_four(int64_t stop) {
  const V w0 = s.weight[0], w1 = s.weight[1], w2 = s.weight[2], w3 = s.weight[3], b = bias();
  V x0 = input(begin - 3), x1 = input(begin - 2), x2 = input(begin - 1);
  V g0 = {}, g1 = {}, g2 = {};  // of the three steps before
  V d_bias = {}, d0 = {}, d1 = {}, d2 = {}, d3 = {};
  const Lanes<T> cotangents = lanes(a.d_y), to = lanes(a.d_x);
  const bool silu = a.flags & NVSUBQ_SILU;
  for (int64_t k = begin; k < stop; ++k) {
    expect(x, k, stop);
    expect(cotangents, k, stop);
    expect(to, k, stop);
    const int64_t cell = steps.cell(k);
    const V x3 = x[cell];
    V g = cotangents[cell];
    if (silu) {
      const V y = b + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3, gate = sigmoid<T>(y);
      g = g * gate * (T(1) + y * (T(1) - gate));
    }
    s.g[k - begin] = g;
    if (k < end) d_bias += g, d0 += g * x0, d1 += g * x1, d2 += g * x2, d3 += g * x3;
    if (k - 3 >= begin) to.put(steps.cell(k - 3), w0 * g + w1 * g2 + w2 * g1 + w3 * g0);
    g0 = g1, g1 = g2, g2 = g;
    x0 = x1, x1 = x2, x2 = x3;
  }
  for (int64_t k = stop - 3 > begin ? stop - 3 : begin; k < end; ++k) to.put(steps.cell(k), gradient(k, stop));
  s.d_weight[0] = d0, s.d_weight[1] = d1, s.d_weight[2] = d2, s.d_weight[3] = d3;
  return d_bias;
}

template <class T>
Vec<T> ConvTask<T>::gradients_of_any(int64_t stop) {
  const int64_t from = begin - p.reach;
  const V b = bias();
  V d_bias = {};
  const Lanes<T> cotangents = lanes(a.d_y), to = lanes(a.d_x);
  if (begin < stop) read_inputs(from, stop);
  for (int64_t k = begin; k < stop; ++k) {
    expect(cotangents, k, stop);
    V g = cotangents[steps.cell(k)];
    if (a.flags & NVSUBQ_SILU) {
      const V y = sum(s.x + (k - from), k, b), gate = sigmoid<T>(y);
      g = g * gate * (T(1) + y * (T(1) - gate));
    }
    s.g[k - begin] = g;
    if (k >= end) continue;
    d_bias += g;
    for (int64_t j = 0; j < a.taps; ++j) {
      const int64_t lag = (a.taps - 1 - j) * a.dilation;
      if (steps.segment && !steps.together(k, k - lag)) continue;
      s.d_weight[j] += g * s.x[k - from - lag];
    }
  }
  for (int64_t k = begin; k < end; ++k) {
    expect(to, k, end);
    to.put(steps.cell(k), gradient(k, stop));
  }
  return d_bias;
}

template <class T>
Vec<T> ConvTask<T>::from_final(int64_t step) const {
  const int64_t i = step - (steps.count - a.state_width);
  if (!has(a.d_final_state) || i < 0 || i >= a.state_width || !in_final(step)) return V{};
  return read_column<T>(a.d_final_state, at(a.d_final_state, row, channel, i), a.d_final_state.stride[1], n);
}

// The gradient of the input at a step: from the outputs of up to `reach` later steps; g[0] belongs to `begin`.
template <class T>
Vec<T> ConvTask<T>::gradient(int64_t step, int64_t stop) const {
  V sum = from_final(step);
  for (int64_t k = 0; k < a.taps; ++k) {
    const int64_t later = step + (a.taps - 1 - k) * a.dilation;
    if (later < begin || later >= stop) continue;
    if (steps.segment && !steps.together(step, later)) continue;
    sum = sum + s.weight[k] * s.g[later - begin];
  }
  return sum;
}

template <class T>
void conv_backward(const Conv& a) {
  ConvPlan<T> plan(a);
  nvsubq::run_tasks(
      a.threads, plan.tasks(),
      [](void* p, int64_t task, int64_t slot) { ConvTask<T>(*static_cast<ConvPlan<T>*>(p), task, slot).backward(); },
      &plan);
  for (int64_t k = 0; k <= a.taps; ++k) {
    if (k == a.taps && !has(a.d_bias)) break;
    for (int64_t c = 0; c < a.width; ++c) {
      T sum = 0;
      for (int64_t i = 0; i < a.batch * plan.pieces; ++i)
        sum += plan.partial(0, 0)[(i * (a.taps + 1) + k) * a.width + c];
      if (k == a.taps)
        write_one<T>(a.d_bias, at(a.d_bias, c), sum);
      else
        write_one<T>(a.d_weight, at(a.d_weight, c, k), sum);
    }
  }
}

}  // namespace
#endif
