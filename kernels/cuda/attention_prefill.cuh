// Owns: attention of many rows of one sequence (a prompt or a piece of one) over its past and itself: a block keeps
// WARPS · 16 · MT rows (tokens × query heads of one key/value head) and goes through their positions, a page at a time,
// keys and values of the next page on their way.
//
// EXACT: parts and supers are folded as attention_decode.cuh folds them, so that a row has the same bits in both; the row's
// total waits in shared memory. Otherwise one running softmax goes from page to page: the same bits whatever the
// chunking and the neighbours, but not those of a token that comes alone.
#pragma once
#include "attention.cuh"

namespace mr {
namespace attn {

template <int D, int WARPS, int MT, bool EXACT>
struct PrefillShared {
  static constexpr int rows = WARPS * 16 * MT;
  static constexpr int tile = Rows<D>::bytes;
  static constexpr int kv = Rows<D, rows>::bytes;  // two of (keys, values)
  static constexpr int totals = kv + 4 * tile;       // [MT · D / 8][threads] float4
  static constexpr int bytes = totals + (EXACT ? rows * D * 4 : 0);
};

template <class T, int D, int WARPS, int MT, bool EXACT>
__device__ void prefill(const Args& a) {
  using Layout = PrefillShared<D, WARPS, MT, EXACT>;
  constexpr int K = D / 16, N = D / 8, threads = WARPS * 32, block_rows = Layout::rows;
  using Queries = Rows<D, block_rows>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = shared_address(shared);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int g = lane >> 2, t = lane & 3;

  wait();
  release();
  if (int(blockIdx.x) >= a.plan[1]) return;
  const Tile tile = reinterpret_cast<const Tile*>(a.plan + a.tiles_at)[blockIdx.x];
  const int kv_head = blockIdx.y, group = a.heads / a.kv_heads;
  const int all_rows = tile.n * group, length = tile.kv_start + tile.n;
  const int last_row = min(tile.row0 + block_rows, all_rows) - 1;
  const Reach low(tile.row0, group, tile.n, tile.kv_start, a), high(last_row, group, tile.n, tile.kv_start, a);
  const int part0 = low.first / part_tokens, part1 = high.last / part_tokens + 1;
  const Scale scale(a.scale, a.softcap);
  const Supers supers(a.kv_heads, a.window);

  const auto copy_part = [&](int part) {
    if (part < part1) {
      const int64_t page = int64_t(a.page_ids[tile.page_base + part]) * a.page_bytes + int64_t(kv_head) * (64 * D * 2);
      const int real = length - part * part_tokens;
      const uint32_t to = base + Layout::kv + (part & 1) * 2 * Layout::tile;
#pragma unroll
      for (int i = 0; i < part_tokens * Rows<D>::chunks / threads; i++) {
        const int c = i * threads + threadIdx.x, row = c / Rows<D>::chunks, chunk = c % Rows<D>::chunks;
        const uint32_t at = to + Rows<D>::at(row, chunk);
        const int64_t from = page + row * (2 * D) + chunk * 16;
        copy_async(at, a.k + from, row < real);
        copy_async(at + Layout::tile, a.v + from, row < real);
      }
    }
    commit();
  };
  copy_part(part0);

  for (int c = threadIdx.x; c < block_rows * Rows<D>::chunks; c += threads) {
    const int row = c / Rows<D>::chunks, chunk = c % Rows<D>::chunks, r = min(tile.row0 + row, all_rows - 1);
    const bf16* from =
        a.q + (int64_t(tile.token_start + r / group) * a.heads + kv_head * group + r % group) * D + chunk * 8;
    uint4 x = *reinterpret_cast<const uint4*>(from);
    x.x = from_bf16<T>(x.x), x.y = from_bf16<T>(x.y), x.z = from_bf16<T>(x.z), x.w = from_bf16<T>(x.w);
    *reinterpret_cast<uint4*>(shared + Queries::at(row, chunk)) = x;
  }

  // Of rows 16 · mt + g and + 8 of the warp. l: of this thread's columns until the end, unless EXACT.
  float m[MT][2], l[MT][2], o[MT][N][4] = {};
  float total_m[MT][2], total_l[MT][2];
#pragma unroll
  for (int mt = 0; mt < MT; mt++)
#pragma unroll
    for (int h = 0; h < 2; h++) m[mt][h] = total_m[mt][h] = nothing, l[mt][h] = total_l[mt][h] = 0;
  float4* totals = reinterpret_cast<float4*>(shared + Layout::totals) + threadIdx.x;
  if constexpr (EXACT)
    for (int i = 0; i < MT * N; i++) totals[i * threads] = {0, 0, 0, 0};

  // Rows of a tile that a lane reads, first chunks.
  const uint32_t q_at = base + Queries::at(warp * MT * 16 + (lane & 15), lane >> 4);
  const uint32_t key_at = Rows<D>::at(((lane >> 4) << 3) + (lane & 7), (lane >> 3) & 1);
  const uint32_t value_at = Rows<D>::at(lane & 15, lane >> 4);

  for (int part = part0; part < part1; part++) {
    wait_all_but<0>();
    __syncthreads();
    const uint32_t keys = base + Layout::kv + (part & 1) * 2 * Layout::tile, values = keys + Layout::tile;

    float s[MT][8][4] = {};
#pragma unroll
    for (int k = 0; k < K; k++) {
      uint32_t q[MT][4];
#pragma unroll
      for (int mt = 0; mt < MT; mt++)
        load_matrices(q[mt], Queries::moved(q_at + mt * 16 * Queries::stride, 2 * k));
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        uint32_t b[4];
        load_matrices(b, Rows<D>::moved(keys + key_at, 2 * k) + j * 8 * Rows<D>::stride);
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
          multiply<T>(s[mt][j], q[mt], b[0], b[1]);
          multiply<T>(s[mt][j + 1], q[mt], b[2], b[3]);
        }
      }
    }
    copy_part(part + 1);  // here, where no one waits for shared memory
    if (a.softcap > 0) {
#pragma unroll
      for (int mt = 0; mt < MT; mt++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
          for (int c = 0; c < 4; c++) s[mt][j][c] = scale.capped(s[mt][j][c]);
    }
    const int p0 = part * part_tokens;
    if (p0 + part_tokens - 1 > low.last || p0 < high.first) {
#pragma unroll
      for (int mt = 0; mt < MT; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const Reach reach(tile.row0 + (warp * MT + mt) * 16 + g + 8 * h, group, tile.n, tile.kv_start, a);
#pragma unroll
          for (int j = 0; j < 8; j++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
              const int position = p0 + 8 * j + 2 * t + c;
              if (position < reach.first || position > reach.last) s[mt][j][2 * h + c] = nothing;
            }
        }
    }

    // Scores to weights, in the layout of a multiplication's left side.
    uint32_t p[MT][4][4];
    float part_m[MT][2];
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float best = nothing;
#pragma unroll
        for (int j = 0; j < 8; j++) best = fmaxf(best, fmaxf(s[mt][j][2 * h], s[mt][j][2 * h + 1]));
        best = fmaxf(best, __shfl_xor_sync(~0u, best, 1));
        best = fmaxf(best, __shfl_xor_sync(~0u, best, 2));
        part_m[mt][h] = best * scale.factor;
        float off;
        if constexpr (EXACT) {
          off = best == nothing ? 0.0f : part_m[mt][h];
        } else {
          const float now = fmaxf(m[mt][h], part_m[mt][h]);
          off = now == nothing ? 0.0f : now;
          const float keep = exp2_fast(m[mt][h] - off);
          m[mt][h] = now;
          l[mt][h] *= keep;
#pragma unroll
          for (int n = 0; n < N; n++) o[mt][n][2 * h] *= keep, o[mt][n][2 * h + 1] *= keep;
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
          const float e0 = exp2_fast(fmaf(s[mt][j][2 * h], scale.factor, -off));
          const float e1 = exp2_fast(fmaf(s[mt][j][2 * h + 1], scale.factor, -off));
          if constexpr (!EXACT) l[mt][h] += e0 + e1;
          p[mt][j >> 1][(j & 1) * 2 + h] = pack<T>(e0, e1);
        }
      }

    if constexpr (EXACT) {
      Fold fold[MT][2] = {};
#pragma unroll
      for (int mt = 0; mt < MT; mt++) {
        float sum[4] = {};
#pragma unroll
        for (int k = 0; k < 4; k++) multiply<T>(sum, p[mt][k], ones<T>, ones<T>);
#pragma unroll
        for (int h = 0; h < 2; h++) fold[mt][h] = Fold(m[mt][h], l[mt][h], part_m[mt][h], sum[2 * h]);
      }
#pragma unroll
      for (int n = 0; n < N; n += 2) {
        float part_o[MT][2][4] = {};
#pragma unroll
        for (int k = 0; k < 4; k++) {
          uint32_t b[4];
          load_transposed(b, Rows<D>::moved(values + value_at, n) + k * 16 * Rows<D>::stride);
#pragma unroll
          for (int mt = 0; mt < MT; mt++) {
            multiply<T>(part_o[mt][0], p[mt][k], b[0], b[1]);
            multiply<T>(part_o[mt][1], p[mt][k], b[2], b[3]);
          }
        }
#pragma unroll
        for (int mt = 0; mt < MT; mt++)
#pragma unroll
          for (int i = 0; i < 2; i++)
#pragma unroll
            for (int c = 0; c < 4; c++) o[mt][n + i][c] = fold[mt][c >> 1](o[mt][n + i][c], part_o[mt][i][c]);
      }
      if (supers.ends(part + 1) || part + 1 == part1) {
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
          const Fold f0(total_m[mt][0], total_l[mt][0], m[mt][0], l[mt][0]);
          const Fold f1(total_m[mt][1], total_l[mt][1], m[mt][1], l[mt][1]);
#pragma unroll
          for (int n = 0; n < N; n++) {
            float4& to = totals[(mt * N + n) * threads];
            float(&from)[4] = o[mt][n];
            to = {f0(to.x, from[0]), f0(to.y, from[1]), f1(to.z, from[2]), f1(to.w, from[3])};
#pragma unroll
            for (int c = 0; c < 4; c++) from[c] = 0;
          }
#pragma unroll
          for (int h = 0; h < 2; h++) m[mt][h] = nothing, l[mt][h] = 0;
        }
      }
    } else {
#pragma unroll
      for (int k = 0; k < 4; k++)
#pragma unroll
        for (int n = 0; n < N; n += 2) {
          uint32_t b[4];
          load_transposed(b, Rows<D>::moved(values + value_at, n) + k * 16 * Rows<D>::stride);
#pragma unroll
          for (int mt = 0; mt < MT; mt++) {
            multiply<T>(o[mt][n], p[mt][k], b[0], b[1]);
            multiply<T>(o[mt][n + 1], p[mt][k], b[2], b[3]);
          }
        }
    }
  }

#pragma unroll
  for (int mt = 0; mt < MT; mt++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int r = tile.row0 + (warp * MT + mt) * 16 + g + 8 * h;
      float row_m = EXACT ? total_m[mt][h] : m[mt][h], row_l = EXACT ? total_l[mt][h] : l[mt][h];
      if constexpr (!EXACT) {
        row_l += __shfl_xor_sync(~0u, row_l, 1);
        row_l += __shfl_xor_sync(~0u, row_l, 2);
      }
      if (r >= all_rows) continue;
      const int token = r / group, head = kv_head * group + r % group;
      const float by = finish(row_m, row_l, a.sinks, head);
      bf16* to = a.y + (int64_t(tile.token_start + token) * a.heads + head) * D + 2 * t;
#pragma unroll
      for (int n = 0; n < N; n++) {
        float x = o[mt][n][2 * h], y = o[mt][n][2 * h + 1];
        if constexpr (EXACT) {
          const float4 sum = totals[(mt * N + n) * threads];
          x = h ? sum.z : sum.x, y = h ? sum.w : sum.y;
        }
        *reinterpret_cast<uint32_t*>(to + 8 * n) = pack<bf16>(x * by, y * by);
      }
    }
}

}  // namespace attn
}  // namespace mr
