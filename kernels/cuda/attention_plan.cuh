// Owns: dealing a step's attention out, once a step for each geometry (heads of a group, window, direction): which
// sequences are short (attention_decode.cuh) and into which runs their positions are cut, and which are long
// (attention_prefill.cuh) and their tiles. Cutting changes nobody's bits: runs end where supers end.
#pragma once
#include "attention.cuh"

namespace mr {
namespace attn {

constexpr int plan_threads = 256;

// A sequence's rows that are short: up to 16 in all, or one token.
__device__ inline bool is_short(int n, int group) { return n == 1 || n * group <= tile_rows; }

struct Span {
  int part0, part1;
  __device__ Span(int row0, int rows, int group, int n, int kv_start, const Args& a) {
    const Reach low(row0, group, n, kv_start, a), high(min(row0 + tile_rows, rows) - 1, group, n, kv_start, a);
    part0 = low.first / part_tokens, part1 = high.last / part_tokens + 1;
  }
};

struct Cut {
  int size;  // parts of a run, before its end moves on to the end of a super
  __device__ Cut(const Span& span, int target) {
    const int parts = span.part1 - span.part0, runs = (parts + target - 1) / target;
    size = (parts + runs - 1) / runs;
  }
  __device__ int end(int part, const Span& span, const Supers& supers) const {
    return min(supers.boundary(part + size), span.part1);
  }
};

struct Counts {
  int runs, rows, partials, tiles;
  __device__ void operator+=(const Counts& c) { runs += c.runs, rows += c.rows, partials += c.partials, tiles += c.tiles; }
};

__device__ inline int partials_of(int from, int to, bool first, const Supers& supers) {
  return first ? 1 : supers.index(to - 1) - supers.index(from) + 1;
}

// want: runs × key/value heads that keep the device busy. room: partial results that there is memory for.
__device__ inline void make_plan(int* plan, const Args& a, int tile_block_rows, int want, int room, int sequences,
                                 const int* token_starts, const int* kv_starts, const int* page_starts,
                                 const int* page_firsts) {
  __shared__ Counts sums[plan_threads];
  __shared__ int64_t parts_of[plan_threads];
  const int group = a.heads / a.kv_heads, me = threadIdx.x;
  const Supers supers{a.window > 0};
  const int each = (sequences + plan_threads - 1) / plan_threads;
  const int s0 = min(me * each, sequences), s1 = min(s0 + each, sequences);

  int64_t parts = 0;
  for (int s = s0; s < s1; s++) {
    const int n = token_starts[s + 1] - token_starts[s], rows = n * group;
    if (n == 0 || !is_short(n, group)) continue;
    for (int row0 = 0; row0 < rows; row0 += tile_rows) {
      const Span span(row0, rows, group, n, kv_starts[s], a);
      parts += span.part1 - span.part0;
    }
  }
  parts_of[me] = parts;
  __syncthreads();
  for (int d = plan_threads / 2; d > 0; d >>= 1) {
    if (me < d) parts_of[me] += parts_of[me + d];
    __syncthreads();
  }
  int target = int(max(int64_t(1), (parts_of[0] * a.kv_heads + want - 1) / want));

  Counts mine;
  for (;; target *= 2) {
    mine = {};
    for (int s = s0; s < s1; s++) {
      const int n = token_starts[s + 1] - token_starts[s], rows = n * group;
      if (n == 0) continue;
      if (!is_short(n, group)) {
        mine.tiles += (rows + tile_block_rows - 1) / tile_block_rows;
        continue;
      }
      for (int row0 = 0; row0 < rows; row0 += tile_rows) {
        const Span span(row0, rows, group, n, kv_starts[s], a);
        const Cut cut(span, target);
        int runs = 0, partials = 0;
        for (int p = span.part0; p < span.part1; runs++) {
          const int end = cut.end(p, span, supers);
          partials += partials_of(p, end, runs == 0, supers);
          p = end;
        }
        mine += {runs, 1, runs > 1 ? partials : 0, 0};
      }
    }
    __syncthreads();
    sums[me] = mine;
    __syncthreads();
    for (int d = 1; d < plan_threads; d <<= 1) {
      Counts before = {};
      if (me >= d) before = sums[me - d];
      __syncthreads();
      sums[me] += before;
      __syncthreads();
    }
    if (sums[plan_threads - 1].partials <= room) break;
  }

  if (me == plan_threads - 1) plan[0] = sums[me].runs, plan[1] = sums[me].tiles;
  Counts at = {};
  if (me > 0) at = sums[me - 1];
  Run* runs = reinterpret_cast<Run*>(plan + plan_header);
  Tile* tiles = reinterpret_cast<Tile*>(plan + a.tiles_at);
  for (int s = s0; s < s1; s++) {
    const int start = token_starts[s], n = token_starts[s + 1] - start, rows = n * group, kv_start = kv_starts[s];
    const int page_base = page_starts[s] - page_firsts[s];
    if (n == 0) continue;
    if (!is_short(n, group)) {
      // The longest first.
      for (int row0 = (rows - 1) / tile_block_rows * tile_block_rows; row0 >= 0; row0 -= tile_block_rows)
        tiles[at.tiles++] = {row0, start, n, kv_start, page_base, {0, 0, 0}};
      continue;
    }
    for (int row0 = 0; row0 < rows; row0 += tile_rows) {
      const Span span(row0, rows, group, n, kv_start, a);
      const Cut cut(span, target);
      const int first = at.runs, base = at.partials;
      int partial = base;
      for (int p = span.part0; p < span.part1;) {
        const int end = cut.end(p, span, supers);
        runs[at.runs] = {p, end, page_base, kv_start, n, start, row0, partial, base, 0, 0, at.rows};
        partial += partials_of(p, end, at.runs == first, supers);
        at.runs++;
        p = end;
      }
      const int count = at.runs - first;
      for (int i = first; i < at.runs; i++) {
        runs[i].runs = count, runs[i].count = partial - base;
        if (count == 1) runs[i].partial = -1;
      }
      if (count > 1) at.partials = partial;
      at.rows++;
    }
  }
}

}  // namespace attn
}  // namespace mr
