// `ssd_scan`, backward: rounds from the last window to the first. Each head walks its window back, segment by
// segment, and makes the states that enter the chunks of a segment again from the one kept at its border.
#ifndef NVSUBQ_CPU_SSD_SCAN_BACKWARD_H
#define NVSUBQ_CPU_SSD_SCAN_BACKWARD_H

#include "adjoint.h"

namespace {

template <class T>
struct Backward {
  const Ssd& a;
  Rounds rounds;
  Round round = {};
  int64_t bytes, slot_bytes, shared_elements, part_elements;
  T *shared, *parts, *states;
  char* slots;
  WalkSums<T> sums;

  static int64_t bytes_of_cell(const Ssd& a) {
    const int64_t of_group = 3 * a.states + chunk_cells(a), of_head = 2 * a.states + chunk_cells(a);
    return (a.groups * of_group + a.heads * of_head) * int64_t(sizeof(T));
  }
  explicit Backward(const Ssd& args, Arena arena = Arena(nullptr))
      : a(args),
        rounds(args, bytes_of_cell(args), args.heads * state_elements<T>(args) * int64_t(sizeof(T))),
        sums(arena, args) {
    Arena head(nullptr), group(nullptr);
    AdjointScratch<T>(head, a);
    GroupScratch<T>(group, a);
    slot_bytes = head.bytes() > group.bytes() ? head.bytes() : group.bytes();
    shared_elements = Shared<T>::elements(a, rounds.cells, true);
    part_elements = HeadPart<T>::elements(a, rounds.cells);
    shared = arena.take<T>(rounds.rows * a.groups * shared_elements);
    parts = arena.take<T>(rounds.rows * a.heads * part_elements);
    states = arena.take<T>(rounds.kept_states(a) * state_elements<T>(a));
    slots = arena.take<char>(slot_bytes * a.threads);
    bytes = arena.bytes();
  }

  void run() {
    for_each_round(a, rounds, true, [this](const Round& r) {
      round = r;
      const int64_t of_groups = r.rows * a.groups * pieces();
      nvsubq::run_tasks(
          a.threads, of_groups,
          [](void* self, int64_t task, int64_t slot) { static_cast<Backward*>(self)->prepare(task, slot); }, this);
      nvsubq::run_tasks(
          a.threads, r.rows * a.heads,
          [](void* self, int64_t task, int64_t slot) { static_cast<Backward*>(self)->one(task, slot); }, this);
      nvsubq::run_tasks(
          a.threads, of_groups,
          [](void* self, int64_t task, int64_t slot) { static_cast<Backward*>(self)->add_up(task, slot); }, this);
    });
    sums.add_rows(a);
  }

  int64_t pieces() const { return (round.end - round.begin + segment_cells(a) - 1) / segment_cells(a); }
  Shared<T> shared_of(int64_t row, int64_t group) const {
    return Shared<T>(a, shared + (row * a.groups + group) * shared_elements, rounds.cells);
  }
  HeadPart<T> part_of(int64_t row, int64_t head) const {
    return HeadPart<T>(a, parts + (row * a.heads + head) * part_elements, rounds.cells);
  }

  // A task of a group: one row, one group, one segment of the window.
  struct Piece {
    int64_t row, begin;  // row of the round, first step
    Place place;
    Steps steps;
    Chunks chunks;

    Piece(const Backward& b, int64_t task)
        : row(task / b.pieces() / b.a.groups),
          begin(b.round.begin + task % b.pieces() * segment_cells(b.a)),
          place(b.a, b.round.first_row + row, task / b.pieces() % b.a.groups * (b.a.heads / b.a.groups)),
          steps(steps_of(b.a, place.row, place.block)) {
      chunks.read(b.a, steps, begin, has(b.a.initial_state), has(b.a.d_final_state));
    }
  };

  void prepare(int64_t task, int64_t slot) {
    const Piece piece(*this, task);
    Arena arena(slots + slot * slot_bytes);
    T* turned = GroupScratch<T>(arena, a).block;
    share<T>(a, piece.place.row, piece.place.group, piece.steps, piece.chunks, round.begin, true,
             shared_of(piece.row, piece.place.group), turned);
  }

  void add_up(int64_t task, int64_t slot) {
    const Piece piece(*this, task);
    Arena arena(slots + slot * slot_bytes);
    GroupScratch<T> x(arena, a);
    const Shared<T> group = shared_of(piece.row, piece.place.group);
    for (int i = 0; i < piece.chunks.count; ++i) {
      const Chunk& chunk = piece.chunks.chunk[i];
      write_group<T>(a, piece.place, piece.steps, chunk, chunk.begin - round.begin, group,
                     [&](int64_t h) { return part_of(piece.row, piece.place.head + h); }, x);
    }
    int64_t end = piece.begin + segment_cells(a);
    end = end < a.length ? end : a.length;
    const int64_t row_step = whole_vectors<T>(a.states) * Simd<T>::W;
    memset(x.rows, 0, row_step * sizeof(T));
    Chunk absent = {};
    absent.cells = 1;
    for (int64_t k = piece.steps.count > piece.begin ? piece.steps.count : piece.begin; k < end; ++k) {
      absent.begin = k;
      write_cells<T>(a, a.d_B, piece.place, piece.steps, absent, x.rows, row_step);
      write_cells<T>(a, a.d_C, piece.place, piece.steps, absent, x.rows, row_step);
    }
  }

  void one(int64_t task, int64_t slot) {
    const int64_t row = task / a.heads, segment = segment_cells(a), most = chunk_cells(a);
    const Place place(a, round.first_row + row, task % a.heads);
    const Steps steps = steps_of(a, place.row, place.block);
    Arena arena(slots + slot * slot_bytes);
    AdjointScratch<T> x(arena, a);
    const Shared<T> group = shared_of(row, place.group);
    const HeadPart<T> part = part_of(row, place.head);
    T* d_state = rounds.windows > 1 ? states + task * state_elements<T>(a) : x.d_state;
    const int64_t walk = place.row * a.heads + place.head;
    x.skip_sum = sums.D + walk * padded_width<T>(a);
    if (round.first) {
      read_state<T>(a, a.d_final_state, place, d_state);
      memset(x.skip_sum, 0, padded_width<T>(a) * sizeof(T));
      sums.A[walk] = sums.bias[walk] = 0;
    }
    read_skip<T>(a, place, x.skip);
    Chunks chunks;
    for (int64_t i = pieces() - 1; i >= 0; --i) {
      const int64_t begin = round.begin + i * segment;
      chunks.read(a, steps, begin, has(a.initial_state), has(a.d_final_state));
      make_states(place, steps, chunks, begin, group, x);
      for (int c = chunks.count - 1; c >= 0; --c) {
        const int64_t first = chunks.chunk[c].begin - round.begin;
        HeadPart<T> to = part;
        to.B += first * a.states, to.C += first * a.states, to.weights += first * most;
        Shared<T> from = group;
        from.B += first * a.states, from.C += first * a.states, from.C_turned += first * a.states;
        from.scores += first * most;
        Adjoint<T>{a, place, steps, chunks.chunk[c], from, to, x}.run(x.entering[c], d_state, &sums.A[walk],
                                                                      &sums.bias[walk]);
      }
    }
    if (round.last) write_state<T>(a, a.d_initial_state, place, d_state);
    clear_absent(place, steps, x);
  }

  // The states that enter the chunks of a segment. Those that begin a sequence have none, so the others all
  // follow a full chunk and there is room for them.
  void make_states(const Place& place, const Steps& steps, const Chunks& chunks, int64_t begin,
                   const Shared<T>& group, AdjointScratch<T>& x) {
    const int64_t size = state_elements<T>(a);
    T* free = x.states;
    for (int i = 0; i < chunks.count; ++i) {
      const Chunk& chunk = chunks.chunk[i];
      x.entering[i] = free;
      if (!chunk.enters) continue;
      free += size;
      if (i == 0) {
        if (begin)
          restore(place, begin / segment_cells(a), x.entering[i]);
        else
          read_state<T>(a, a.initial_state, place, x.entering[i]);
        continue;
      }
      const Chunk& before = chunks.chunk[i - 1];
      const int64_t first = before.begin - round.begin;
      if (before.enters) memcpy(x.entering[i], x.entering[i - 1], size * sizeof(T));
      x.head.read(a, place, steps, before, group.scores + first * chunk_cells(a));
      advance<T>(a, before, x.head, group.B + first * a.states, x.entering[i], x.y);
    }
  }

  void restore(const Place& place, int64_t segment, T* to) {
    const int64_t width = a.head_width, padded = padded_width<T>(a);
    const T* from = saved_state<T>(a, place, segment);
    if (padded != width) memset(to, 0, state_elements<T>(a) * sizeof(T));
    for (int64_t n = 0; n < a.states; ++n) memcpy(to + n * padded, from + n * width, width * sizeof(T));
  }

  void clear_absent(const Place& place, const Steps& steps, AdjointScratch<T>& x) {
    memset(x.y, 0, padded_width<T>(a) * sizeof(T));
    for (int64_t k = steps.count > round.begin ? steps.count : round.begin; k < round.end; ++k) {
      const int64_t cell = steps.cell(k);
      write_row<T>(a, a.d_x, place, cell, x.y);
      if (has(a.d_z)) write_row<T>(a, a.d_z, place, cell, x.y);
      write_one<T>(a.d_dt, at(a.d_dt, place.row, cell, place.head), T(0));
    }
  }
};

}  // namespace
#endif
