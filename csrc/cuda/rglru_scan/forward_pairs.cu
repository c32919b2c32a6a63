// `rglru_scan`, forward, two channels a lane: half as many loads and stores, each twice as wide, and twice as many
// bytes on their way while a block waits for its first.
#include "cell.cuh"

namespace nvsubq {
namespace {

constexpr int kWarps = RglruSizes<float>::warps, kSteps = RglruSizes<float>::steps;

// Two neighbouring elements as memory holds them.
template <int BYTES>
struct RawPair {
  using type = uint32_t;
};
template <>
struct RawPair<4> {
  using type = uint2;
};

template <int BYTES, int R>
__device__ __forceinline__ void ask(const nvsubq_tensor& t, const Chunk<R>& chunk, int channel,
                                    typename RawPair<BYTES>::type (&to)[R]) {
  using Raw = typename RawPair<BYTES>::type;
  if (chunk.visited < R) {
#pragma unroll
    for (int j = 0; j < R; ++j) to[j] = Raw{};
  }
  char* data = static_cast<char*>(t.data) + (chunk.row * t.stride[0] + channel) * BYTES;
  for_steps(chunk, chunk.visited, data, t.stride[1] * BYTES,
            [&](int j, char* p) { to[j] = __ldg(reinterpret_cast<const Raw*>(p)); });
}

__device__ __forceinline__ float2 opened(uint2 raw, bool) {
  return make_float2(__uint_as_float(raw.x), __uint_as_float(raw.y));
}
__device__ __forceinline__ float2 opened(uint32_t raw, bool brain) {
  if (brain) return make_float2(__uint_as_float(raw << 16), __uint_as_float(raw & 0xffff0000u));
  return __half22float2(*reinterpret_cast<const __half2*>(&raw));
}
__device__ __forceinline__ uint2 closed(float x, float y, bool, uint2) {
  return make_uint2(__float_as_uint(x), __float_as_uint(y));
}
__device__ __forceinline__ uint32_t closed(float x, float y, bool brain, uint32_t) {
  uint32_t raw;
  if (brain)
    *reinterpret_cast<__nv_bfloat162*>(&raw) = __floats2bfloat162_rn(x, y);
  else
    *reinterpret_cast<__half2*>(&raw) = __floats2half2_rn(x, y);
  return raw;
}

template <int BYTES>
__global__ void __launch_bounds__(kWarps * 32, 2)
    forward_pairs(const __grid_constant__ Rglru a, const __grid_constant__ Walk walk,
                  const __grid_constant__ Tiling tiling, const __grid_constant__ Links links) {
  using Raw = typename RawPair<BYTES>::type;
  constexpr int R = kSteps, kPart = BYTES == 2 ? R : R / 2;
  __shared__ TileMemory<float, kWarps> memory[2];
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) & 31;
  const TilePlace place(tiling, links, &memory[0].tile);
  const int first = (place.rank * tiling.warps + warp) * R;
  const Chunk<R> chunk(walk.steps(place.row, place.block), place.row, first, place.live);
  const bool brain = a.x.dtype == NVSUBQ_BF16;
  const RglruChannel<float> here[2] = {{a, place, 0}, {a, place, 1}};
  float decay[2][R], in[2][R];
#pragma unroll
  for (int from = 0; from < R; from += kPart) {  // what is asked for at once has to fit in registers
    const Chunk<kPart> part = chunk.template part<kPart>(from);
    Raw r[kPart], i[kPart], x[kPart];
    ask<BYTES>(a.r, part, place.channel, r);
    ask<BYTES>(a.i, part, place.channel, i);
    ask<BYTES>(a.x, part, place.channel, x);
    const uint32_t plain = here[0].unscaled_of(part);
#pragma unroll
    for (int j = 0; j < kPart; ++j) {
      const float2 r2 = opened(r[j], brain), i2 = opened(i[j], brain), x2 = opened(x[j], brain);
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const Opened<float> o = here[v].open_cell(v ? r2.y : r2.x, v ? i2.y : i2.x);
        const float opens = o.i.open * (v ? x2.y : x2.x);
        decay[v][from + j] = o.decay;
        in[v][from + j] = plain >> j & 1 ? opens : opens * o.norm;
      }
    }
  }
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    keep_state(chunk, decay[v], in[v]);
    float product = 1, s = 0;
    for_starts(chunk, [&](auto starts) {
#pragma unroll
      for (int j = 0; j < R; ++j) {
        s = starts(j) ? in[v][j] : fused(decay[v][j], s, in[v][j]);
        product = starts(j) ? 0.0f : product * decay[v][j];
      }
    });
    memory[v].product[warp][lane] = product, memory[v].sum[warp][lane] = s;
  }
  __syncthreads();
  for (int v = warp; v < 2; v += tiling.warps) {  // one warp for each: they wait side by side
    const float s = place.live ? read_state<float>(a.initial_state, place.row, place.channel + v) : 0.0f;
    memory[v].entering[lane] = linked<false>(memory[v], tiling, links, place, place.column(v, 2), s);
  }
  Link<float> before[2];
#pragma unroll
  for (int v = 0; v < 2; ++v) before[v] = chunks_before<false>(memory[v], tiling, warp);
  __syncthreads();
  const bool border = place.live && a.saved && first && first % RglruSizes<float>::tile_back == 0 && first < a.length;
  const int tile = first / RglruSizes<float>::tile_back - 1;
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    float s = fold(before[v].product, before[v].sum, memory[v].entering[lane]);
    if (border) {
      const int64_t at_border = int64_t(place.row) * borders(a.length, RglruSizes<float>::tile_back) + tile;
      static_cast<float*>(a.saved)[at_border * a.width + place.channel + v] = s;
    }
    for_starts(chunk, [&](auto starts) {
#pragma unroll
      for (int j = 0; j < R; ++j) in[v][j] = s = starts(j) ? in[v][j] : fused(decay[v][j], s, in[v][j]);
    });
    if (place.live && place.rank == tiling.tiles - 1 && warp == tiling.warps - 1)
      write_state(a.final_state, place.row, place.channel + v, s);
  }
  if (here[0].gated) {
    Raw gate[R];
    ask<BYTES>(a.gate, chunk, place.channel, gate);
#pragma unroll
    for (int j = 0; j < R; ++j) {
      const float2 g = opened(gate[j], brain);
      in[0][j] *= here[0].gelu(g.x).value, in[1][j] *= here[0].gelu(g.y).value;
    }
  }
#pragma unroll
  for (int v = 0; v < 2; ++v) clear_absent(chunk, in[v]);
  char* data = static_cast<char*>(a.y.data) + (chunk.row * a.y.stride[0] + place.channel) * BYTES;
  for_steps(chunk, chunk.exist, data, a.y.stride[1] * BYTES, [&](int j, char* p) {
    *reinterpret_cast<Raw*>(p) = closed(in[0][j], in[1][j], brain, Raw{});
  });
}

Tiling tiling_of(const Rglru& a) { return Tiling::of(a, kWarps, kSteps, true, 2); }

}  // namespace

bool in_pairs(const Rglru& a) {
  if (a.flags & NVSUBQ_DOUBLE || a.x.dtype == NVSUBQ_F64 || a.width / a.blocks % 2) return false;
  for (const nvsubq_tensor* t : {&a.x, &a.r, &a.i, &a.gate, &a.y})
    if (present(*t) && (t->dtype != a.x.dtype || !packs_fit(*t, 2))) return false;
  return true;
}

int64_t pairs_workspace(const Rglru& a) {
  Arena arena(nullptr);
  return Links::in<float>(arena, a, tiling_of(a)).bytes;
}

int forward_in_pairs(const Rglru& a, cudaStream_t stream) {
  const Tiling tiling = tiling_of(a);
  if (const int status = check_tiling(a, tiling)) return status;
  Arena arena(a.workspace);
  const Links links = Links::in<float>(arena, a, tiling);
  if (const int status = clear_links(links, stream)) return status;
  const auto kernel = a.x.dtype == NVSUBQ_F32 ? forward_pairs<4> : forward_pairs<2>;
  return launch("rglru_scan forward", kernel, dim3(unsigned(tiling.count(a))), dim3(tiling.warps * 32), 0, stream, a,
                Walk(a), tiling, links);
}

}  // namespace nvsubq
