// `selective_scan`: what belongs to states. A, B, C, the gate, and the states themselves, real or complex.
#ifndef NVSUBQ_CPU_SELECTIVE_SCAN_COEFFICIENTS_H
#define NVSUBQ_CPU_SELECTIVE_SCAN_COEFFICIENTS_H

#include "../complex_storage.h"
#include "common.h"

namespace {

inline int64_t parts_of(const nvsubq_tensor& t) { return is_complex(t) ? 2 : 1; }

// Lanes of numbers that are `stride` elements apart; a real tensor has no imaginary part to read or to write.
template <class T, bool CX>
inline Number<T, CX> read_numbers(const nvsubq_tensor& from, int64_t offset, int64_t stride, int n) {
  Number<T, CX> x = {};
  const int64_t parts = parts_of(from);
  for (int i = 0; i < parts && i < (CX ? 2 : 1); ++i)
    part(x, i) = read_column<T>(from, offset * parts + i, stride * parts, n);
  return x;
}

// A tensor [D, N] or, with a row, [B, D, N] of a task's channels; zeros where it is absent.
template <class T, bool CX>
inline void read_by_channel(const nvsubq_tensor& from, int64_t row, const Place& place, int64_t states,
                            Number<T, CX>* to) {
  const int64_t begin = row < 0 ? 0 : at(from, row);
  const int64_t over_channels = from.stride[row < 0 ? 0 : 1], over_states = from.stride[row < 0 ? 1 : 2];
  for (int tile = 0; tile < place.tiles; ++tile)
    for (int64_t n = 0; n < states; ++n) {
      const int64_t offset = begin + place.template channel<T>(tile) * over_channels + n * over_states;
      to[tile * states + n] = Number<T, CX>{};
      if (has(from))
        to[tile * states + n] = read_numbers<T, CX>(from, offset, over_channels, place.template lanes<T>(tile));
    }
}

template <class T, bool CX>
inline void write_state(const nvsubq_tensor& to, const Place& place, int64_t states, Number<T, CX>* from) {
  constexpr int parts = CX ? 2 : 1;
  for (int tile = 0; tile < place.tiles; ++tile)
    for (int64_t n = 0; n < states; ++n)
      for (int i = 0; i < parts; ++i)
        write_column<T>(to, at(to, place.row, place.template channel<T>(tile), n) * parts + i, to.stride[1] * parts,
                        place.template lanes<T>(tile), part(from[tile * states + n], i));
}

// The states that enter segment s >= 1 are kept, [B][segments - 1][N][parts][D].
template <class T, bool CX>
struct SavedStates {
  static constexpr int parts = CX ? 2 : 1;
  T* from;
  int64_t width, states;
  int n;

  SavedStates(const Selective& a, const Place& place, int64_t segment, int tile)
      : width(a.width), states(a.states), n(place.template lanes<T>(tile)) {
    const int64_t borders = segments(a.length, states) - 1;
    from = static_cast<T*>(a.saved) + (place.row * borders + segment - 1) * states * parts * width +
           place.template channel<T>(tile);
  }
  void write(Number<T, CX>* s) const {
    for (int64_t i = 0; i < states * parts; ++i) write_part<T>(from + i * width, n, part(s[i / parts], i % parts));
  }
  void read(Number<T, CX>* s) const {
    for (int64_t i = 0; i < states * parts; ++i) part(s[i / parts], i % parts) = read_part<T>(from + i * width, n);
  }
};

// One coefficient of one state along a segment: fixed by channel, or by cell for all channels.
template <class T, bool CX>
struct Along {
  const T* cells;
  int64_t stride;
  Number<T, CX> fixed;

  Number<T, CX> operator[](int t) const { return cells ? broadcast<T, CX>(cells + t * stride) : fixed; }
};

// B, C or the gate, either fixed for each tile and state or, anew for each segment, [cells][N].
template <class T, bool CX>
struct Coefficient {
  static constexpr int parts = CX ? 2 : 1;
  Number<T, CX>* fixed;
  T* cells;
  int64_t states;

  void take(Arena& arena, int64_t tiles, int64_t count, bool given, bool is_fixed) {
    states = count;
    fixed = arena.take<Number<T, CX>>(given && is_fixed ? tiles * states : 0);
    cells = arena.take<T>(given && !is_fixed ? kMaxCells * states * parts : 0);
    if (is_fixed) cells = nullptr;
  }
  void read_segment(const nvsubq_tensor& from, const Place& place, const Segment& segment) {
    if (!has(from) || !cells) return;
    const int64_t given = parts_of(from);
    for (int t = 0; t < segment.cells; ++t) {
      const int64_t offset = at(from, place.row, segment.cell[t], place.group) * given;
      T* to = cells + t * states * parts;
      if (given == parts && from.dtype == DtypeOf<T>::value) {
        copy(static_cast<const T*>(from.data) + offset, states * parts, to);
        continue;
      }
      for (int64_t n = 0; n < states; ++n)
        for (int i = 0; i < parts; ++i)
          to[n * parts + i] = i < given ? read_one<T>(from, offset + n * given + i) : T(0);
    }
  }
  // Rows are short: a call of memcpy would take longer than the copy.
  static void copy(const T* from, int64_t count, T* to) {
    for (; count >= 8; count -= 8, from += 8, to += 8) memcpy(to, from, 8 * sizeof(T));
    for (; count > 0; --count) *to++ = *from++;
  }
  void expect(const nvsubq_tensor& from, const Place& place, const Segment& next) const {
    if (!has(from) || !cells) return;
    for (int t = 0; t < next.cells; ++t)
      __builtin_prefetch(address(from, at(from, place.row, next.cell[t], place.group)));
  }
  Along<T, CX> of(int tile, int64_t n) const {
    if (cells) return {cells + n * parts, states * parts, Number<T, CX>{}};
    return {nullptr, 0, fixed[tile * states + n]};
  }
};

// All that a task reads by state.
template <class T, bool CX>
struct Coefficients {
  Number<T, CX>* rates;  // A, [tiles][N]
  Coefficient<T, CX> B, C;
  Coefficient<T, false> gate;
  bool gated;

  Coefficients(Arena& arena, const Selective& a, int64_t tiles) {
    rates = arena.take<Number<T, CX>>(tiles * a.states);
    B.take(arena, tiles, a.states, true, a.flags & NVSUBQ_FIXED_B);
    C.take(arena, tiles, a.states, true, a.flags & NVSUBQ_FIXED_C);
    gated = has(a.decay_gate);
    gate.take(arena, tiles, a.states, gated, a.flags & NVSUBQ_FIXED_GATE);
  }
  // A real A may be scaled, for an exponential of another base.
  void read_fixed(const Selective& a, const Place& place, T unit) {
    read_by_channel<T, CX>(a.A, -1, place, a.states, rates);
    for (int64_t i = 0; i < place.tiles * a.states && unit != T(1); ++i) part(rates[i], 0) *= unit;
    if (a.flags & NVSUBQ_FIXED_B) read_by_channel<T, CX>(a.B, -1, place, a.states, B.fixed);
    if (a.flags & NVSUBQ_FIXED_C) read_by_channel<T, CX>(a.C, -1, place, a.states, C.fixed);
    if (gated && (a.flags & NVSUBQ_FIXED_GATE))
      read_by_channel<T, false>(a.decay_gate, -1, place, a.states, gate.fixed);
  }
  // Reads by cell where another one, of the same group, has read them.
  void share(const Coefficients& other) {
    B.cells = other.B.cells, C.cells = other.C.cells, gate.cells = other.gate.cells;
  }
  void expect(const Selective& a, const Place& place, const Segment& next) const {
    B.expect(a.B, place, next);
    C.expect(a.C, place, next);
    gate.expect(a.decay_gate, place, next);
  }
  void read_segment(const Selective& a, const Place& place, const Segment& segment) {
    B.read_segment(a.B, place, segment);
    C.read_segment(a.C, place, segment);
    gate.read_segment(a.decay_gate, place, segment);
  }
};

}  // namespace
#endif
