// `selective_scan`, fast: what the backward and the carrying kernels share. A window of 64 steps of 32 channels lies in
// shared memory, laid out by all threads; then each warp walks over it with 8 channels. A lane has channels t and t + 4
// and states 2g and 2g + 1 of its warp's (t = lane % 4, g = lane / 4): a product of the tensor cores adds up over
// channels what d_B and d_C ask for, while sums over states go through shared memory.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_WINDOW_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_WINDOW_CUH

#include "fast.cuh"

namespace nvsubq::selective {

constexpr int kWindow = kBorder, kWarps = 4, kWide = 8 * kWarps;  // steps, warps of a block, channels
constexpr int kBackThreads = 32 * kWarps;
constexpr int kMostFast = 16;                                     // states
constexpr int kAtOnce = kBackThreads / (kWide / 4);               // steps that are laid out at once
constexpr int kRounds = kWindow / kAtOnce;
constexpr float kLn2 = 0.69314718056f;

// Walks are cut into pieces, by a rule of their length alone: how many there are must not show in a row's bits.
inline __host__ __device__ int64_t piece_steps(int64_t length) { return length > 8192 ? 512 : 1024; }
inline __host__ __device__ int64_t pieces_of(int64_t length) {
  const int64_t each = piece_steps(length);
  return length > 0 ? (length + each - 1) / each : 1;
}

// The inputs of a window, [channel][step] swizzled, and [step][state].
struct alignas(16) Window {
  float d[kWide][kWindow], w[kWide][kWindow], out[kWide][kWindow];
  float B[kWindow][kMostFast], C[kWindow][kMostFast];
  float bias[kWide], skip[kWide];
  Cells<kWindow> cells;

  // The parameters of the channels, to be read after a barrier.
  __device__ __forceinline__ void read_parameters(const Selective& a, int64_t first, int there) {
    const int c = threadIdx.x;
    if (c >= kWide) return;
    const auto read = [&](const nvsubq_tensor& t) {
      return has(t) && c < there ? read_any<float>(t, (first + c) * t.stride[0]) : 0.0f;
    };
    bias[c] = read(a.delta_bias), skip[c] = read(a.D);
  }
};

// What is laid out: all, or what states or their cotangents alone need.
enum class Part { all, forth, back };

// What lays a window out, and knows a thread's four channels.
template <class S>
struct Layer {
  const Selective& a;
  const Options& is;
  Window& m;
  int four, first_row, valid, place[4];
  Row<const S> u, delta, z, d_y, B, C;
  float bias[4], skip[4];

  __device__ __forceinline__ Layer(const Selective& args, const Options& options, Window& memory, int64_t row,
                                   int64_t first, int there, int64_t group)
      : a(args), is(options), m(memory), four(threadIdx.x % (kWide / 4)), first_row(threadIdx.x / (kWide / 4)),
        valid(there - 4 * four), u(args.u, row, first + (valid > 0 ? 4 * four : 0)),
        delta(args.delta, row, first + (valid > 0 ? 4 * four : 0)),
        z(options.gated ? args.z : args.u, row, first + (valid > 0 ? 4 * four : 0)),
        d_y(args.d_y, row, first + (valid > 0 ? 4 * four : 0)), B(args.B, row, group * args.B.stride[2]),
        C(args.C, row, group * args.C.stride[2]) {
    valid = valid < 0 ? 0 : valid > 4 ? 4 : valid;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      bias[j] = m.bias[4 * four + j], skip[j] = m.skip[4 * four + j];
      place[j] = (4 * four + j) * kWindow + swizzle(4 * four + j, first_row);
    }
  }
  // Where step first_row + i kAtOnce of channel j lies.
  __device__ __forceinline__ int at(int j, int i) const { return place[j] ^ (i * kAtOnce); }
  __device__ __forceinline__ int32_t cell(int i) const { return m.cells.cell[first_row + i * kAtOnce]; }
  // The rows of d_y and z are those of channels that are there, but a cut row's cotangents must be 0.
  __device__ __forceinline__ bool counts(int j) const { return j < valid; }

  // A window's inputs, or a part of them, all asked for before the first is used.
  template <bool WHOLE, Part PART>
  __device__ __forceinline__ void lay(int steps) const {
    constexpr bool kForth = PART != Part::back, kBack = PART != Part::forth;
    constexpr int kStateRounds = kWindow * 4 / kBackThreads, kStateRows = kBackThreads / 4;
    Pack<S, 4> u_of[kRounds], delta_of[kRounds], z_of[kRounds], d_y_of[kRounds], B_of[kStateRounds], C_of[kStateRounds];
    const int k = threadIdx.x / 4, n = threadIdx.x % 4 * 4, left = int(a.states) - n;
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int32_t from = some_cell(cell(i));
      delta_of[i] = load_four<WHOLE>(delta.at(from), valid);
      if constexpr (kBack) {
        z_of[i] = load_four<WHOLE>(z.at(from), valid);
        d_y_of[i] = load_four<WHOLE>(d_y.at(from), valid);
      }
      if constexpr (kForth) u_of[i] = load_four<WHOLE>(u.at(from), valid);
    }
#pragma unroll
    for (int i = 0; i < kStateRounds; ++i) {
      const int32_t from = some_cell(m.cells.cell[k + i * kStateRows]);
      if constexpr (kBack) C_of[i] = load_four<WHOLE>(C.at(from) + (left > 0 ? n : 0), left);
      if constexpr (kForth) B_of[i] = load_four<WHOLE>(B.at(from) + (left > 0 ? n : 0), left);
    }
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      if (i * kAtOnce >= steps) break;
      const bool here = cell(i) >= 0;
      float deltas[4], us[4], zs[4], d_ys[4];
      unpack(delta_of[i], deltas);
      if constexpr (kBack) unpack(z_of[i], zs), unpack(d_y_of[i], d_ys);
      if constexpr (kForth) unpack(u_of[i], us);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float raw = deltas[j] + bias[j], soft = fast_softplus(raw), d = is.soft ? soft : raw;
        (&m.d[0][0])[at(j, i)] = here ? d : 0.0f;
        if constexpr (kForth) (&m.w[0][0])[at(j, i)] = here ? d * us[j] : 0.0f;
        if constexpr (kBack) {
          const float gate = zs[j] * fast_sigmoid(zs[j]), out = is.gated ? d_ys[j] * gate : d_ys[j];
          (&m.out[0][0])[at(j, i)] = here && counts(j) ? out : 0.0f;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kStateRounds; ++i) {
      const auto put = [&](const Pack<S, 4>& from, float(&to)[kMostFast]) {
        alignas(16) float x[4];
        unpack(from, x);
#pragma unroll
        for (int j = 0; j < 4; ++j) x[j] = left > 0 ? x[j] : 0.0f;
        *reinterpret_cast<float4*>(&to[n]) = *reinterpret_cast<float4*>(x);
      };
      if constexpr (kForth) put(B_of[i], m.B[k + i * kStateRows]);
      if constexpr (kBack) put(C_of[i], m.C[k + i * kStateRows]);
    }
  }
};

// Where a block works: channels first .. of one chunk and group, steps begin .. end of one piece of a row's walk.
struct Piece {
  int64_t row, piece, number, chunk, group, begin, end;  // number: of the piece, over all rows

  __device__ __forceinline__ Piece(const Selective& a, const Chunks& chunks, int64_t index) {
    const int64_t pieces = pieces_of(a.length), each = piece_steps(a.length);
    chunk = index % chunks.count, number = index / chunks.count;
    row = number / pieces, piece = number % pieces;
    group = chunk / chunks.per_group;
    begin = piece * each, end = begin + each < a.length ? begin + each : a.length;
  }
};

inline Options options_of(const Selective& a) {
  Options is;
  is.soft = a.flags & NVSUBQ_SOFTPLUS, is.gated = present(a.z);
  is.whole = a.width / a.groups % 4 == 0 && a.states % 4 == 0 && a.B.stride[2] % 4 == 0 && a.C.stride[2] % 4 == 0;
  for (const nvsubq_tensor* t : {&a.u, &a.delta, &a.z, &a.y, &a.B, &a.C, &a.d_y, &a.d_u, &a.d_delta, &a.d_z})
    is.whole = is.whole && packs_fit(*t, 4);
  return is;
}

// A number that the compiler knows nothing of, so that what depends on it is made anew and takes no registers before.
__device__ __forceinline__ int64_t hidden(int64_t x) {
  asm volatile("" : "+l"(x));
  return x;
}

// Where walks are cut into pieces: puts the states that enter each piece, [pieces][D][N], or the cotangents that
// arrive at its end. `sums` [pieces][D] is scratch.
template <class S>
int carry(const Selective& a, bool forth, const Options& is, float* arriving, float* sums, cudaStream_t stream);

}  // namespace nvsubq::selective

#endif
