// `linear_scan`, forward.
#ifndef NVSUBQ_CPU_LINEAR_SCAN_FORWARD_H
#define NVSUBQ_CPU_LINEAR_SCAN_FORWARD_H

#include "common.h"

namespace {

template <class T, bool CX, Mode MODE>
struct LinearForward {
  using V = Vec<T>;
  using N = Number<T, CX>;
  const Linear& a;
  Chunks chunks;
  int64_t slot_bytes;

  // Of one tile: the decay or rate and the input's factor where they are fixed, and the state.
  struct Channel {
    N rate, state;
    V scale;
  };

  explicit LinearForward(const Linear& args) : a(args), chunks(args) {
    Arena arena(nullptr);
    scratch(arena);
    slot_bytes = arena.bytes();
  }

  Channel* scratch(Arena& arena) const { return arena.take<Channel>((chunks.width + Simd<T>::W - 1) / Simd<T>::W); }
  int64_t bytes() const { return slot_bytes * a.threads; }
  void run() { for_places<T>(*this, a.batch, chunks, a.threads); }

  void walk(const Place<T>& place, int64_t slot) {
    Arena arena(static_cast<char*>(a.workspace) + slot * slot_bytes);
    Channel* channels = scratch(arena);
    for (int tile = 0; tile < place.tiles; ++tile) {
      Channel& here = channels[tile];
      here.state = read_state<T, CX>(a.initial_state, place, tile);
      if (MODE == kVarying) continue;
      here.rate = read_rate<T, CX>(a.a, place, tile);
      if (MODE == kFixed) here.scale = bounded_root<T>(one_minus_square<T>(here.rate)).value;
    }
    const Steps steps = steps_of(a, place.row, place.block);
    for (int64_t k = 0; k < steps.length; ++k) {
      if (a.saved && k && k % kCells == 0)
        for (int tile = 0; tile < place.tiles; ++tile)
          for (int i = 0; i < (CX ? 2 : 1); ++i)
            write_part<T>(saved_states<T, CX>(a, place, k / kCells, i, tile), place.lanes(tile),
                          part(channels[tile].state, i));
      if (k >= steps.count) continue;
      if (steps.index && k + kAhead < steps.count) expect(place, steps.cell(k + kAhead));
      one_cell(place, steps, k, channels);
    }
    for (int tile = 0; tile < place.tiles; ++tile) write_state<T>(a.final_state, place, tile, channels[tile].state);
    clear_absent<T>(a.y, place, steps);
  }

  void expect(const Place<T>& place, int64_t cell) const {
    expect_row(a.b, at(a.b, place.row, cell, place.first), place.channels);
    expect_row(a.y, at(a.y, place.row, cell, place.first), place.channels, true);
    if (MODE == kVarying) expect_row(a.a, at(a.a, place.row, cell, place.first), place.channels);
  }

  void one_cell(const Place<T>& place, const Steps& steps, int64_t step, Channel* channels) const {
    const int64_t row = place.row, cell = steps.cell(step), first = place.first;
    const int64_t b_at = at(a.b, row, cell, first), y_at = at(a.y, row, cell, first);
    const int64_t a_at = MODE == kVarying ? at(a.a, row, cell, first) : 0;
    const int64_t dt_at = MODE == kTimed ? time_at(a, row, cell, first) : 0;
    const bool start = steps.starts(step), rooted = a.input_scale == NVSUBQ_SCALE_SQRT;
    for (int tile = 0; tile < place.tiles; ++tile) {
      Channel& here = channels[tile];
      const int n = place.lanes(tile), c = tile * Simd<T>::W;
      N decay = here.rate, in = read_numbers<T, CX>(a.b, b_at + c, n);
      if (MODE == kTimed) {
        const V dt = read_time<T>(a, dt_at, c, n);
        const Timed<T, CX> timed(a, dt, here.rate, Timed<T, CX>::power_of(a, dt, here.rate));
        decay = timed.decay;
        if (a.input_scale != NVSUBQ_SCALE_NONE) in = timed.scale * in;
      } else {
        if (MODE == kVarying) decay = read_numbers<T, CX>(a.a, a_at + c, n);
        if (rooted) in = in * (MODE == kFixed ? here.scale : bounded_root<T>(one_minus_square<T>(decay)).value);
      }
      here.state = start ? in : decay * here.state + in;
      write_numbers(a.y, y_at + c, n, here.state);
    }
  }
};

}  // namespace
#endif
