// `rglru_scan`, forward.
#ifndef NVSUBQ_CPU_RGLRU_SCAN_FORWARD_H
#define NVSUBQ_CPU_RGLRU_SCAN_FORWARD_H

#include "common.h"

namespace {

template <class T>
struct RglruForward {
  using V = Vec<T>;
  const Rglru& a;
  Chunks chunks;
  int64_t slot_bytes;

  explicit RglruForward(const Rglru& args) : a(args), chunks(args) {
    Arena arena(nullptr);
    scratch(arena);
    slot_bytes = arena.bytes();
  }

  Channel<T>* scratch(Arena& arena) const { return arena.take<Channel<T>>((chunks.width + Simd<T>::W - 1) / Simd<T>::W); }
  int64_t bytes() const { return slot_bytes * a.threads; }
  void run() { for_places<T>(*this, a.batch, chunks, a.threads); }

  void walk(const Place<T>& place, int64_t slot) {
    Arena arena(static_cast<char*>(a.workspace) + slot * slot_bytes);
    Channel<T>* channels = scratch(arena);
    for (int tile = 0; tile < place.tiles; ++tile) {
      channels[tile].read(a, place, tile);
      channels[tile].state = read_state<T>(a.initial_state, place, tile);
    }
    const Steps steps = steps_of(a, place.row, place.block);
    for (int64_t k = 0; k < steps.length; ++k) {
      if (a.saved && k && k % kCells == 0)
        for (int tile = 0; tile < place.tiles; ++tile)
          write_part<T>(saved_states<T>(a, place, k / kCells, tile), place.lanes(tile), channels[tile].state);
      if (k >= steps.count) continue;
      if (steps.index && k + kAhead < steps.count) {
        const int64_t next = steps.cell(k + kAhead);
        for (const nvsubq_tensor* t : {&a.x, &a.r, &a.i, &a.gate})
          expect_row(*t, at(*t, place.row, next, place.first), place.channels);
        expect_row(a.y, at(a.y, place.row, next, place.first), place.channels, true);
      }
      one_cell(place, steps, k, channels);
    }
    for (int tile = 0; tile < place.tiles; ++tile) write_state<T>(a.final_state, place, tile, channels[tile].state);
    clear_absent<T>(a.y, place, steps);
  }

  void one_cell(const Place<T>& place, const Steps& steps, int64_t step, Channel<T>* channels) const {
    const int64_t row = place.row, cell = steps.cell(step), first = place.first;
    const int64_t x_at = at(a.x, row, cell, first), r_at = at(a.r, row, cell, first), i_at = at(a.i, row, cell, first);
    const int64_t gate_at = at(a.gate, row, cell, first), y_at = at(a.y, row, cell, first);
    const bool start = steps.starts(step), unscaled = is_unscaled(a, step, start);
    const bool gated = has(a.gate), by_tanh = a.flags & NVSUBQ_GELU_TANH;
    for (int tile = 0; tile < place.tiles; ++tile) {
      Channel<T>& here = channels[tile];
      const int n = place.lanes(tile), c = tile * Simd<T>::W;
      const Opened<T> o(read_lanes<T>(a.r, r_at + c, n) + here.r_bias, read_lanes<T>(a.i, i_at + c, n) + here.i_bias,
                        here.rate);
      V in = o.i.open * read_lanes<T>(a.x, x_at + c, n);
      if (!unscaled) in = in * o.norm;
      const V s = start ? in : o.decay * here.state + in;
      here.state = s;
      V y = s;
      if (gated) {
        const V g = read_lanes<T>(a.gate, gate_at + c, n);
        y = s * (by_tanh ? gelu_tanh<T>(g).value : gelu_erf<T>(g).value);
      }
      write_lanes<T>(a.y, y_at + c, n, y);
    }
  }
};

}  // namespace
#endif
