// `selective_scan`, forward, with the loops over states of `fused.h` or `general.h`.
#ifndef NVSUBQ_CPU_SELECTIVE_SCAN_FORWARD_H
#define NVSUBQ_CPU_SELECTIVE_SCAN_FORWARD_H

#include "coefficients.h"

namespace {

template <class Loops>
struct Forward {
  using T = typename Loops::T;
  using V = Vec<T>;
  static constexpr bool CX = Loops::CX;
  using Num = Number<T, CX>;
  const Selective& a;
  Chunks chunks;
  int64_t slot_bytes;

  struct TileOutput {
    Lanes<T> z, y;
    V skip;
  };

  struct Scratch {
    Coefficients<T, CX> given;
    Tile<T>* tile;
    TileReader<T>* reader;
    TileOutput* output;
    Num* state;
    V* out;  // [tiles][kMaxCells]
    typename Loops::Memory* memory;

    Scratch(Arena& arena, const Selective& a, const Chunks& chunks) : given(arena, a, chunks.tiles<T>()) {
      const int64_t tiles = chunks.tiles<T>();
      tile = arena.take<Tile<T>>(tiles);
      reader = arena.take<TileReader<T>>(tiles);
      output = arena.take<TileOutput>(tiles);
      for (int64_t i = 0; i < tiles; ++i) {
        Tile<T> one;
        one.take(arena);
        if (arena.base) tile[i] = one;
      }
      state = arena.take<Num>(tiles * a.states);
      out = arena.take<V>(tiles * kMaxCells);
      memory = arena.take<typename Loops::Memory>(1);
    }
  };

  explicit Forward(const Selective& args) : a(args), chunks(args) {
    Arena arena(nullptr);
    Scratch(arena, a, chunks);
    slot_bytes = arena.bytes();
  }

  int64_t bytes() const { return slot_bytes * a.threads; }

  void run() {
    nvsubq::run_tasks(
        a.threads, a.batch * chunks.count,
        [](void* self, int64_t task, int64_t slot) { static_cast<Forward*>(self)->one(task, slot); }, this);
  }

 private:
  void one(int64_t task, int64_t slot) {
    const Place place = Place::of<T>(chunks, task);
    const Steps steps = steps_at(a, chunks, place);
    Arena arena(static_cast<char*>(a.workspace) + slot * slot_bytes);
    Scratch x(arena, a, chunks);
    x.given.read_fixed(a, place, Loops::rate_unit);
    read_by_channel<T, CX>(a.initial_state, place.row, place, a.states, x.state);
    for (int tile = 0; tile < place.tiles; ++tile) {
      x.reader[tile].aim(a, place, tile, &x.tile[tile]);
      TileOutput& to = x.output[tile];
      to.z = place.of<T>(a.z, tile), to.y = place.of<T>(a.y, tile), to.skip = V{};
      if (has(a.D)) to.skip = read_lanes<T>(a.D, at(a.D, place.channel<T>(tile)), place.lanes<T>(tile));
    }
    const int64_t most = segment_cells(a.states), count = segments(a.length, a.states);
    Segment segment, next;
    Ahead ahead;
    next.read(steps, 0, most);
    for (int64_t i = 0; i < count; ++i) {
      segment = next;
      next.read(steps, (i + 1) * most, most);
      x.given.expect(a, place, next);
      ahead.aim<T>({&a.u, &a.delta, &a.z, &a.y}, place, next);
      if (segment.cells) x.given.read_segment(a, place, segment);
      if (segment.cells) read_tiles<T>(a, place, segment, x.reader, x.tile);
      for (int tile = 0; tile < place.tiles; ++tile) {
        Num* state = x.state + tile * a.states;
        if (i && a.saved) SavedStates<T, CX>(a, place, i, tile).write(state);
        if (!segment.cells) continue;
        V* out = x.out + tile * kMaxCells;
        for (int t = 0; t < segment.cells; ++t) out[t] = V{};
        Loops::advance(a.discretization, x.tile[tile], segment, x.given, tile, state, out, ahead, *x.memory);
      }
      write_outputs(place, segment, x);
    }
    if (has(a.final_state)) write_state<T, CX>(a.final_state, place, a.states, x.state);
    clear_absent<T>(a.y, place, steps);
  }

  void write_outputs(const Place& place, const Segment& segment, const Scratch& x) const {
    for (int t = 0; t < segment.cells; ++t)
      for (int tile = 0; tile < place.tiles; ++tile) {
        const TileOutput& to = x.output[tile];
        const V out = x.out[tile * kMaxCells + t];
        V y = CX ? out * T(2) : out;
        if (has(a.D)) y = y + to.skip * x.tile[tile].u[t];
        if (to.z.there) {
          const V z = to.z[segment.cell[t]];
          y = y * (z * sigmoid<T>(z));
        }
        to.y.put(segment.cell[t], y);
      }
  }
};

}  // namespace
#endif
