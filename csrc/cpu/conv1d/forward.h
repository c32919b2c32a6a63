// `causal_conv1d`, forward.
#ifndef NVSUBQ_CPU_CONV1D_FORWARD_H
#define NVSUBQ_CPU_CONV1D_FORWARD_H

#include "common.h"

namespace {

template <class T>
void ConvTask<T>::forward() {
  for_tiles([this] {
    is_usual() ? outputs_of_four() : outputs_of_any();
    clear(a.y);
    if (last() && has(a.final_state)) write_final();
  });
}

template <class T>
void ConvTask<T>::outputs_of_four() {
  const V w0 = s.weight[0], w1 = s.weight[1], w2 = s.weight[2], w3 = s.weight[3], b = bias();
  V x0 = input(begin - 3), x1 = input(begin - 2), x2 = input(begin - 1);
  const Lanes<T> to = lanes(a.y);
  const bool silu = a.flags & NVSUBQ_SILU;
#pragma GCC unroll 3
  for (int64_t k = begin; k < end; ++k) {
    expect(x, k, end);
    expect(to, k, end);
    const int64_t cell = steps.cell(k);
    const V x3 = x[cell];
    V y = b + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3;
    if (silu) y = y * sigmoid<T>(y);
    to.put(cell, y);
    x0 = x1, x1 = x2, x2 = x3;
  }
}

template <class T>
void ConvTask<T>::outputs_of_any() {
  read_inputs(begin - p.reach, end);
  const V b = bias();
  const Lanes<T> to = lanes(a.y);
  for (int64_t k = begin; k < end; ++k) {
    expect(to, k, end);
    V y = sum(s.x + (k - begin + p.reach), k, b);
    if (a.flags & NVSUBQ_SILU) y = y * sigmoid<T>(y);
    to.put(steps.cell(k), y);
  }
}

template <class T>
void ConvTask<T>::write_final() const {
  for (int64_t i = 0; i < a.state_width; ++i) {
    const int64_t step = steps.count - a.state_width + i;
    const V v = in_final(step) ? input(step) : V{};
    write_column<T>(a.final_state, at(a.final_state, row, channel, i), a.final_state.stride[1], n, v);
  }
}

template <class T>
void conv_forward(const Conv& a) {
  ConvPlan<T> plan(a);
  nvsubq::run_tasks(
      a.threads, plan.tasks(),
      [](void* p, int64_t task, int64_t slot) { ConvTask<T>(*static_cast<ConvPlan<T>*>(p), task, slot).forward(); },
      &plan);
}

}  // namespace
#endif
