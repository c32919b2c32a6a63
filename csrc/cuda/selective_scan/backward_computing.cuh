// `selective_scan`, backward, fast: the walk of a warp over a window, with sixteen channels.
#ifndef NVSUBQ_CUDA_SELECTIVE_SCAN_BACKWARD_COMPUTING_CUH
#define NVSUBQ_CUDA_SELECTIVE_SCAN_BACKWARD_COMPUTING_CUH

#include "backward_inputs.cuh"
#include "channel_sums.cuh"

namespace nvsubq::selective {

// A lane's states of its channel, and the tiles that it walks over with them.
template <class S, bool USUAL>
struct Tiles {
  Window& m;
  const Maker<S, USUAL>& maker;
  float A[kHeld], q[kHeld], d_A[kHeld] = {};  // q: the cotangent of the states that come next, as it arrives
  float skip, d_skip = 0, d_bias = 0;
  const ChannelSums<kExact<S>> sums;

  __device__ __forceinline__ Tiles(Window& memory, const Maker<S, USUAL>& with, const Place& p)
      : m(memory), maker(with), sums(p.g, &m.slots[0][p.warp].numbers[p.lane]) {}

  // Between tiles, in slots and in B; between B and C; between a lane's two times four states in a slot; of d in one.
  static constexpr int kSlot = sizeof(Slot) / sizeof(float) * kWarps, kStates = kTile * kMostFast;
  static constexpr int kToC = kWindow * kMostFast, kUpper = 128, kLaid = kOwn * kTile, kPair = 2 * kTile;

  static __device__ __forceinline__ void put(float* to, const float (&x)[4]) {
    *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
  }
  static __device__ __forceinline__ void put(float* to, const float (&x)[2]) {
    *reinterpret_cast<float2*>(to) = make_float2(x[0], x[1]);
  }
  static __device__ __forceinline__ void read(const float* from, float (&to)[4]) {
    const float4 x = *reinterpret_cast<const float4*>(from);
    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
  }
  static __device__ __forceinline__ void read(const float* from, float (&to)[2]) {
    const float2 x = *reinterpret_cast<const float2*>(from);
    to[0] = x.x, to[1] = x.y;
  }
  static __device__ __forceinline__ void put_entering(float* to, const float (&h)[kHeld]) {
    *reinterpret_cast<float4*>(to) = make_float4(h[0], h[1], h[2], h[3]);
    *reinterpret_cast<float4*>(to + kUpper) = make_float4(h[4], h[5], h[6], h[7]);
  }
  template <bool STARTS>
  static __device__ __forceinline__ float decay(float d, float rate, uint32_t starts, int j) {
    const float x = exp2_of(d * rate);
    return STARTS && (starts >> j & 1) ? 0.0f : x;
  }
  template <bool STARTS>
  __device__ __forceinline__ uint32_t starts_of(int which, int step) const {
    return STARTS ? m.cells[which].starts[step / 32] >> (step % 32) : 0;
  }
  template <bool STARTS>
  __device__ __forceinline__ void step_on(float (&h)[kHeld], const float* B, const float (&d)[4], const float (&w)[4],
                                          uint32_t starts) const {
#pragma unroll
    for (int j = 0; j < kTile; ++j)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float b[4];
        read(B + kMostFast * j + 4 * r, b);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          h[4 * r + i] = fmaf(decay<STARTS>(d[j], A[4 * r + i], starts, j), h[4 * r + i], b[i] * w[j]);
      }
  }

  // The states that enter each tile, from those that enter the window. Two tiles' inputs are made at once.
  template <bool STARTS>
  __device__ __forceinline__ void ahead(float (&h)[kHeld], int which, int tiles, const Packets<S, kPair>& packets,
                                        typename Packets<S, kPair>::Asked asked) const {
    const Place p(this_thread());
    const Reader<S, kPair> reader(p);
    float* slot = m.slots[0][p.warp].numbers;
    const float* B = &m.B[0][kHeld * p.half];
    const int32_t* cells = m.cells[which].cell;
    const int put_at = (p.two * kOwn + p.made) * kTile, read_at = p.own * kTile;
    put_entering(slot + 4 * p.lane, h);
#pragma unroll 1
    for (int e = 0; e < tiles - 1; e += 2) {
      slot += kSlot;
      packets.put(slot, p.lane, asked);
      __syncwarp();
      TwoSteps<S> x[4];
      reader.read(slot, x);
      const int32_t* const these = cells + p.two * kTile;
      if (e + 3 < tiles) cells += kPair;
      packets.template ask<USUAL>(asked, cells);
      float d[4], w[4], more_d[4], more_w[4];
      maker.make(x, these, d, w);
      __syncwarp();
      put(slot + put_at, d), put(slot + put_at + 2 * kLaid, w);
      __syncwarp();
      read(slot + read_at, d), read(slot + read_at + 2 * kLaid, w);
      read(slot + read_at + kLaid, more_d), read(slot + read_at + 3 * kLaid, more_w);
      __syncwarp();
      step_on<STARTS>(h, B, d, w, starts_of<STARTS>(which, kTile * e));
      put_entering(slot + 4 * p.lane, h);
      slot += kSlot, B += 2 * kStates;
      if (e + 2 == tiles) break;
      step_on<STARTS>(h, B - kStates, more_d, more_w, starts_of<STARTS>(which, kTile * (e + 1)));
      if (e + 2 < tiles) put_entering(slot + 4 * p.lane, h);
    }
  }

  // What a tile is walked over with.
  struct Tile {
    float before[2][4], d[4], w[4], out[4];
  };
  // Sums over a lane's states, of each step: of c h, of b times the cotangents of the states, and of A times those of
  // the decays' logarithms; and over the warp's channels: see `ChannelSums::add`.
  struct Sums {
    float y[4] = {}, by_w[4] = {}, by_d[4] = {}, channels[4] = {};
  };

  // The states forth, and the cotangents back.
  template <bool STARTS>
  __device__ __forceinline__ Sums walk(const Tile& tile, const float* B, uint32_t starts) {
    Sums of;
    const auto half_back = [&](auto which_states) {
      constexpr int r = decltype(which_states)::value;
      float a[4][4], h[4][4];
      typename ChannelSums<kExact<S>>::Turned by_C, by_B;
#pragma unroll
      for (int j = 0; j < kTile; ++j) {
        float b[4], product[4];
        read(B + kMostFast * j + 4 * r, b);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          a[j][i] = decay<STARTS>(tile.d[j], A[4 * r + i], starts, j);
          h[j][i] = fmaf(a[j][i], j ? h[j - 1][i] : tile.before[r][i], b[i] * tile.w[j]);
          product[i] = h[j][i] * tile.out[j];
        }
        sums.turn(by_C, j, product);
      }
      sums.template add<r>(of.channels, by_C);
#pragma unroll
      for (int j = kTile - 1; j >= 0; --j) {
        float b[4], c[4], product[4];
        read(B + kMostFast * j + 4 * r, b), read(B + kToC + kMostFast * j + 4 * r, c);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& arriving = q[4 * r + i];
          const float h_bar = fmaf(c[i], tile.out[j], arriving);
          arriving = a[j][i] * h_bar;
          const float l = arriving * (j ? h[j - 1][i] : tile.before[r][i]);
          d_A[4 * r + i] = fmaf(l, tile.d[j], d_A[4 * r + i]);
          of.by_w[j] = fmaf(b[i], h_bar, of.by_w[j]);
          of.y[j] = fmaf(c[i], h[j][i], of.y[j]);
          of.by_d[j] = fmaf(A[4 * r + i], l, of.by_d[j]);
          product[i] = h_bar * tile.w[j];
        }
        sums.turn(by_B, j, product);
      }
      sums.template add<2 + r>(of.channels, by_B);
    };
    half_back(std::integral_constant<int, 0>());
    half_back(std::integral_constant<int, 1>());
    return of;
  }

  // Back over a window's tiles. What a tile leaves is written while the next one's inputs are made: much of either is
  // waiting.
  template <bool STARTS>
  __device__ __forceinline__ void back(int which, int tiles, const Packets<S, kTile>& packets,
                                       const Packets<S, kTile>& gradients, typename Packets<S, kTile>::Asked asked) {
    const Place p(this_thread());
    const Reader<S, kTile> reader(p);
    float* slot = m.slots[tiles - 1][p.warp].numbers;
    const float* B = &m.B[kTile * (tiles - 1)][kHeld * p.half];
    const int32_t* cells = m.cells[which].cell + kTile * (tiles - 1);
    float* const parked = &m.parked[p.warp * 32].x;
    int lane = p.lane, half = p.half, made = 2 * p.made + p.two, own = 2 * p.own + p.half;  // the last: of two steps
    int sums_at = Slot::sum_at(p.g / 4, (p.t < 2 ? 16 : 0) + 4 * (p.t % 2) + p.g % 4);
    asm volatile("" : "+r"(lane), "+r"(own), "+r"(made), "+r"(half), "+r"(sums_at));  // else made anew for each tile
    Tile tile;
    TwoSteps<S> x[4];
    const auto take = [&](float* from) {
      read(from + 4 * lane, tile.before[0]), read(from + 4 * lane + kUpper, tile.before[1]);
      __syncwarp();
      packets.put(from, lane, asked);
    };
    const auto put_inputs = [&](float* to, const typename Maker<S, USUAL>::Made& of) {
      put(to + 2 * made, of.d), put(to + 2 * made + kLaid, of.w), put(to + 2 * made + 2 * kLaid, of.out);
      put(to + 2 * made + 3 * kLaid, of.u);
      *reinterpret_cast<float4*>(parked + 4 * made) = make_float4(of.slope[0], of.slope[1], of.by_z[0], of.by_z[1]);
    };
    const auto read_inputs = [&](const float* from) {
      const float* const of_channel = from + p.own * kTile;
      read(of_channel, tile.d), read(of_channel + kLaid, tile.w), read(of_channel + 2 * kLaid, tile.out);
    };
    take(slot);
    __syncwarp();
    {
      reader.read(slot, x);
      packets.template ask<USUAL>(asked, tiles > 1 ? cells - kTile : cells);
      const auto inputs = maker.make(x, cells + 2 * (made & 1));
      __syncwarp();
      put_inputs(slot, inputs);
    }
    __syncwarp();
    read_inputs(slot);
#pragma unroll 1
    for (int e = tiles - 1;; --e) {
      const Sums of = walk<STARTS>(tile, B, starts_of<STARTS>(which, kTile * e));
      // Each of a channel's two lanes takes two of the steps.
      float y[2], by_w[2], by_d[2], u[2], d[2], out[2], also[4];
      const auto send = [&](const float (&from)[4], float (&to)[2]) {
#pragma unroll
        for (int i = 0; i < 2; ++i) to[i] = __shfl_xor_sync(~0u, half ? from[i] : from[2 + i], 4);
      };
      send(of.y, y), send(of.by_w, by_w), send(of.by_d, by_d);
      read(slot + 2 * own, d), read(slot + 2 * own + 2 * kLaid, out), read(slot + 2 * own + 3 * kLaid, u);
      read(parked + 4 * own, also);
      if (e)
        take(slot - kSlot);
      else
        __syncwarp();
      S* const to = reinterpret_cast<S*>(slot) + 2 * half * kOwn + p.own;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        y[i] += half ? of.y[2 + i] : of.y[i], by_w[i] += half ? of.by_w[2 + i] : of.by_w[i];
        by_d[i] += half ? of.by_d[2 + i] : of.by_d[i];
        const float dd = fmaf(by_d[i], kLn2, u[i] * by_w[i]) * also[i];
        d_skip = fmaf(out[i], u[i], d_skip), d_bias += dd;
        to[i * kOwn] = narrow<S>(fmaf(d[i], by_w[i], skip * out[i]));
        to[(kTile + i) * kOwn] = narrow<S>(dd);
        to[(2 * kTile + i) * kOwn] = narrow<S>(also[2 + i] * fmaf(skip, u[i], y[i]));
      }
      __syncwarp();
      const auto leaving = gradients.take(slot, lane);
      const int32_t leaving_to = cells[gradients.step];
      float *const sum_to = slot + sums_at, *const upper_to = slot + (sums_at ^ 8);
      const auto put_sums = [&] {
        sum_to[0] = of.channels[0], sum_to[64] = of.channels[1];
        upper_to[0] = of.channels[2], upper_to[64] = of.channels[3];
      };
      if (e == 0) {
        gradients.template write<USUAL>(leaving, leaving_to);
        __syncwarp();
        put_sums();
        return;
      }
      slot -= kSlot, B -= kStates, cells -= kTile;
      reader.read(slot, x);
      packets.template ask<USUAL>(asked, e > 1 ? cells - kTile : cells);
      gradients.template write<USUAL>(leaving, leaving_to);
      const auto inputs = maker.make(x, cells + 2 * (made & 1));
      __syncwarp();
      put_sums();
      put_inputs(slot, inputs);
      __syncwarp();
      read_inputs(slot);
    }
  }
};

}  // namespace nvsubq::selective

#endif
