// `ssd_scan`: what the passes share. The walk is cut into chunks of a tile's side, and all heavy work is products of
// square tiles (Dao & Gu 2024, arXiv:2405.21060): cells by cells, cells by lanes of a head, cells by states, lanes by
// states. Wider heads and more states are more tiles. Chunks lie in segments, between which a walk is cut so that a
// long one fills the device; how it is cut depends on its length alone.
#ifndef NVSUBQ_CUDA_SSD_SCAN_COMMON_CUH
#define NVSUBQ_CUDA_SSD_SCAN_COMMON_CUH

#include "../math.cuh"
#include "../storage.cuh"
#include "../walk.cuh"

namespace nvsubq::ssd {

using Ssd = nvsubq_ssd_scan_args;

constexpr int64_t kSegmentCells = 1024;
// Bytes of chunks' states that are in memory at a time, at least, and for each element of x. A call runs in rounds of
// as many segments as fit.
constexpr int64_t kRoundBytes = int64_t(64) << 20, kRoundElementBytes = 4;

inline bool in_double(const Ssd& a) { return a.flags & NVSUBQ_DOUBLE; }
// At least one, so that a walk without cells has its states too.
inline int64_t segments(const Ssd& a) { return a.length > 0 ? ceil_div(a.length, kSegmentCells) : 1; }
// Elements of the states at the borders between segments, [B][segments - 1][H][P][N].
inline int64_t border_elements(const Ssd& a) {
  return a.batch * (segments(a) - 1) * a.width * a.states;
}

// How a call is cut; the unit of a round is one segment of one row.
struct Plan {
  int64_t chunks, segment_chunks, segments, units, round_units, steps;
  int lane_tiles, state_tiles;

  Plan(const Ssd& a, int side, int64_t tile_bytes, bool backward)
      : chunks(ceil_div(a.length, side)),
        segment_chunks(kSegmentCells / side < chunks ? kSegmentCells / side : chunks),
        segments(nvsubq::ssd::segments(a)),
        units(a.batch * segments),
        steps(chunks * side),
        lane_tiles(int(ceil_div(a.head_width, side))),
        state_tiles(int(ceil_div(a.states, side))) {
    const int64_t bytes = segment_chunks * tiles(a) * tile_bytes * (backward ? 2 : 1);
    const int64_t wide = a.batch * a.length * a.width * kRoundElementBytes;
    const int64_t room = wide > kRoundBytes ? wide : kRoundBytes;
    const int64_t fit = bytes ? room / bytes : units, rounds = ceil_div(units, fit < 1 ? 1 : fit);
    round_units = rounds ? ceil_div(units, rounds) : 0;
  }
  // Of all heads' states after one cell.
  NVSUBQ_ANYWHERE int64_t tiles(const Ssd& a) const { return a.heads * lane_tiles * state_tiles; }
};

// A call as kernels take it. T is the compute dtype; hi + lo is a running sum of Δ A within a chunk: in one float,
// the difference of two of them would lose the small steps after a large one.
template <class Math>
struct Call {
  using T = typename Math::T;

  Ssd a;
  Walk walk;
  Plan plan;
  int64_t first_unit = 0;  // of this round
  T *delta = nullptr, *hi = nullptr, *lo = nullptr;  // [B][H][steps]
  T *borders = nullptr, *spans = nullptr;        // spans: the decay over each segment, [units][H]
  T *d_borders = nullptr;
  // States that enter chunks, and the gradients of those that leave them.
  typename Math::Stored *states = nullptr, *d_states = nullptr;
  T *by_rate = nullptr, *by_bias = nullptr, *by_skip = nullptr;  // [B][chunks][H], the last one with P

  Call(const Ssd& args, bool backward) : a(args), walk(args), plan(args, Math::kSide, Math::kTileBytes, backward) {}

  // Lays out the workspace, or counts its bytes where that is null.
  int64_t take(void* memory, bool backward, bool keeps_states) {
    Arena arena(memory);
    const int64_t cells = a.batch * a.heads * plan.steps, parts = a.batch * plan.chunks * a.heads;
    delta = arena.take<T>(cells), hi = arena.take<T>(cells), lo = arena.take<T>(cells);
    spans = arena.take<T>(plan.units * a.heads);
    const int64_t units = keeps_states ? plan.round_units : 0;
    const int64_t tiles = units * plan.segment_chunks * plan.tiles(a) * Math::kTileBytes;
    states = reinterpret_cast<typename Math::Stored*>(arena.take<char>(tiles));
    borders = static_cast<T*>(a.saved);
    if (!a.saved) borders = arena.take<T>(border_elements(a));
    if (backward) {
      d_states = reinterpret_cast<typename Math::Stored*>(arena.take<char>(tiles));
      d_borders = arena.take<T>(border_elements(a));
      by_rate = arena.take<T>(parts), by_bias = arena.take<T>(parts), by_skip = arena.take<T>(parts * a.head_width);
    }
    return arena.bytes();
  }

  __device__ int64_t group(int64_t head) const { return head / (a.heads / a.groups); }
  __device__ int64_t block(int64_t head) const { return head / (a.heads / a.blocks); }
  // Of the state after segment s - 1, s >= 1, at [h][p][n].
  __device__ int64_t border(int64_t row, int64_t segment, int64_t head) const {
    return ((row * (plan.segments - 1) + segment - 1) * a.heads + head) * a.head_width * a.states;
  }
  // One number of the state that enters a segment.
  __device__ __forceinline__ T entering(int64_t row, int64_t segment, int64_t head, int p, int n) const {
    if (segment) return borders[border(row, segment, head) + p * a.states + n];
    return present(a.initial_state) ? read_any<T>(a.initial_state, at(a.initial_state, row, head, p) + n) : T(0);
  }
  // A tile of a chunk's state; `unit` is counted from the round's first, `chunk` within the segment.
  __device__ int64_t tile(int64_t unit, int64_t chunk, int64_t head, int lanes, int states) const {
    const int64_t place = (unit * plan.segment_chunks + chunk) * a.heads + head;
    return ((place * plan.lane_tiles + lanes) * plan.state_tiles + states) * Math::kTileElements;
  }
};

}  // namespace nvsubq::ssd

#endif
