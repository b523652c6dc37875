// Owns: a product in the walk of walk.cuh.
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

// turn0: tiles that this block had before this instruction.
__device__ __forceinline__ void linear(const Instruction& now, int c, int& turn0, Warp& me) {
  const Linear& l = now.linear;
  Board& board = me.board;
  const int warp = me.warp, lane = me.lane, g = lane >> 2, t = lane & 3, row = lane & 15;
  const bool gated = l.epilogue == gated_y;
  const int slices = 1 << now.log_slices, mine = warp & (slices - 1);
  const Slice slice(now, warp);
  const int k0 = slice.first << now.log_grain, k1 = min(slice.end << now.log_grain, l.cols);
  uint32_t masks[8];  // of a chunk's column: 1 and 1, as bf16
#pragma unroll
  for (int j = 0; j < 8; j++) masks[j] = g == j ? 0x3f803f80u : 0;
  Job job;
  bool some = job.of(now, slice, warp, 0), fresh = true;
  for (int r = 0; some; some = job.of(now, slice, warp, ++r)) {
    const int column = job.column + row;
    const bool inside = row < job.limit;
    float bias = 0.0f, up_bias = 0.0f, residual = 0.0f, next_weight = 0.0f;
    if (inside) {
      if (l.bias) bias = l.bias[column];
      if (l.bias && gated) up_bias = l.bias[l.rows + column];
      if (l.next) next_weight = l.next_weight[column];
      if (l.epilogue == add_y) residual = __ldcg(now.residual + column);
    }
    if (fresh) slice_of_x(now, k0, k1, me), fresh = false;
    float2 acc = make_float2(0.0f, 0.0f);
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for_storage(job.type, [&]<int S>() {
      using L = Format<S>;
      constexpr int piece = piece_units<S>;
      const uint8_t* x = me.corner();
      for (int u = 0; u < job.units; u += piece, x += piece * L::k * 2) {
        const int units = min(piece, job.units - u);
        const uint8_t* unit_at = me.ring + me.arrive(units * L::bytes, 128);
        if constexpr (L::k == 256) {
          uint4 values;
          if constexpr (S == Q6_K) {
            const uint2 a = *reinterpret_cast<const uint2*>(x + 64 * g + 8 * t), b = *reinterpret_cast<const uint2*>(x + 64 * g + 32 + 8 * t);
            values = make_uint4(a.x, a.y, b.x, b.y);
          } else {
            values = *reinterpret_cast<const uint4*>(x + 16 * lane);
          }
          one::super_block<S>(unit_at, values, masks, lane, acc);
        } else {
          const uint4 values = 8 * lane < units * L::k ? *reinterpret_cast<const uint4*>(x + 16 * lane) : make_uint4(0, 0, 0, 0);
#pragma unroll
          for (int i = 0; i < piece; i++)
            if (i < units) one::small_unit<S>(unit_at + i * L::bytes, values, masks + i * (L::k / 32), lane, sum);
        }
        me.leave();
      }
    });
    acc.x += sum[0] + sum[1], acc.y += sum[2] + sum[3];
#pragma unroll
    for (int o = 1; o < 4; o *= 2) acc.x += __shfl_xor_sync(~0u, acc.x, o), acc.y += __shfl_xor_sync(~0u, acc.y, o);

    const int turn = turn0 + (warp >> now.log_slices) + r * (warps >> now.log_slices), buffer = turn % buffers;
    while (board.turns[buffer] != turn / buffers) {}
    if (t == 0) board.sums[buffer][mine][g] = acc.x, board.sums[buffer][mine][8 + g] = acc.y;
    __threadfence_block();
    __syncwarp();
    int ticket = 0;
    if (lane == 0) ticket = atomicAdd(&board.tickets[buffer], 1);
    if (__shfl_sync(~0u, ticket, 0) != slices - 1) continue;
    // The last of the tile: lanes of the first half add the first half of the slices, a gate's.
    __threadfence_block();
    float value = 0.0f, square = 0.0f;
    const int half = max(slices / 2, 1);
    if (slices > 1 || lane < 16)
      for (int i = 0; i < half; i++) value += board.sums[buffer][(lane >> 4) * half + i][row];
    __syncwarp();
    if (lane == 0) {
      board.tickets[buffer] = 0;
      __threadfence_block();
      board.turns[buffer] = turn / buffers + 1;
    }
    float other = __shfl_down_sync(~0u, value, 16);
    if (!gated) value += other;
    if (l.squares) {
      one::arrival(&board.scaled, c & 1);
      const float scale = board.row_scale;
      value *= scale, other *= scale;
    }
    value += bias;
    if (gated) value = activate(l.activation, value) * (other + up_bias);
    value += residual;
    const bool writes = inside && lane < 16;
    if (writes && l.y_f32) static_cast<float*>(l.y)[column] = value;
    if (l.next || !l.y_f32) {
      const float left = l.next ? value * next_weight : value;
      const uint32_t pair = bf16_pair(left, __shfl_down_sync(~0u, left, 1));
      if (writes && lane % 2 == 0) leave_pair(me.exchange.values(c) + column / 2 * 8, pair, me.exchange.tag + c);
    }
    if (l.next) {
      square = warp_sum(writes ? value * value : 0.0f);
      if (lane == 0) leave_pair(me.exchange.squares(c) + job.tile * 8, __float_as_uint(square), me.exchange.tag + c);
    }
  }
  turn0 += max(0, now.tiles - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
}

}  // namespace walk
}  // namespace mr
#endif
