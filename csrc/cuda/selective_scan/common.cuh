// `selective_scan` on CUDA: the shape of the work, and what a forward leaves to its backward.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_COMMON_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_COMMON_CUH

#include "../launch.h"
#include "../storage.cuh"
#include "../walk.cuh"

namespace nvsubq::selective {

using Selective = nvsubq_selective_scan_args;

// A forward keeps the states that enter every step that is a multiple of this, but for the first.
constexpr int kBorder = 64;
inline __host__ __device__ int64_t borders(int64_t length) { return length > 0 ? (length - 1) / kBorder : 0; }

inline bool in_double(const Selective& a) { return a.flags & NVSUBQ_DOUBLE; }
inline __host__ __device__ bool is_complex(const nvsubq_tensor& t) { return t.flags & NVSUBQ_COMPLEX; }
inline __host__ __device__ int64_t parts_of(const nvsubq_tensor& t) { return is_complex(t) ? 2 : 1; }
__host__ __device__ __forceinline__ bool has(const nvsubq_tensor& t) { return t.flags & NVSUBQ_PRESENT; }

inline __host__ __device__ bool is_exponential(int64_t kind) {
  return kind == NVSUBQ_MAMBA || kind == NVSUBQ_ZOH || kind == NVSUBQ_DIRAC;
}
// Whether the input's factor is more than delta or 1, and whether it has delta at all.
inline __host__ __device__ bool has_scale(int64_t kind) { return kind == NVSUBQ_ZOH || kind == NVSUBQ_BILINEAR; }
inline __host__ __device__ bool scales_input(int64_t kind) { return kind == NVSUBQ_MAMBA || has_scale(kind); }

// Channels whose gradients of B and C are added up before they are written. They depend on the width alone.
constexpr int64_t kChunk = 128;

struct Chunks {
  int64_t groups, run, width, per_group, count;

  explicit Chunks(const Selective& a) {
    const int64_t fixed = NVSUBQ_FIXED_B | NVSUBQ_FIXED_C;
    groups = (a.flags & fixed) == fixed ? a.blocks : a.groups;  // where nothing has groups, blocks have walks
    run = a.width / groups;
    width = run < kChunk ? (run > 0 ? run : 1) : kChunk;
    per_group = ceil_div(run, width);
    count = per_group * groups;
  }
};

// Element n of a tensor by state: [D, N] where it is fixed, else [B, L, G, N].
__device__ __forceinline__ int64_t by_state(const nvsubq_tensor& t, bool fixed, int64_t row, int64_t cell,
                                            int64_t group, int64_t channel, int64_t n) {
  return fixed ? channel * t.stride[0] + n * t.stride[1]
               : row * t.stride[0] + cell * t.stride[1] + group * t.stride[2] + n * t.stride[3];
}

// Partial sums of a backward: over the channels of a chunk, by cell, and over a piece of a walk, by channel. A piece
// is a row, or a part of one.
template <class T>
struct Partials {
  int64_t length, states, width, chunks, pieces;
  struct Cells {  // [B][L][chunks][N][parts], where the tensor is by cell
    T* sums;
    int64_t parts;
  } B, C, gate;
  struct Channels {  // [pieces][D][N][parts]
    T* sums;
    int64_t parts;
  } A, fixed_B, fixed_C, fixed_gate;
  T* times;            // [B][L][chunks]
  T *D, *bias, *step;  // [pieces][D]

  Partials(Arena& arena, const Selective& a, int64_t chunk_count, int64_t piece_count)
      : length(a.length), states(a.states), width(a.width), chunks(chunk_count), pieces(piece_count) {
    const int64_t cells = a.batch * length * chunks, channels = pieces * width;
    A = {arena.take<T>(channels * states * parts_of(a.A)), parts_of(a.A)};
    take(arena, a.B, a.flags & NVSUBQ_FIXED_B, cells, channels, B, fixed_B);
    take(arena, a.C, a.flags & NVSUBQ_FIXED_C, cells, channels, C, fixed_C);
    take(arena, a.decay_gate, a.flags & NVSUBQ_FIXED_GATE, cells, channels, gate, fixed_gate);
    times = has(a.timesteps) ? arena.take<T>(cells) : nullptr;
    D = has(a.D) ? arena.take<T>(channels) : nullptr;
    bias = has(a.delta_bias) ? arena.take<T>(channels) : nullptr;
    step = has(a.timesteps) ? arena.take<T>(channels) : nullptr;
  }

  __device__ __forceinline__ T* of(const Cells& c, int64_t row, int64_t cell, int64_t chunk, int64_t n) const {
    return c.sums + (((row * length + cell) * chunks + chunk) * states + n) * c.parts;
  }
  __device__ __forceinline__ T* of(const Channels& c, int64_t piece, int64_t channel, int64_t n) const {
    return c.sums + ((piece * width + channel) * states + n) * c.parts;
  }

 private:
  void take(Arena& arena, const nvsubq_tensor& t, bool fixed, int64_t cells, int64_t channels, Cells& by_cell,
            Channels& by_channel) {
    const int64_t parts = has(t) ? parts_of(t) : 0;
    by_cell = {fixed || !parts ? nullptr : arena.take<T>(cells * states * parts), fixed ? 0 : parts};
    by_channel = {fixed && parts ? arena.take<T>(channels * states * parts) : nullptr, fixed ? parts : 0};
  }
};

// Adds the partial sums up into the gradients, in the same order every time.
template <class T>
int add_up(const Selective& a, const Partials<T>& partials, int64_t groups, cudaStream_t stream);

constexpr int64_t kMostStates = 256;

int general_forward(const Selective& a, cudaStream_t stream);
int general_backward(const Selective& a, void* memory, cudaStream_t stream);

}  // namespace nvsubq::selective

#endif
