// `ssd_scan`, forward: for each round first what the heads of a group share, then each head along the window.
#ifndef NVSUBQ_CPU_SSD_SCAN_FORWARD_H
#define NVSUBQ_CPU_SSD_SCAN_FORWARD_H

#include "chunk.h"

namespace {

template <class T>
struct ForwardScratch {
  HeadChunk<T> head;
  T *y, *rows, *skip, *turned, *state;

  ForwardScratch(Arena& arena, const Ssd& a) : head(arena, a) {
    for (T** p : {&y, &rows}) *p = arena.take<T>(kMaxChunk * padded_width<T>(a));
    skip = arena.take<T>(padded_width<T>(a));
    turned = arena.take<T>(a.states * kMaxChunk);
    state = arena.take<T>(state_elements<T>(a));
  }
};

template <class T>
struct Forward {
  const Ssd& a;
  Rounds rounds;
  Round round = {};
  int64_t slot_bytes, shared_elements;
  T *shared, *states;
  char* slots;

  explicit Forward(const Ssd& args)
      : a(args),
        rounds(args, args.groups * (2 * args.states + chunk_cells(args)) * int64_t(sizeof(T)),
               args.heads * state_elements<T>(args) * int64_t(sizeof(T))) {
    Arena slot(nullptr);
    ForwardScratch<T>(slot, a);
    slot_bytes = slot.bytes();
    shared_elements = Shared<T>::elements(a, rounds.cells, false);
    Arena arena(a.workspace);
    lay_out(arena);
  }
  void lay_out(Arena& arena) {
    shared = arena.take<T>(rounds.rows * a.groups * shared_elements);
    states = arena.take<T>(rounds.kept_states(a) * state_elements<T>(a));
    slots = arena.take<char>(slot_bytes * a.threads);
  }
  int64_t bytes() {
    Arena arena(nullptr);
    lay_out(arena);
    return arena.bytes();
  }

  void run() {
    for_each_round(a, rounds, false, [this](const Round& r) {
      round = r;
      const int64_t pieces = (r.end - r.begin + segment_cells(a) - 1) / segment_cells(a);
      nvsubq::run_tasks(
          a.threads, r.rows * a.groups * pieces,
          [](void* self, int64_t task, int64_t slot) { static_cast<Forward*>(self)->prepare(task, slot); }, this);
      nvsubq::run_tasks(
          a.threads, r.rows * a.heads,
          [](void* self, int64_t task, int64_t slot) { static_cast<Forward*>(self)->one(task, slot); }, this);
    });
  }

  ForwardScratch<T> scratch(int64_t slot) {
    Arena arena(slots + slot * slot_bytes);
    return ForwardScratch<T>(arena, a);
  }
  Shared<T> shared_of(int64_t row, int64_t group) {
    return Shared<T>(a, shared + (row * a.groups + group) * shared_elements, rounds.cells);
  }

  void prepare(int64_t task, int64_t slot) {
    const int64_t pieces = (round.end - round.begin + segment_cells(a) - 1) / segment_cells(a);
    const int64_t row = task / pieces / a.groups, group = task / pieces % a.groups;
    const Steps steps = steps_of(a, round.first_row + row, group * a.blocks / a.groups);
    Chunks chunks;
    chunks.read(a, steps, round.begin + task % pieces * segment_cells(a), has(a.initial_state), has(a.final_state));
    share<T>(a, round.first_row + row, group, steps, chunks, round.begin, false, shared_of(row, group),
             scratch(slot).turned);
  }

  void one(int64_t task, int64_t slot) {
    const int64_t row = task / a.heads, most = chunk_cells(a);
    const Place place(a, round.first_row + row, task % a.heads);
    const Steps steps = steps_of(a, place.row, place.block);
    ForwardScratch<T> x = scratch(slot);
    const Shared<T> group = shared_of(row, place.group);
    T* state = rounds.windows > 1 ? states + task * state_elements<T>(a) : x.state;
    if (round.first) read_state<T>(a, a.initial_state, place, state);
    read_skip<T>(a, place, x.skip);
    Chunks chunks;
    for (int64_t begin = round.begin; begin < round.end; begin += segment_cells(a)) {
      chunks.read(a, steps, begin, has(a.initial_state), has(a.final_state));
      if (begin && a.saved && chunks.count && chunks.chunk[0].enters) save(place, begin / segment_cells(a), state);
      for (int i = 0; i < chunks.count; ++i) {
        const Chunk& chunk = chunks.chunk[i];
        const int64_t first = chunk.begin - round.begin;
        x.head.read(a, place, steps, chunk, group.scores + first * most);
        read_outputs<T>(a, chunk, x.head, group.C + first * a.states, state, x.y);
        write_outputs(place, steps, chunk, x);
        if (chunk.leaves) advance<T>(a, chunk, x.head, group.B + first * a.states, state, x.rows);
      }
    }
    if (round.last) write_state<T>(a, a.final_state, place, state);
    clear_absent(place, steps, x);
  }

  void save(const Place& place, int64_t segment, const T* state) {
    const int64_t width = a.head_width, padded = padded_width<T>(a);
    T* to = saved_state<T>(a, place, segment);
    for (int64_t n = 0; n < a.states; ++n) memcpy(to + n * width, state + n * padded, width * sizeof(T));
  }

  void write_outputs(const Place& place, const Steps& steps, const Chunk& chunk, ForwardScratch<T>& x) {
    constexpr int W = Simd<T>::W;
    const int64_t width = padded_width<T>(a);
    for (int t = 0; t < chunk.cells; ++t) {
      const int64_t cell = steps.cell(chunk.begin + t);
      T *y = x.y + t * width, *z = x.rows;
      if (has(a.z)) {
        read_row<T>(a, a.z, place, cell, z);
        fetch_row(a, a.z, place, steps, chunk.begin + t + kMaxChunk);
      }
      for (int64_t p = 0; p < width; p += W) {
        Vec<T> v = load<T>(y + p);
        if (has(a.D)) v = v + load<T>(x.skip + p) * load<T>(x.head.x + t * width + p);
        if (has(a.z)) v = v * (load<T>(z + p) * sigmoid<T>(load<T>(z + p)));
        store<T>(y + p, v);
      }
      write_row<T>(a, a.y, place, cell, y);
    }
  }

  void clear_absent(const Place& place, const Steps& steps, ForwardScratch<T>& x) {
    memset(x.y, 0, padded_width<T>(a) * sizeof(T));
    for (int64_t k = steps.count > round.begin ? steps.count : round.begin; k < round.end; ++k)
      write_row<T>(a, a.y, place, steps.cell(k), x.y);
  }
};

}  // namespace
#endif
