// `linear_scan`, backward: segments from the last to the first; the states of one are made again from the one kept at
// its border. A gradient g of a complex number is d/d re + i d/d im, so what multiplies comes back conjugated.
#ifndef NVSUBQ_CPU_LINEAR_SCAN_BACKWARD_H
#define NVSUBQ_CPU_LINEAR_SCAN_BACKWARD_H

#include "common.h"

namespace {

// Gradients of the rate and the time from those of decay and factor.
template <class T, bool CX>
struct TimedGradient {
  using V = Vec<T>;
  using N = Number<T, CX>;
  N rate;
  V dt;

  TimedGradient(const Linear& a, const Timed<T, CX>& made, V time, N given, N d_decay, N d_scale) : rate(), dt() {
    const bool bilinear = a.discretization == NVSUBQ_BILINEAR;
    N d_z = conj(bilinear ? made.inverted * made.inverted : made.decay) * d_decay;
    if (a.input_scale == NVSUBQ_SCALE_ZOH) {  // dt f(z), f = (e^z - 1)/z: e^z by dt, dt^2 f' by the rate
      N value, slope;
      made.expm1_over_of(&value, &slope);
      rate = conj(slope) * d_scale * (time * time);
      dt = re(conj(made.power) * d_scale);
    } else if (a.input_scale == NVSUBQ_SCALE_BILINEAR) {  // dt q, q = 1/(1 - z/2): q^2 by dt, dt^2 q^2/2 by the rate
      const N square = conj(made.inverted * made.inverted) * d_scale;
      rate = square * (time * time * T(0.5));
      dt = re(square);
    } else if (a.input_scale == NVSUBQ_SCALE_SQRT) {
      const V d_inside = re(d_scale) * bounded_root<T>(made.inside(a)).slope;
      d_z = d_z + inside_by_z(bilinear, made) * d_inside;
    }
    rate = rate + d_z * time;
    dt = dt + re(conj(given) * d_z);
  }

  // The derivatives of 1 - |decay|^2 in the two parts of z.
  static N inside_by_z(bool bilinear, const Timed<T, CX>& made) {
    if (!bilinear) return number<T, CX>(T(-2) * square_of<T>(made.power));
    const V over = square_of<T>(made.inverted), x = re(made.z);
    N by_z = number<T, CX>(T(-2) * over - T(2) * x * (T(1) - x * T(0.5)) * over * over);
    if constexpr (CX) by_z.im = x * made.z.im * over * over;
    return by_z;
  }
};

template <class T, bool CX, Mode MODE>
struct LinearBackward {
  using V = Vec<T>;
  using N = Number<T, CX>;
  static constexpr int kParts = CX ? 2 : 1, kTilesOfUnit = int(kUnit / Simd<T>::W);
  const Linear& a;
  Chunks chunks;
  int64_t tiles, units, partial_bytes, slot_bytes;

  // Of one tile: what is fixed, the cotangent that comes from later cells, and d_a summed over a segment and a walk.
  struct Channel {
    N rate, coming, state, segment, walk;
    V scale, by_inside;  // the factor, and its derivative in 1 - |a|^2
  };
  // Of one task; `before` (states) and `power` hold each cell of a segment, tile by tile.
  struct Scratch {
    Channel* channels;
    N *before, *power;

    Scratch(Arena& arena, int64_t tiles) {
      channels = arena.take<Channel>(tiles);
      before = arena.take<N>(tiles * kCells);
      power = arena.take<N>(MODE == kTimed ? tiles * kCells : 0);
    }
  };
  struct Partial {
    T* rate;  // [B][parts][D]
    T* dt;    // [B][L][units]
    Partial(Arena& arena, const LinearBackward& b) {
      rate = arena.take<T>(MODE == kVarying ? 0 : b.a.batch * kParts * b.a.width);
      dt = arena.take<T>(b.shared_time() ? b.a.batch * b.a.length * b.units : 0);
    }
  };

  explicit LinearBackward(const Linear& args) : a(args), chunks(args) {
    tiles = (chunks.width + Simd<T>::W - 1) / Simd<T>::W;
    units = chunks.units * a.blocks;
    Arena partial(nullptr);
    Partial(partial, *this);
    partial_bytes = partial.bytes();
    Arena slot(nullptr);
    Scratch(slot, tiles);
    slot_bytes = slot.bytes();
  }

  bool shared_time() const { return MODE == kTimed && (a.flags & NVSUBQ_SHARED_DT) && has(a.d_dt); }
  int64_t bytes() const { return partial_bytes + slot_bytes * a.threads; }
  Partial partial() const {
    Arena arena(a.workspace);
    return Partial(arena, *this);
  }

  void run() {
    for_places<T>(*this, a.batch, chunks, a.threads);
    const Partial sums = partial();
    if (MODE != kVarying && has(a.d_a)) {
      const int parts = is_complex(a.d_a) ? 2 : 1;
      for (int64_t c = 0; c < a.width; ++c)
        for (int i = 0; i < parts; ++i)
          write_one<T>(a.d_a, parts * at(a.d_a, c) + i,
                       sum_rows(sums.rate + i * a.width + c, a.batch, kParts * a.width));
    }
    if (!shared_time()) return;
    for (int64_t row = 0; row < a.batch; ++row)
      for (int64_t cell = 0; cell < a.length; ++cell)
        write_one<T>(a.d_dt, at(a.d_dt, row, cell), sum_rows(sums.dt + (row * a.length + cell) * units, units, 1));
  }

  void walk(const Place<T>& place, int64_t slot) {
    Arena arena(static_cast<char*>(a.workspace) + partial_bytes + slot * slot_bytes);
    Scratch s(arena, tiles);
    const Partial sums = partial();
    for (int tile = 0; tile < place.tiles; ++tile) {
      Channel& here = s.channels[tile];
      here = Channel{};
      here.coming = read_state<T, CX>(a.d_final_state, place, tile);
      if (MODE == kVarying) continue;
      here.rate = read_rate<T, CX>(a.a, place, tile);
      if (MODE != kFixed) continue;
      const Slope<T> root = bounded_root<T>(one_minus_square<T>(here.rate));
      here.scale = root.value, here.by_inside = root.slope;
    }
    const Steps steps = steps_of(a, place.row, place.block);
    for (int64_t i = steps.count > 0 ? (steps.count - 1) / kCells : -1; i >= 0; --i) {
      const int64_t begin = i * kCells, end = begin + kCells < steps.count ? begin + kCells : steps.count;
      enter(place, i, s.channels);
      for (int64_t k = begin; k < end; ++k) make_again(place, steps, k, s, (k - begin) * tiles);
      for (int64_t k = end - 1; k >= begin; --k) one_cell(place, steps, k, s, (k - begin) * tiles, sums);
      for (int tile = 0; tile < place.tiles; ++tile)
        s.channels[tile].walk = s.channels[tile].walk + s.channels[tile].segment;
    }
    for (int tile = 0; tile < place.tiles; ++tile) {
      write_state<T>(a.d_initial_state, place, tile, s.channels[tile].coming);
      for (int i = 0; i < kParts && MODE != kVarying; ++i)
        write_part<T>(sums.rate + (place.row * kParts + i) * a.width + place.channel(tile), place.lanes(tile),
                      part(s.channels[tile].walk, i));
    }
    clear_absent<T>(a.d_b, place, steps);
    if (MODE == kVarying) clear_absent<T>(a.d_a, place, steps);
    if (!shared_time()) return clear_absent<T>(a.d_dt, place, steps);
    for (int64_t k = steps.count; k < steps.length; ++k)
      for (int64_t u = 0; u < (place.tiles + kTilesOfUnit - 1) / kTilesOfUnit; ++u)
        sums.dt[(place.row * a.length + steps.cell(k)) * units + place.unit + u] = 0;
  }

  // The states at the border before segment i.
  void enter(const Place<T>& place, int64_t i, Channel* channels) const {
    for (int tile = 0; tile < place.tiles; ++tile) {
      Channel& here = channels[tile];
      here.segment = N{};
      if (i == 0) {
        here.state = read_state<T, CX>(a.initial_state, place, tile);
        continue;
      }
      for (int p = 0; p < kParts; ++p)
        part(here.state, p) = read_part<T>(saved_states<T, CX>(a, place, i, p, tile), place.lanes(tile));
    }
  }

  void make_again(const Place<T>& place, const Steps& steps, int64_t step, Scratch& s, int64_t kept) const {
    const int64_t row = place.row, cell = steps.cell(step), first = place.first, b_at = at(a.b, row, cell, first);
    const int64_t a_at = MODE == kVarying ? at(a.a, row, cell, first) : 0;
    const int64_t dt_at = MODE == kTimed ? time_at(a, row, cell, first) : 0;
    const bool start = steps.starts(step), rooted = a.input_scale == NVSUBQ_SCALE_SQRT;
    expect_row(a.d_y, at(a.d_y, row, cell, first), place.channels);
    expect_row(a.d_b, at(a.d_b, row, cell, first), place.channels, true);
    if (MODE == kVarying) expect_row(a.d_a, at(a.d_a, row, cell, first), place.channels, true);
    for (int tile = 0; tile < place.tiles; ++tile) {
      Channel& here = s.channels[tile];
      const int n = place.lanes(tile), c = tile * Simd<T>::W;
      N decay = here.rate, in = read_numbers<T, CX>(a.b, b_at + c, n);
      if (MODE == kTimed) {
        const V dt = read_time<T>(a, dt_at, c, n);
        const N power = s.power[kept + tile] = Timed<T, CX>::power_of(a, dt, here.rate);
        const Timed<T, CX> timed(a, dt, here.rate, power);
        decay = timed.decay;
        if (a.input_scale != NVSUBQ_SCALE_NONE) in = timed.scale * in;
      } else {
        if (MODE == kVarying) decay = read_numbers<T, CX>(a.a, a_at + c, n);
        if (rooted) in = in * (MODE == kFixed ? here.scale : bounded_root<T>(one_minus_square<T>(decay)).value);
      }
      const N before = start ? N{} : here.state;
      s.before[kept + tile] = before;
      here.state = decay * before + in;
    }
  }

  void one_cell(const Place<T>& place, const Steps& steps, int64_t step, Scratch& s, int64_t kept,
                const Partial& sums) const {
    const int64_t row = place.row, cell = steps.cell(step), first = place.first;
    const int64_t b_at = at(a.b, row, cell, first), dy_at = at(a.d_y, row, cell, first);
    const int64_t db_at = at(a.d_b, row, cell, first), ddt_at = at(a.d_dt, row, cell, first);
    const int64_t a_at = MODE == kVarying ? at(a.a, row, cell, first) : 0;
    const int64_t da_at = MODE == kVarying ? at(a.d_a, row, cell, first) : 0;
    const int64_t dt_at = MODE == kTimed ? time_at(a, row, cell, first) : 0;
    const bool start = steps.starts(step), rooted = a.input_scale == NVSUBQ_SCALE_SQRT, shared = shared_time();
    if (step >= kCells) {  // the next segment
      const int64_t next = steps.cell(step - kCells);
      expect_row(a.b, at(a.b, row, next, first), place.channels);
      if (MODE == kVarying) expect_row(a.a, at(a.a, row, next, first), place.channels);
    }
    V of_unit = {};
    for (int tile = 0; tile < place.tiles; ++tile) {
      Channel& here = s.channels[tile];
      const int n = place.lanes(tile), c = tile * Simd<T>::W;
      const N before = s.before[kept + tile];
      N h = here.coming, decay = here.rate, d_b;
      if (has(a.d_y)) h = h + read_numbers<T, CX>(a.d_y, dy_at + c, n);
      const N d_decay = conj(before) * h;
      if (MODE == kTimed) {
        const V dt = read_time<T>(a, dt_at, c, n);
        const Timed<T, CX> timed(a, dt, here.rate, s.power[kept + tile]);
        decay = timed.decay;
        d_b = a.input_scale == NVSUBQ_SCALE_NONE ? h : conj(timed.scale) * h;
        const N d_scale = conj(read_numbers<T, CX>(a.b, b_at + c, n)) * h;
        const TimedGradient<T, CX> d(a, timed, dt, here.rate, d_decay, d_scale);
        here.segment = here.segment + d.rate;
        if (shared) {
          of_unit += d.dt;
          if ((tile + 1) % kTilesOfUnit == 0 || tile + 1 == place.tiles) {
            sums.dt[(row * a.length + cell) * units + place.unit + tile / kTilesOfUnit] = sum_lanes<T>(of_unit);
            of_unit = V{};
          }
        } else if (has(a.d_dt)) {
          write_lanes<T>(a.d_dt, ddt_at + c, n, d.dt);
        }
      } else {
        N d_a = d_decay;
        d_b = h;
        if (MODE == kVarying) decay = read_numbers<T, CX>(a.a, a_at + c, n);
        if (rooted) {
          Slope<T> root = {here.scale, here.by_inside};
          if (MODE == kVarying) root = bounded_root<T>(one_minus_square<T>(decay));
          const V d_scale = re(conj(read_numbers<T, CX>(a.b, b_at + c, n)) * h);
          d_a = d_a + decay * (T(-2) * root.slope * d_scale);
          d_b = h * root.value;
        }
        if (MODE == kFixed)
          here.segment = here.segment + d_a;
        else if (has(a.d_a))
          write_numbers(a.d_a, da_at + c, n, d_a);
      }
      if (has(a.d_b)) write_numbers(a.d_b, db_at + c, n, d_b);
      here.coming = start ? N{} : conj(decay) * h;
    }
  }
};

}  // namespace
#endif
