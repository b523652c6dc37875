// Owns: dealing a step's attention out, once a step for each geometry (heads of a group, window, direction): which
// sequences are short (attention_decode.cuh) and into which runs their positions are cut, and which are long
// (attention_prefill.cuh) and their tiles. Cutting changes nobody's bits: runs end where supers end, and in which order
// runs and tiles stand is nobody's business.
#pragma once
#include "attention.cuh"

namespace mr {
namespace attn {

constexpr int plan_threads = 512;
constexpr int most_waves = 4;  // runs a block, about

// A sequence's rows that are short: up to 16 in all, or one token.
__device__ inline bool is_short(int n, int group) { return n == 1 || n * group <= tile_rows; }

// What 16 rows read, and where it is cut: run i is [at(i), at(i + 1)), and may be empty.
struct Cut {
  int part0, part1, size, runs;
  Supers supers;
  __device__ Cut(int row0, int group, int n, int kv_start, int target, const Args& a) : supers(a.kv_heads, a.window) {
    const Reach low(row0, group, n, kv_start, a), high(min(row0 + tile_rows, n * group) - 1, group, n, kv_start, a);
    part0 = low.first / part_tokens, part1 = high.last / part_tokens + 1;
    runs = (part1 - part0 + target - 1) / target;
    size = (part1 - part0 + runs - 1) / runs;
  }
  __device__ int at(int i) const { return i == 0 ? part0 : i >= runs ? part1 : min(supers.boundary(part0 + i * size), part1); }
  // The first run leaves one result, the others one a super.
  __device__ int before(int part) const { return part == part0 ? 0 : 1 + supers.index(part) - supers.index(at(1)); }
  __device__ int results() const { return at(1) == part1 ? 0 : before(part1 - 1) + 1; }
};

// blocks: of attention_decode's launch. One run each keeps them busy; longer runs are cut into a few, so that none is the
// last for long. room: partial results that there is memory for.
__device__ inline void make_plan(int* plan, const Args& a, int tile_block_rows, int blocks, int room, int sequences,
                                 const int* token_starts, const int* kv_starts, const int* page_starts,
                                 const int* page_firsts) {
  __shared__ int parts, results, next_run, next_rows, next_partial, next_tile;
  const int group = a.heads / a.kv_heads, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  // Every 16 rows of a short sequence, a thread a sequence.
  const auto each = [&](auto&& f) {
    for (int s = threadIdx.x; s < sequences; s += plan_threads) {
      const int n = token_starts[s + 1] - token_starts[s];
      if (n > 0 && is_short(n, group))
        for (int row0 = 0; row0 < n * group; row0 += tile_rows) f(row0, n, kv_starts[s]);
    }
  };
  if (threadIdx.x == 0) parts = 0, next_run = 0, next_rows = 0, next_partial = 0, next_tile = 0;
  __syncthreads();
  each([&](int row0, int n, int kv_start) {
    const Cut cut(row0, group, n, kv_start, 1, a);
    atomicAdd(&parts, cut.part1 - cut.part0);
  });
  __syncthreads();
  const int64_t share = (int64_t(parts) * a.kv_heads + blocks - 1) / blocks;
  const int waves = int(min(max(share / 16, int64_t(1)), int64_t(most_waves)));
  int target = max(1, int((share + waves - 1) / waves));
  for (;; target *= 2) {
    __syncthreads();
    if (threadIdx.x == 0) results = 0;
    __syncthreads();
    each([&](int row0, int n, int kv_start) {
      atomicAdd(&results, Cut(row0, group, n, kv_start, target, a).results());
    });
    __syncthreads();
    if (results <= room) break;
  }

  Run* runs = reinterpret_cast<Run*>(plan + plan_header);
  Tile* tiles = reinterpret_cast<Tile*>(plan + a.tiles_at);
  const auto take = [&](int& counter, int count) {
    return __shfl_sync(~0u, lane == 0 ? atomicAdd(&counter, count) : 0, 0);
  };
  for (int s = warp; s < sequences; s += plan_threads / 32) {
    const int start = token_starts[s], n = token_starts[s + 1] - start, rows = n * group, kv_start = kv_starts[s];
    const int page_base = page_starts[s] - page_firsts[s];
    if (n == 0) continue;
    if (!is_short(n, group)) {
      const int count = (rows + tile_block_rows - 1) / tile_block_rows, first = take(next_tile, count);
      for (int i = lane; i < count; i += 32)  // the longest first
        tiles[first + i] = {(count - 1 - i) * tile_block_rows, start, n, kv_start, page_base, {0, 0, 0}};
      continue;
    }
    for (int row0 = 0; row0 < rows; row0 += tile_rows) {
      const Cut cut(row0, group, n, kv_start, target, a);
      int count = 0;
      for (int i = lane; i - lane < cut.runs; i += 32) count += __popc(__ballot_sync(~0u, cut.at(i) < cut.at(i + 1)));
      const int index = take(next_rows, 1), results_here = cut.results(), base = take(next_partial, results_here);
      int at = take(next_run, count);
      for (int i = lane; i - lane < cut.runs; i += 32) {
        const int from = cut.at(i), to = cut.at(i + 1);
        const unsigned real = __ballot_sync(~0u, from < to);
        if (from < to) {
          Run run = {from, to, page_base, kv_start, n, start, row0, count == 1 ? -1 : base + cut.before(from), base};
          run.count = results_here, run.runs = count, run.rows = index;
          run.page0 = a.page_ids[page_base + from], run.page1 = to - from > 1 ? a.page_ids[page_base + from + 1] : 0;
          runs[at + __popc(real & ((1u << lane) - 1))] = run;
        }
        at += __popc(real);
      }
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) plan[0] = next_run, plan[1] = next_tile;
}

}  // namespace attn
}  // namespace mr
