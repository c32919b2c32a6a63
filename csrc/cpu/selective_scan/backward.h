// `selective_scan`, backward: segments from the last to the first; the states of one are made again from the one
// kept at its border.
#ifndef NVSUBQ_CPU_SELECTIVE_SCAN_BACKWARD_H
#define NVSUBQ_CPU_SELECTIVE_SCAN_BACKWARD_H

#include <new>

#include "adjoints.h"

namespace {

template <class Loops>
struct Backward {
  using T = typename Loops::T;
  using V = Vec<T>;
  static constexpr bool CX = Loops::CX;
  using Scratch = Adjoints<Loops>;
  const Selective& a;
  Chunks chunks;
  Packs packs;
  Partial<T> partial;
  int64_t slot_bytes, partial_bytes;

  explicit Backward(const Selective& args)
      : a(args), chunks(args), packs(args, chunks), partial(measured(args, chunks, &partial_bytes)) {
    Arena slot(nullptr);
    const Segment segment = {};
    const SegmentMemory<Loops> shared(slot, a, chunks.tiles<T>());
    slot.take<Scratch>(packs.each);
    for (int64_t c = 0; c < packs.each; ++c) Scratch(slot, a, chunks.tiles<T>(), Place{}, segment, partial, shared);
    slot_bytes = slot.bytes();
    Arena arena(a.workspace);
    partial = Partial<T>(arena, a, chunks);
  }
  static Partial<T> measured(const Selective& args, const Chunks& chunks, int64_t* bytes) {
    Arena arena(nullptr);
    const Partial<T> partial(arena, args, chunks);
    *bytes = arena.bytes();
    return partial;
  }

  int64_t bytes() const { return partial_bytes + slot_bytes * a.threads; }

  void run() {
    nvsubq::run_tasks(
        a.threads, a.batch * chunks.groups * packs.per_group,
        [](void* self, int64_t task, int64_t slot) { static_cast<Backward*>(self)->one(task, slot); }, this);
    AddUp<T> sums{a, partial, chunks.groups};
    nvsubq::run_tasks(
        a.threads, sums.tasks(),
        [](void* self, int64_t task, int64_t) { static_cast<AddUp<T>*>(self)->one(task); }, &sums);
  }

 private:
  void one(int64_t task, int64_t slot) {
    const Pack pack(chunks, packs, task);
    Segment segment, next;
    Arena arena(static_cast<char*>(a.workspace) + partial_bytes + slot * slot_bytes);
    const SegmentMemory<Loops> shared(arena, a, chunks.tiles<T>());
    Scratch* const x = arena.take<Scratch>(packs.each);
    for (int64_t c = 0; c < pack.count; ++c) {
      const Place place = Place::of<T>(chunks, pack.first + c);
      start(*new (x + c) Scratch(arena, a, chunks.tiles<T>(), place, segment, partial, shared));
      x[c].given.share(x[0].given);  // what is by cell is read once for all of them
    }
    const Place& first = x[0].place;
    const Steps steps = steps_at(a, chunks, first);
    const int64_t most = segment_cells(a.states), last = segments(a.length, a.states) - 1;
    next.read(steps, last * most, most);
    for (int64_t i = last; i >= 0; --i) {
      segment = next;
      next.read(steps, i ? (i - 1) * most : a.length, most);
      if (!segment.cells) continue;
      x[0].given.expect(a, first, next);
      x[0].given.read_segment(a, first, segment);
      for (int64_t c = 0; c < pack.count; ++c) {
        const bool turns = c + 1 == pack.count;  // the next chunk is the first one's segment before this
        x[c].ahead.template aim<T>({&a.u, &a.delta, &a.z, &a.d_y, &a.d_u, &a.d_delta, &a.d_z},
                                   x[turns ? 0 : c + 1].place, turns ? next : segment);
        step_back(x[c], i);
      }
    }
    for (int64_t c = 0; c < pack.count; ++c) finish(x[c].place, steps, x[c]);
  }

  void start(Scratch& x) const {
    x.given.read_fixed(a, x.place, Loops::rate_unit);
    read_by_channel<T, CX>(a.d_final_state, x.place.row, x.place, a.states, x.arriving);
    x.start();
    for (int tile = 0; tile < x.place.tiles; ++tile) x.aim(a, tile);
  }

  void step_back(Scratch& x, int64_t i) const {
    const Place& place = x.place;
    const Segment& segment = x.segment;
    if (!i) read_by_channel<T, CX>(a.initial_state, place.row, place, a.states, x.entering);
    for (int tile = 0; tile < place.tiles; ++tile) {
      if (i) SavedStates<T, CX>(a, place, i, tile).read(x.entering + tile * a.states);
    }
    read_tiles<T>(a, place, segment, x.reader, x.tile);
    read_cotangents(place, segment, x);
    Loops::gradients(x);
    for (int t = 0; t < segment.cells; ++t) x.times[t] = 0;
    for (int tile = 0; tile < place.tiles; ++tile) write_tile(place, segment, tile, x);
    if (has(a.timesteps))
      for (int t = 0; t < segment.cells; ++t)
        partial.times[(place.row * a.length + segment.cell[t]) * chunks.count + place.chunk] = x.times[t];
  }

  void read_cotangents(const Place& place, const Segment& segment, const Scratch& x) const {
    for (int t = 0; t < segment.cells; ++t)
      for (int tile = 0; tile < place.tiles; ++tile) {
        const TileAdjoints<T>& g = x.grad[tile];
        V out = x.rows[tile].d_y[segment.cell[t]];
        if (has(a.z)) {
          const V z = x.rows[tile].z[segment.cell[t]];
          out = out * (z * sigmoid<T>(z));
        }
        g.out[t] = out;
        g.y[t] = g.by_w[t] = g.by_d[t] = g.by_da[t] = V{};
      }
  }

  void write_tile(const Place& place, const Segment& segment, int tile, Scratch& x) const {
    const int n = place.lanes<T>(tile);
    const int64_t channel = place.channel<T>(tile);
    const Tile<T>& in = x.tile[tile];
    const TileAdjoints<T>& g = x.grad[tile];
    const bool scaled = has_scale(a.discretization), by_delta = scales_input(a.discretization);
    const bool soft = a.flags & NVSUBQ_SOFTPLUS;
    const V skip = has(a.D) ? read_lanes<T>(a.D, at(a.D, channel), n) : V{};
    const Lanes<T> d_u = place.of<T>(a.d_u, tile), d_delta = place.of<T>(a.d_delta, tile);
    V d_skip = x.d_skip[tile], d_bias = x.d_bias[tile];
    for (int t = 0; t < segment.cells; ++t) {
      const int64_t cell = segment.cell[t];
      const V out = g.out[t], by_da = g.by_da[t] * Loops::slope_unit;
      g.by_da[t] = by_da;
      V du = by_delta ? in.d[t] * g.by_w[t] : g.by_w[t];
      if (has(a.D)) du = du + skip * out;
      d_u.put(cell, du);
      d_skip += out * in.u[t];
      V dd = scaled ? in.u[t] * g.by_d[t] : by_delta ? in.u[t] * g.by_w[t] : V{};
      if (in.same) dd = dd + by_da;
      if (soft) dd = in.raw[t] > T(20) ? dd : dd * sigmoid<T>(in.raw[t]);
      d_delta.put(cell, dd);
      d_bias += dd;
    }
    x.d_skip[tile] = d_skip, x.d_bias[tile] = d_bias;
    if (!in.same) write_decays(place, segment, tile, x);
    if (has(a.z)) write_gates(place, segment, tile, skip, x);
  }

  void write_decays(const Place& place, const Segment& segment, int tile, Scratch& x) const {
    const V* by_da = x.grad[tile].by_da;
    if (!has(a.timesteps)) {
      const Lanes<T> d_delta_a = place.of<T>(a.d_delta_a, tile);
      for (int t = 0; t < segment.cells; ++t) d_delta_a.put(segment.cell[t], by_da[t]);
      return;
    }
    const V rate = read_lanes<T>(a.delta_a, at(a.delta_a, place.channel<T>(tile)), place.lanes<T>(tile));
    for (int t = 0; t < segment.cells; ++t) {
      x.d_step[tile] += by_da[t] * read_one<T>(a.timesteps, at(a.timesteps, place.row, segment.cell[t]));
      x.times[t] += sum_lanes<T>(by_da[t] * rate);
    }
  }

  void write_gates(const Place& place, const Segment& segment, int tile, V skip, const Scratch& x) const {
    const Tile<T>& in = x.tile[tile];
    const TileAdjoints<T>& g = x.grad[tile];
    const Lanes<T> gates = place.of<T>(a.z, tile), cotangents = place.of<T>(a.d_y, tile), to = place.of<T>(a.d_z, tile);
    for (int t = 0; t < segment.cells; ++t) {
      const int64_t cell = segment.cell[t];
      const V z = gates[cell], gate = sigmoid<T>(z);
      V y = CX ? g.y[t] * T(2) : g.y[t];
      if (has(a.D)) y = y + skip * in.u[t];
      to.put(cell, cotangents[cell] * y * gate * (T(1) + z * (T(1) - gate)));
    }
  }

  void finish(const Place& place, const Steps& steps, Scratch& x) const {
    if (has(a.d_initial_state)) write_state<T, CX>(a.d_initial_state, place, a.states, x.arriving);
    x.finish();
    for (int tile = 0; tile < place.tiles; ++tile) {
      const int n = place.lanes<T>(tile);
      const int64_t by_row = place.row * a.width + place.channel<T>(tile);
      write_part<T>(partial.D + by_row, n, x.d_skip[tile]);
      write_part<T>(partial.bias + by_row, n, x.d_bias[tile]);
      if (has(a.timesteps)) write_part<T>(partial.step + by_row, n, x.d_step[tile]);
    }
    for (const nvsubq_tensor* t : {&a.d_u, &a.d_delta, &a.d_z}) clear_absent<T>(*t, place, steps);
    if (!has(a.timesteps)) clear_absent<T>(a.d_delta_a, place, steps);
    for (int64_t k = steps.count; k < steps.length; ++k) {
      const int64_t cell = steps.cell(k);
      for (const auto* sums : {&partial.B, &partial.C, &partial.gate})
        memset(partial.of(*sums, place.row, cell, place.chunk, 0), 0, a.states * sums->parts * sizeof(T));
      if (has(a.timesteps)) partial.times[(place.row * a.length + cell) * chunks.count + place.chunk] = 0;
    }
  }
};

}  // namespace
#endif
