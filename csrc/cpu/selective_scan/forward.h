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
  Packs packs;
  int64_t slot_bytes;

  struct TileOutput {
    Lanes<T> z, y;
    V skip;
  };

  // A chunk of channels: where they are, and their states.
  struct Chunk {
    Place place;
    Coefficients<T, CX> given;
    TileReader<T>* reader;
    TileOutput* output;
    Num* state;

    Chunk(Arena& arena, const Selective& a, int64_t tiles)
        : given(arena, a, tiles),
          reader(arena.take<TileReader<T>>(tiles)),
          output(arena.take<TileOutput>(tiles)),
          state(arena.take<Num>(tiles * a.states)) {}
  };

  struct Scratch {
    Chunk* chunk;
    Tile<T>* tile;
    V* out;  // [tiles][kMaxCells]
    typename Loops::Memory* memory;

    Scratch(Arena& arena, const Selective& a, int64_t chunks, int64_t tiles) {
      chunk = arena.take<Chunk>(chunks);
      for (int64_t i = 0; i < chunks; ++i) {
        const Chunk one(arena, a, tiles);
        if (arena.base) chunk[i] = one;
      }
      tile = arena.take<Tile<T>>(tiles);
      for (int64_t i = 0; i < tiles; ++i) {
        Tile<T> one;
        one.take(arena);
        if (arena.base) tile[i] = one;
      }
      out = arena.take<V>(tiles * kMaxCells);
      memory = arena.take<typename Loops::Memory>(1);
    }
  };

  explicit Forward(const Selective& args) : a(args), chunks(args), packs(args, chunks) {
    Arena arena(nullptr);
    Scratch(arena, a, packs.each, chunks.tiles<T>());
    slot_bytes = arena.bytes();
  }

  int64_t bytes() const { return slot_bytes * a.threads; }

  void run() {
    nvsubq::run_tasks(
        a.threads, a.batch * chunks.groups * packs.per_group,
        [](void* self, int64_t task, int64_t slot) { static_cast<Forward*>(self)->one(task, slot); }, this);
  }

 private:
  void one(int64_t task, int64_t slot) {
    Arena arena(static_cast<char*>(a.workspace) + slot * slot_bytes);
    Scratch x(arena, a, packs.each, chunks.tiles<T>());
    const Pack pack(chunks, packs, task);
    for (int64_t c = 0; c < pack.count; ++c) {
      x.chunk[c].place = Place::of<T>(chunks, pack.first + c);
      start(x.chunk[c], x);
      x.chunk[c].given.share(x.chunk[0].given);  // what is by cell is read once for all of them
    }
    const Place& first = x.chunk[0].place;
    const Steps steps = steps_at(a, chunks, first);
    const int64_t most = segment_cells(a.states), last = segments(a.length, a.states) - 1;
    Segment segment, next;
    Ahead ahead;
    next.read(steps, 0, most);
    for (int64_t i = 0; i <= last; ++i) {
      segment = next;
      next.read(steps, (i + 1) * most, most);
      x.chunk[0].given.expect(a, first, next);
      if (segment.cells) x.chunk[0].given.read_segment(a, first, segment);
      for (int64_t c = 0; c < pack.count; ++c) {
        const bool turns = c + 1 == pack.count;  // the next chunk is the first one's next segment
        ahead.aim<T>({&a.u, &a.delta, &a.z, &a.y}, x.chunk[turns ? 0 : c + 1].place, turns ? next : segment);
        advance(x.chunk[c], i, segment, ahead, x);
      }
    }
    for (int64_t c = 0; c < pack.count; ++c) {
      if (has(a.final_state)) write_state<T, CX>(a.final_state, x.chunk[c].place, a.states, x.chunk[c].state);
      clear_absent<T>(a.y, x.chunk[c].place, steps);
    }
  }

  void start(Chunk& chunk, const Scratch& x) const {
    const Place& place = chunk.place;
    chunk.given.read_fixed(a, place, Loops::rate_unit);
    read_by_channel<T, CX>(a.initial_state, place.row, place, a.states, chunk.state);
    for (int tile = 0; tile < place.tiles; ++tile) {
      chunk.reader[tile].aim(a, place, tile, &x.tile[tile]);
      TileOutput& to = chunk.output[tile];
      to.z = place.of<T>(a.z, tile), to.y = place.of<T>(a.y, tile), to.skip = V{};
      if (has(a.D)) to.skip = read_lanes<T>(a.D, at(a.D, place.channel<T>(tile)), place.lanes<T>(tile));
    }
  }

  void advance(const Chunk& chunk, int64_t i, const Segment& segment, Ahead& ahead, const Scratch& x) const {
    const Place& place = chunk.place;
    if (segment.cells) read_tiles<T>(a, place, segment, chunk.reader, x.tile);
    for (int tile = 0; tile < place.tiles; ++tile) {
      Num* state = chunk.state + tile * a.states;
      if (i && a.saved) SavedStates<T, CX>(a, place, i, tile).write(state);
      if (!segment.cells) continue;
      V* out = x.out + tile * kMaxCells;
      for (int t = 0; t < segment.cells; ++t) out[t] = V{};
      Loops::advance(a.discretization, x.tile[tile], segment, chunk.given, tile, state, out, ahead, *x.memory);
    }
    for (int t = 0; t < segment.cells; ++t)
      for (int tile = 0; tile < place.tiles; ++tile) write_output(chunk.output[tile], segment.cell[t], x, tile, t);
  }

  void write_output(const TileOutput& to, int64_t cell, const Scratch& x, int tile, int t) const {
    const V out = x.out[tile * kMaxCells + t];
    V y = CX ? out * T(2) : out;
    if (has(a.D)) y = y + to.skip * x.tile[tile].u[t];
    if (to.z.there) {
      const V z = to.z[cell];
      y = y * (z * sigmoid<T>(z));
    }
    to.y.put(cell, y);
  }
};

}  // namespace
#endif
