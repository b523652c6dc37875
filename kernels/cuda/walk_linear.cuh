// Owns: a product in the walk of walk.cuh: what a warp computes of a tile, and finishing it.
#pragma once
#include "walk.cuh"

#ifdef MR_HOPPER
namespace mr {
namespace walk {

// The warp's slice of x, to its corner, once it is there.
__device__ __forceinline__ void slice_of_x(const Instruction& now, int k0, int k1, Warp& me) {
  const Linear& l = now.linear;
  const int lane = me.lane;
  uint8_t* const to = me.corner();
  if (now.from < 0) {
    for (int k = 8 * lane; k < k1 - k0; k += 256) *reinterpret_cast<uint4*>(to + 2 * k) = __ldcg(reinterpret_cast<const uint4*>(l.x + k0 + k));
  } else {
    const uint8_t* const from = me.exchange.values(now.from) + k0 / 2 * 8;
    const unsigned tag = me.exchange.tag + now.from;
    const int quads = (k1 - k0) / 4;
    // One look at a time until the last is there; then all, again where others are late.
    while (peek(from + (2 * quads - 1) * 8).y != tag) {}
    constexpr int most = 8;
    for (int i0 = lane; i0 - lane < quads; i0 += 32 * most) {
      uint4 seen[most];
      bool all;
      do {
        all = true;
#pragma unroll
        for (int j = 0; j < most; j++) seen[j] = i0 + 32 * j < quads ? peek4(from + (i0 + 32 * j) * 16) : make_uint4(0, tag, 0, tag);
#pragma unroll
        for (int j = 0; j < most; j++) all = all && seen[j].y == tag && seen[j].w == tag;
      } while (!__all_sync(~0u, all));
#pragma unroll
      for (int j = 0; j < most; j++)
        if (i0 + 32 * j < quads) *reinterpret_cast<uint2*>(to + (i0 + 32 * j) * 8) = make_uint2(seen[j].x, seen[j].z);
    }
  }
  __syncwarp();
}

// The values of a lane in a super-block of x.
template <int S>
__device__ __forceinline__ uint4 values_of(const uint8_t* x, int lane) {
  if constexpr (S == Q6_K) {
    const uint8_t* mine = x + 64 * (lane >> 2) + 8 * (lane & 3);
    const uint2 a = *reinterpret_cast<const uint2*>(mine), b = *reinterpret_cast<const uint2*>(mine + 32);
    return make_uint4(a.x, a.y, b.x, b.y);
  } else {
    return *reinterpret_cast<const uint4*>(x + 16 * lane);
  }
}

// N units: sums of a tile's rows g and g + 8, added to. A unit is a long chain; several at once are little longer.
template <int S, int N>
__device__ __forceinline__ void piece(Warp& me, const uint8_t* x, const uint32_t (&masks)[8], float2& acc, float (&sums)[4]) {
  using L = Format<S>;
  const int lane = me.lane;
  const uint8_t* at = me.ring + me.arrive(N * L::bytes, 128);
  if constexpr (L::k == 256) {
#pragma unroll
    for (int i = 0; i < N; i++) one::super_block<S>(at + i * L::bytes, values_of<S>(x + 512 * i, lane), masks, lane, acc);
  } else {
    const uint4 values = 8 * lane < N * L::k ? *reinterpret_cast<const uint4*>(x + 16 * lane) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < N; i++) one::small_unit<S>(at + i * L::bytes, values, masks + i * (L::k / 32), lane, sums);
  }
  me.leave();
}

// turn: of this block's tiles, over all instructions, the first of this one.
__device__ __forceinline__ void linear(const Instruction& now, const Deal& deal, int turn, Warp& me) {
  const Linear& l = now.linear;
  Board& board = me.board;
  const int warp = me.warp, lane = me.lane, g = lane >> 2, t = lane & 3;
  const int slices = 1 << now.log_slices, mine = warp & (slices - 1);
  const Slice slice(now, warp);
  uint32_t masks[8];  // of a chunk's column: 1 and 1, as bf16
#pragma unroll
  for (int j = 0; j < 8; j++) masks[j] = g == j ? 0x3f803f80u : 0;
  turn += warp >> now.log_slices;
  Job job;
  for (int r = 0; job.of(now, deal, slice, warp, r); r++, turn += warps >> now.log_slices) {
    if (r == 0) slice_of_x(now, slice.first << now.log_grain, min(slice.end << now.log_grain, l.cols), me);
    float2 acc = make_float2(0.0f, 0.0f);
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for_storage(job.type, [&]<int S>() {
      constexpr int most = piece_units<S>;
      const uint8_t* x = me.corner();
      int left = job.units;
      for (; left >= most; left -= most, x += most * Format<S>::k * 2) piece<S, most>(me, x, masks, acc, sums);
      if (most > 3 && left == 3) piece<S, 3>(me, x, masks, acc, sums);
      else if (most > 2 && left == 2) piece<S, 2>(me, x, masks, acc, sums);
      else if (left == 1) piece<S, 1>(me, x, masks, acc, sums);
    });
    acc.x += sums[0] + sums[1], acc.y += sums[2] + sums[3];
#pragma unroll
    for (int o = 1; o < 4; o *= 2) acc.x += __shfl_xor_sync(~0u, acc.x, o), acc.y += __shfl_xor_sync(~0u, acc.y, o);
    const int buffer = turn % buffers;
    if (turn >= buffers) one::arrival(&board.taken[buffer], turn / buffers - 1 & 1);
    if (t == 0) board.sums[buffer][mine][g] = acc.x, board.sums[buffer][mine][8 + g] = acc.y;
    __syncwarp();
    if (lane == 0)
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(one::address(&board.summed[buffer])), "r"(warps >> now.log_slices) : "memory");
  }
}

// 1 / rms of what the instruction reads, once all of it is known.
__device__ __forceinline__ float row_scale(const Instruction& now, const Exchange& exchange, int lane) {
  const Linear& l = now.linear;
  const uint8_t* from = exchange.squares(now.from);
  const unsigned tag = exchange.tag + now.from;
  constexpr int most = 8;
  float sum = 0.0f;
  for (int i0 = lane; i0 - lane < l.num_squares; i0 += 32 * most) {
    uint2 seen[most];
    bool all;
    do {
      all = true;
#pragma unroll
      for (int j = 0; j < most; j++) {
        const int i = i0 + 32 * j;
        seen[j] = i < l.num_squares ? peek(from + i * 8) : make_uint2(0, tag);
      }
#pragma unroll
      for (int j = 0; j < most; j++) all = all && seen[j].y == tag;
    } while (!__all_sync(~0u, all));
#pragma unroll
    for (int j = 0; j < most; j++) sum += __uint_as_float(seen[j].x);
  }
  return rsqrtf(warp_sum(sum) / l.cols + l.eps);
}

// A tile's rows, lane % 16 each: what is beside the product.
struct Beside {
  int column;
  bool inside;
  float bias = 0.0f, up_bias = 0.0f, residual = 0.0f, next_weight = 0.0f;
  __device__ __forceinline__ Beside(const Instruction& now, int tile, int lane) {
    const Linear& l = now.linear;
    const Rows rows(l, tile);
    column = rows.column + (lane & 15), inside = (lane & 15) < rows.limit;
    if (!inside) return;
    if (l.bias) bias = l.bias[column];
    if (l.bias && l.epilogue == gated_y) up_bias = l.bias[l.rows + column];
    if (l.next) next_weight = l.next_weight[column];
    if (l.epilogue == add_y) residual = __ldcg(now.residual + column);
  }
};

// The manager's part: adds each tile's slices, in their order, and leaves what comes of them.
__device__ __forceinline__ void finish(const Instruction& now, const Deal& deal, int c, int turn, const Exchange& exchange, Board& board, int lane) {
  const Linear& l = now.linear;
  const bool gated = l.epilogue == gated_y;
  const int slices = 1 << now.log_slices, half = max(slices / 2, 1);
  if (deal.count == 0) return;
  Beside beside(now, deal.first, lane);
  const float scale = l.squares ? row_scale(now, exchange, lane) : 1.0f;
  for (int n = 0; n < deal.count; n++, turn++) {
    const int tile = deal.first + n * static_cast<int>(gridDim.x);
    const int buffer = turn % buffers;
    one::arrival(&board.summed[buffer], turn / buffers & 1);
    // Lanes of the first half add the first half of the slices, a gate's.
    float value = 0.0f;
#pragma unroll
    for (int i = 0; i < warps / 2; i++)
      if (i < half && (slices > 1 || lane < 16)) value += board.sums[buffer][(lane >> 4) * half + i][lane & 15];
    float other = __shfl_down_sync(~0u, value, 16);
    if (gated) value = activate(l.activation, value * scale + beside.bias) * (other * scale + beside.up_bias);
    else value = (value + other) * scale + beside.bias;
    value += beside.residual;
    const bool writes = beside.inside && lane < 16;
    if (writes && l.y_f32) static_cast<float*>(l.y)[beside.column] = value;
    if (l.next || !l.y_f32) {
      const float left = l.next ? value * beside.next_weight : value;
      const uint32_t pair = bf16_pair(left, __shfl_down_sync(~0u, left, 1));
      if (writes && lane % 2 == 0) leave_pair(exchange.values(c) + beside.column / 2 * 8, pair, exchange.tag + c);
    }
    if (l.next) {
      const float square = warp_sum(writes ? value * value : 0.0f);
      if (lane == 0) leave_pair(exchange.squares(c) + tile * 8, __float_as_uint(square), exchange.tag + c);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&board.taken[buffer]);
    if (n + 1 < deal.count) beside = Beside(now, tile + gridDim.x, lane);
  }
}

}  // namespace walk
}  // namespace mr
#endif
