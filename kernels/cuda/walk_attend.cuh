// Owns: attention of one token in the walk of walk.cuh: turning the heads of queries and the new key, writing key and value
// to their page, scores and values of the past, folding what the warps (and blocks) found.
//
//   a warp takes 16 positions at a time: scores = K · qᵀ (positions × heads, on the tensor cores), weights, o = Vᵀ · weightsᵀ
#pragma once
#include "walk.cuh"

#ifdef MR_HOPPER
namespace mr {
namespace walk {

__device__ __forceinline__ uint32_t transposed(uint32_t pairs) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pairs));
  return out;
}
__device__ __forceinline__ float2 floats(uint32_t two) { return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u)); }

// Pairs at(i) of an exchange, once all of them are there.
template <int N, class At>
__device__ __forceinline__ void await(const uint8_t* from, unsigned tag, float2 (&out)[N], At&& at) {
  uint2 seen[N];
  bool all;
  do {
    all = true;
#pragma unroll
    for (int i = 0; i < N; i++) seen[i] = peek(from + at(i) * 8);
#pragma unroll
    for (int i = 0; i < N; i++) all = all && seen[i].y == tag;
  } while (!__all_sync(~0u, all));
#pragma unroll
  for (int i = 0; i < N; i++) out[i] = make_float2(__uint_as_float(seen[i].x << 16), __uint_as_float(seen[i].x & 0xffff0000u));
}

// cos and sin of the token's position: of the queries' dimensions 16 k + 8 i + 2 t, and of the key's pair `lane` of half a head.
template <int D>
struct Turns {
  static constexpr int pairs = D / 4;
  float4 query[D / 32][2], key;
  __device__ __forceinline__ Turns(const float2* table, int lane) {
#pragma unroll
    for (int k = 0; k < D / 32; k++)
#pragma unroll
      for (int i = 0; i < 2; i++) query[k][i] = *reinterpret_cast<const float4*>(table + 16 * k + 8 * i + 2 * (lane & 3));
    key = *reinterpret_cast<const float4*>(table + 2 * min(lane, pairs - 1));
  }
};

__device__ __forceinline__ float2 low_turned(float2 low, float2 high, float4 by) {
  return make_float2(low.x * by.x - high.x * by.y, low.y * by.z - high.y * by.w);
}
__device__ __forceinline__ float2 high_turned(float2 low, float2 high, float4 by) {
  return make_float2(high.x * by.x + low.x * by.y, high.y * by.z + low.y * by.w);
}

// The heads from head0 on, normed and turned, as the B operand of the products with keys: head g, dimensions 16 k + 8 i + 2 t.
template <class T, int D>
__device__ __forceinline__ void queries(const Attend& a, const uint8_t* from, unsigned tag, const Turns<D>& turns, int head0, int group, int lane,
                                        uint32_t (&q)[D / 16][2]) {
  constexpr int steps = D / 32;
  const int g = lane >> 2, t = lane & 3, base = (head0 + min(g, group - 1)) * D;
  const auto dimension = [&](int n) { return (n >> 2) * 16 + (n >> 1 & 1) * (D / 2) + (n & 1) * 8 + 2 * t; };  // [k][low, high half][i]
  float2 x[steps * 4];
  while (peek(from + head0 * D / 2 * 8).y != tag) {}
  await(from, tag, x, [&](int n) { return (base + dimension(n)) / 2; });
  if (a.q_norm) {
    float squares = 0.0f;
#pragma unroll
    for (int n = 0; n < steps * 4; n++) squares += x[n].x * x[n].x + x[n].y * x[n].y;
    squares += __shfl_xor_sync(~0u, squares, 1), squares += __shfl_xor_sync(~0u, squares, 2);
    const float by = rsqrtf(squares / D + a.norm_eps);
#pragma unroll
    for (int n = 0; n < steps * 4; n++) x[n].x *= by * a.q_norm[dimension(n)], x[n].y *= by * a.q_norm[dimension(n) + 1];
  }
#pragma unroll
  for (int k = 0; k < steps; k++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float2 low = x[4 * k + i], high = x[4 * k + 2 + i], l = low_turned(low, high, turns.query[k][i]), h = high_turned(low, high, turns.query[k][i]);
      q[k][i] = g < group ? attn::pack<T>(l.x, l.y) : 0u;
      q[k + steps][i] = g < group ? attn::pack<T>(h.x, h.y) : 0u;
    }
}

// The token's key, normed and turned, in pairs of dimensions: a lane has pair `lane` of the first half of the head and of the second
// (heads of 64: the first 16 lanes), and of the value pairs lane and lane + 32.
template <class T, int D>
struct Newcomer {
  static constexpr int pairs = Turns<D>::pairs;
  uint32_t key[2], value[D / 64];
  __device__ __forceinline__ void make(const Attend& a, const uint8_t* from, unsigned tag, const Turns<D>& turns, int head, int lane) {
    const int mine = min(lane, pairs - 1), k0 = (a.heads + head) * D / 2 + mine, v0 = (a.heads + a.kv_heads + head) * D / 2 + lane;
    float2 x[2 + D / 64];
    await(from, tag, x, [&](int i) { return i < 2 ? k0 + i * pairs : v0 + 32 * (i - 2); });
    float2 low = x[0], high = x[1];
    if (a.k_norm) {
      const float own = lane < pairs ? low.x * low.x + low.y * low.y + high.x * high.x + high.y * high.y : 0.0f;
      const float by = rsqrtf(warp_sum(own) / D + a.norm_eps);
      const float *n = a.k_norm + 2 * mine, *m = n + D / 2;
      low.x *= by * n[0], low.y *= by * n[1], high.x *= by * m[0], high.y *= by * m[1];
    }
    const float2 l = low_turned(low, high, turns.key), h = high_turned(low, high, turns.key);
    key[0] = attn::pack<T>(l.x, l.y), key[1] = attn::pack<T>(h.x, h.y);
#pragma unroll
    for (int i = 0; i < D / 64; i++) value[i] = attn::pack<T>(x[2 + i].x, x[2 + i].y);
  }
  // put(pair of the head, bits)
  template <class Put>
  __device__ __forceinline__ void keys(int lane, Put&& put) const {
    if (lane < pairs) put(lane, key[0]), put(lane + pairs, key[1]);
  }
  template <class Put>
  __device__ __forceinline__ void values(int lane, Put&& put) const {
#pragma unroll
    for (int i = 0; i < D / 64; i++) put(lane + 32 * i, value[i]);
  }
};

template <class T, int D>
__device__ __forceinline__ void attend(const Instruction& now, int c, Warp& me) {
  using Tile = attn::Rows<D, 16>;
  constexpr int part_bytes = 16 * D * 2;
  const Attend& a = now.attend;
  Share share;
  Board& board = me.board;
  if (!share.of(a, board.position)) return;
  const int warp = me.warp, lane = me.lane, g = lane >> 2, t = lane & 3;
  const int group = a.heads / a.kv_heads, last = share.position / 16, within = share.position % 16;
  const uint32_t ring_at = attn::shared_address(me.ring);
  const attn::Scale scale(a.scale, a.softcap);
  const bool owner = last >= share.from && last < share.to && (last - share.from) % warps == warp;
  const bool keeps = owner && a.info->tokens > 0;
  const int page = owner ? a.page_ids[a.page_start[0] + share.position / 64 - a.page_first[0]] : 0;
  const uint8_t* const from = me.exchange.values(now.from);
  const unsigned tag = me.exchange.tag + now.from;

  const Turns<D> turns(a.table, lane);
  uint32_t q[D / 16][2];
  queries<T, D>(a, from, tag, turns, share.head * group, group, lane, q);
  Newcomer<T, D> newcomer;
  // Of heads 2t and 2t + 1 of the group; a lane's own part of the total.
  float m[2] = {attn::nothing, attn::nothing}, total[2] = {0.0f, 0.0f}, o[D / 16][4] = {};
  for (int p = share.from + warp; p < share.to; p += warps) {
    const bool mended = owner && p == last;
    if (mended) {
      newcomer.make(a, from, tag, turns, share.head, lane);
      const int64_t row = page * a.page_bytes + (static_cast<int64_t>(share.head) * 64 + share.position % 64) * D * 2;
      if (keeps) newcomer.keys(lane, [&](int i, uint32_t bits) { reinterpret_cast<uint32_t*>(a.new_keys + row)[i] = bits; });
      if (keeps) newcomer.values(lane, [&](int i, uint32_t bits) { reinterpret_cast<uint32_t*>(a.new_values + row)[i] = bits; });
    }
    const int keys_at = me.arrive(part_bytes, 1024);
    if (mended) {
      newcomer.keys(lane, [&](int i, uint32_t bits) { *reinterpret_cast<uint32_t*>(me.ring + keys_at + Tile::at(within, i / 4) + i % 4 * 4) = bits; });
      __syncwarp();
    }
    float s[4] = {};
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
      uint32_t keys[4];
      attn::load_matrices(keys, ring_at + keys_at + Tile::at(lane & 15, 2 * k + (lane >> 4)));
      attn::multiply<T>(s, keys, q[k][0], q[k][1]);
    }
    if (mended) attn::before_copies();
    me.leave();
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int position = p * 16 + g + (i >> 1) * 8;
      s[i] = (a.softcap > 0 ? scale.capped(s[i]) : s[i]) * scale.factor;
      if (position < share.first || position > share.position) s[i] = attn::nothing;
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float most = fmaxf(s[h], s[2 + h]);
#pragma unroll
      for (int i = 4; i < 32; i *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, i));
      most = fmaxf(most, m[h]);
      const float base = most == attn::nothing ? 0.0f : most, keep = attn::exp2_fast(m[h] - base);
      m[h] = most;
      s[h] = attn::exp2_fast(s[h] - base), s[2 + h] = attn::exp2_fast(s[2 + h] - base);
      total[h] = total[h] * keep + s[h] + s[2 + h];
#pragma unroll
      for (int n = 0; n < D / 16; n++) o[n][h] *= keep, o[n][2 + h] *= keep;
    }
    const uint32_t w0 = transposed(attn::pack<T>(s[0], s[1])), w1 = transposed(attn::pack<T>(s[2], s[3]));
    const int values_at = me.arrive(part_bytes, 1024);
    if (mended) {
      newcomer.values(lane, [&](int i, uint32_t bits) { *reinterpret_cast<uint32_t*>(me.ring + values_at + Tile::at(within, i / 4) + i % 4 * 4) = bits; });
      // Rows that nobody has written yet may hold anything, and 0 · NaN is not 0.
      for (int i = lane; i < (15 - within) * (D / 8); i += 32)
        *reinterpret_cast<uint4*>(me.ring + values_at + Tile::at(within + 1 + i / (D / 8), i % (D / 8))) = make_uint4(0, 0, 0, 0);
      __syncwarp();
    }
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
      uint32_t values[4];
      attn::load_transposed(values, ring_at + values_at + Tile::at((lane & 7) + (lane >> 4) * 8, 2 * n + (lane >> 3 & 1)));
      attn::multiply<T>(o[n], values, w0, w1);
    }
    if (mended) attn::before_copies();
    me.leave();
  }

  // Each warp's results to its corner: [group][D].
  float* const corner = reinterpret_cast<float*>(me.corner());
#pragma unroll
  for (int h = 0; h < 2; h++) {
#pragma unroll
    for (int i = 4; i < 32; i *= 2) total[h] += __shfl_xor_sync(~0u, total[h], i);
    const int head = 2 * t + h;
    if (head >= group) continue;
    if (g == 0) board.maxima[warp][head] = m[h], board.totals[warp][head] = total[h];
#pragma unroll
    for (int n = 0; n < D / 16; n++) corner[head * D + 16 * n + g] = o[n][h], corner[head * D + 16 * n + 8 + g] = o[n][2 + h];
  }
  computing_sync();
  const int floats_each = group * (D + 2);
  float* const partial = a.partial + static_cast<int64_t>(share.head) * share.split * floats_each;
  float* const own = partial + share.piece * floats_each;
  // group · D is a multiple of 32: whole warps.
  const auto write = [&](int i, float sum_m, float sum_l, float sum_o) {
    const int head = share.head * group + i / D;
    const float y = sum_o * attn::finish(sum_m, sum_l, a.sinks, head);
    const uint32_t pair = bf16_pair(y, __shfl_down_sync(~0u, y, 1));
    if (lane % 2 == 0) leave_pair(me.exchange.values(c) + (head * D + i % D) / 2 * 8, pair, me.exchange.tag + c);
  };
  for (int i = threadIdx.x; i < group * D; i += 32 * warps) {
    const int head = i / D;
    float sum_m = attn::nothing, sum_l = 0.0f, sum_o = 0.0f;
#pragma unroll
    for (int w = 0; w < warps; w++) {
      const attn::Fold fold(sum_m, sum_l, board.maxima[w][head], board.totals[w][head]);
      sum_o = fold(sum_o, reinterpret_cast<const float*>(me.corners + w * me.corner_bytes)[i]);
    }
    if (share.split == 1) {
      write(i, sum_m, sum_l, sum_o);
    } else {
      own[i] = sum_o;
      if (i % D == 0) own[group * D + 2 * head] = sum_m, own[group * D + 2 * head + 1] = sum_l;
    }
  }
  if (share.split > 1) __threadfence();
  computing_sync();
  if (share.split == 1) return;
  if (threadIdx.x == 0) {
    board.last = atomicAdd(a.arrived + share.head, 1) == share.split - 1;
    if (board.last) a.arrived[share.head] = 0;
  }
  computing_sync();
  if (!*const_cast<volatile int*>(&board.last)) return;
  __threadfence();
  for (int i = threadIdx.x; i < group * D; i += 32 * warps) {
    float sum_m = attn::nothing, sum_l = 0.0f, sum_o = 0.0f;
#pragma unroll 8
    for (int w = 0; w < share.split; w++) {
      const float* one_of = partial + w * floats_each;
      const float o1 = __ldcg(one_of + i), m1 = __ldcg(one_of + group * D + 2 * (i / D)), l1 = __ldcg(one_of + group * D + 2 * (i / D) + 1);
      const attn::Fold fold(sum_m, sum_l, m1, l1);
      sum_o = fold(sum_o, o1);
    }
    write(i, sum_m, sum_l, sum_o);
  }
}

}  // namespace walk
}  // namespace mr
#endif
