// First-order recurrences, forward, two neighbouring channels a lane: half as many loads and stores, each twice as
// wide, for tensors [B, L, D] of one dtype of at most 32 bits whose pairs lie on multiples of their size.
#ifndef NVSUBQ_CUDA_PAIRS_CUH
#define NVSUBQ_CUDA_PAIRS_CUH

#include "chain.cuh"

namespace nvsubq {

// Two neighbouring elements, as memory holds them.
template <class S>
using RawPair = std::conditional_t<sizeof(S) == 4, uint2, uint32_t>;

template <class S>
__device__ __forceinline__ float2 opened(RawPair<S> raw) {
  if constexpr (std::is_same_v<S, float>)
    return make_float2(__uint_as_float(raw.x), __uint_as_float(raw.y));
  else if constexpr (std::is_same_v<S, bf16>)
    return make_float2(bf16_of(raw, 0), bf16_of(raw, 1));
  else
    return __half22float2(*reinterpret_cast<const __half2*>(&raw));
}
template <class S>
__device__ __forceinline__ RawPair<S> closed(float x, float y) {
  RawPair<S> raw;
  if constexpr (std::is_same_v<S, float>)
    raw = make_uint2(__float_as_uint(x), __float_as_uint(y));
  else if constexpr (std::is_same_v<S, bf16>)
    *reinterpret_cast<__nv_bfloat162*>(&raw) = __floats2bfloat162_rn(x, y);
  else
    *reinterpret_cast<__half2*>(&raw) = __floats2half2_rn(x, y);
  return raw;
}

// The pairs of a chunk; zeros at steps that are not visited.
template <int R, class Raw>
__device__ __forceinline__ void load_pairs(const nvsubq_tensor& t, const Chunk<R>& chunk, int channel, Raw (&to)[R]) {
  constexpr int kBytes = int(sizeof(Raw)) / 2;
  if (chunk.visited < R) {
#pragma unroll
    for (int j = 0; j < R; ++j) to[j] = Raw{};
  }
  char* data = static_cast<char*>(t.data) + (chunk.row * t.stride[0] + channel) * kBytes;
  for_steps(chunk, chunk.visited, data, t.stride[1] * kBytes,
            [&](int j, char* p) { to[j] = __ldg(reinterpret_cast<const Raw*>(p)); });
}
// Writes them; zeros at the cells that are not there.
template <class S, int R>
__device__ __forceinline__ void store_pairs(const nvsubq_tensor& t, const Chunk<R>& chunk, int channel,
                                            float (&x)[2][R]) {
  constexpr int kBytes = int(sizeof(S));
  clear_absent(chunk, x[0]), clear_absent(chunk, x[1]);
  char* data = static_cast<char*>(t.data) + (chunk.row * t.stride[0] + channel) * kBytes;
  for_steps(chunk, chunk.exist, data, t.stride[1] * kBytes,
            [&](int j, char* p) { *reinterpret_cast<RawPair<S>*>(p) = closed<S>(x[0][j], x[1][j]); });
}

// Turns the inputs of a chunk into its states. `saved` has the states that enter tiles of `tile_back` steps. The two
// channels are walked SIDE_BY_SIDE, so that neither waits for itself, where there are registers for that.
template <int REACH, bool SIDE_BY_SIDE, class Args, int WARPS, int R>
__device__ __forceinline__ void scan_pairs(const Args& a, TileMemory<float, WARPS> (&memory)[2], const Tiling& tiling,
                                           const Links& links, const TilePlace& place, const Chunk<R>& chunk,
                                           int tile_back, const float (&decay)[2][R], float (&in)[2][R]) {
  constexpr int kTogether = SIDE_BY_SIDE ? 2 : 1;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) & 31;
  const auto walk = [&](int first, auto step) {  // step(starts, j, v)
    for_starts(chunk, [&](auto starts) {
#pragma unroll
      for (int j = 0; j < R; ++j)
#pragma unroll
        for (int v = first; v < first + kTogether; ++v) step(starts(j), j, v);
    });
  };
#pragma unroll
  for (int first = 0; first < 2; first += kTogether) {
    float product[2] = {1, 1}, s[2] = {0, 0};
    walk(first, [&](bool starts, int j, int v) {
      s[v] = starts ? in[v][j] : fused(decay[v][j], s[v], in[v][j]);
      product[v] = starts ? 0.0f : product[v] * decay[v][j];
    });
#pragma unroll
    for (int v = first; v < first + kTogether; ++v)
      memory[v].product[warp][lane] = product[v], memory[v].sum[warp][lane] = s[v];
  }
  __syncthreads();
  for (int v = warp; v < 2; v += tiling.warps) {  // a warp for each: they wait side by side
    const float s = place.live ? read_state<float>(a.initial_state, place.row, place.channel + v) : 0.0f;
    memory[v].entering[lane] = linked<false, REACH>(memory[v], tiling, links, place, place.column(v, 2), s);
  }
  Link<float> before[2];
#pragma unroll
  for (int v = 0; v < 2; ++v) before[v] = chunks_before<false>(memory[v], tiling, warp);
  __syncthreads();
  const bool border = place.live && a.saved && chunk.first && chunk.first % tile_back == 0 && chunk.first < a.length;
  const int64_t tile = int64_t(place.row) * borders(a.length, tile_back) + chunk.first / tile_back - 1;
  const bool last = place.live && place.rank == tiling.tiles - 1 && warp == tiling.warps - 1;
#pragma unroll
  for (int first = 0; first < 2; first += kTogether) {
    float s[2];
#pragma unroll
    for (int v = first; v < first + kTogether; ++v) {
      s[v] = before[v].after(memory[v].entering[lane]);
      if (border) static_cast<float*>(a.saved)[tile * a.width + place.channel + v] = s[v];
    }
    walk(first, [&](bool starts, int j, int v) {
      in[v][j] = s[v] = starts ? in[v][j] : fused(decay[v][j], s[v], in[v][j]);
    });
#pragma unroll
    for (int v = first; v < first + kTogether; ++v)
      if (last) write_state(a.final_state, place.row, place.channel + v, s[v]);
  }
}

// Whether channels pair up; and whether a tensor that is there has this dtype and pairs on multiples of their size.
template <class Args>
bool pairs_up(const Args& a) {
  return a.blocks > 0 && a.width / a.blocks % 2 == 0 && !(a.flags & NVSUBQ_DOUBLE);
}
inline bool lies_in_pairs(const nvsubq_tensor& t, int32_t dtype) {
  return !present(t) || (t.dtype == dtype && !(t.flags & NVSUBQ_COMPLEX) && packs_fit(t, 2));
}

}  // namespace nvsubq

#endif
