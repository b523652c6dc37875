// Owns: attention of short rows (one token a sequence, or a few) over long pasts: runs of positions are dealt to a fixed
// grid, each block streams its run's pages, the last of a run's siblings folds their results.
//
// A block is 4 warps on one part of 64 positions at a time:
//   scores   warp w: positions [16w, 16w + 16), all of the 16 rows
//   weights  meet in shared memory (16 × 64), after the rows' maximum has
//   values   warp w: columns [w · D/4, (w + 1) · D/4), all positions
// Each warp copies just the keys and the values that it reads itself, SLOTS parts ahead and across runs, so the copies
// wait for no other warp.
#pragma once
#include "attention.cuh"

namespace mr {
namespace attn {

constexpr int decode_threads = 128;

template <int D, int SLOTS>
struct DecodeShared {
  static constexpr int tile = part_tokens * Rows<D>::stride;
  static constexpr int weights = SLOTS * 2 * tile;                  // [16][64] of T
  static constexpr int maxima = weights + 16 * Rows<64>::stride;    // [4][16] float
  static constexpr int flag = maxima + 4 * 16 * 4;
  static constexpr int bytes = flag + 16;
};

// Floats of one partial result: o [16][D], then m [16], then l [16].
template <int D>
constexpr int partial_floats = 16 * (D + 2);

// Where the copies are: a part of a run of this block's share.
template <int D>
struct Cursor {
  const Args& a;
  int work, end;  // index into (run, kv head), and how many there are
  int part, part_end, page_base, length;
  int64_t page, next_page;
  int64_t head_at;

  __device__ Cursor(const Args& args, int first, int all) : a(args), work(first), end(all) { enter(); }
  __device__ bool any() const { return work < end; }
  __device__ void enter() {
    if (!any()) return;
    const Run& run = reinterpret_cast<const Run*>(a.plan + plan_header)[work / a.kv_heads];
    part = run.part0, part_end = run.part1, page_base = run.page_base, length = run.kv_start + run.n;
    head_at = int64_t(work % a.kv_heads) * (part_tokens * D * 2);
    page = int64_t(a.page_ids[page_base + part]) * a.page_bytes + head_at;
    if (part + 1 < part_end) next_page = a.page_ids[page_base + part + 1];
  }
  __device__ void advance() {
    if (!any()) return;
    if (++part < part_end) {
      page = next_page * a.page_bytes + head_at;
      if (part + 1 < part_end) next_page = a.page_ids[page_base + part + 1];
    } else {
      work += gridDim.x;
      enter();
    }
  }
};

template <class T, int D>
__device__ void merge(const Args& a, const Run& run, int kv_head, int group, int valid) {
  constexpr int P = partial_floats<D>;
  const int64_t step = int64_t(a.kv_heads) * P;
  const float* first = a.partial + (int64_t(run.base) * a.kv_heads + kv_head) * P;
  for (int i = threadIdx.x; i < valid * (D / 4); i += decode_threads) {
    const int row = i / (D / 4), column = i % (D / 4) * 4;
    float m = nothing, l = 0;
    float4 o = {0, 0, 0, 0};
    const float* at = first;
#pragma unroll 8
    for (int k = 0; k < run.count; k++, at += step) {
      const float4 o1 = __ldcg(reinterpret_cast<const float4*>(at + row * D + column));
      const float m1 = __ldcg(at + 16 * D + row), l1 = __ldcg(at + 16 * D + 16 + row);
      const Fold fold(m, l, m1, l1);
      o.x = fold(o.x, o1.x), o.y = fold(o.y, o1.y), o.z = fold(o.z, o1.z), o.w = fold(o.w, o1.w);
    }
    const int r = run.row0 + row, token = r / group, head = kv_head * group + r % group;
    const float by = finish(m, l, a.sinks, head);
    uint2 out = {pack<__nv_bfloat16>(o.x * by, o.y * by), pack<__nv_bfloat16>(o.z * by, o.w * by)};
    *reinterpret_cast<uint2*>(a.y + (int64_t(run.token_start + token) * a.heads + head) * D + column) = out;
  }
}

template <class T, int D, int SLOTS>
__device__ void decode(const Args& a) {
  using Layout = DecodeShared<D, SLOTS>;
  constexpr int K = D / 16;      // steps of 16 dimensions
  constexpr int N = D / 4 / 8;   // a warp's columns of values, in eights
  static_assert(D % 32 == 0);
  extern __shared__ __align__(128) uint8_t shared[];
  const uint32_t base = shared_address(shared);
  float* maxima = reinterpret_cast<float*>(shared + Layout::maxima);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int g = lane >> 2, t = lane & 3;
  const int group = a.heads / a.kv_heads;
  const Supers supers{a.window > 0};
  const Scale scale(a.scale, a.softcap);

  wait_for_previous();
  let_next_start();
  const int work_end = a.plan[0] * a.kv_heads;
  Cursor<D> ahead(a, blockIdx.x, work_end);
  int slot_ahead = 0;

  const auto copy_keys = [&] {
    if (ahead.any()) {
      const uint32_t to = base + slot_ahead * 2 * Layout::tile;
      const uint8_t* from = a.k + ahead.page;
      const int real = ahead.length - ahead.part * part_tokens;
#pragma unroll
      for (int i = 0; i < 16 * Rows<D>::chunks / 32; i++) {
        const int c = i * 32 + lane, row = warp * 16 + c / Rows<D>::chunks, chunk = c % Rows<D>::chunks;
        copy_async(to + Rows<D>::at(row, chunk), from + row * (2 * D) + chunk * 16, row < real);
      }
    }
    commit();
  };
  const auto copy_values = [&] {
    if (ahead.any()) {
      const uint32_t to = base + slot_ahead * 2 * Layout::tile + Layout::tile;
      const uint8_t* from = a.v + ahead.page;
      const int real = ahead.length - ahead.part * part_tokens;
#pragma unroll
      for (int i = 0; i < 64 * N / 32; i++) {
        const int c = i * 32 + lane, row = c / N, chunk = warp * N + c % N;
        copy_async(to + Rows<D>::at(row, chunk), from + row * (2 * D) + chunk * 16, row < real);
      }
    }
    commit();
    ahead.advance();
    slot_ahead = slot_ahead + 1 == SLOTS ? 0 : slot_ahead + 1;
  };
#pragma unroll
  for (int i = 0; i < SLOTS; i++) copy_keys(), copy_values();

  int slot = 0;
  for (int work = blockIdx.x; work < work_end; work += gridDim.x) {
    const Run run = reinterpret_cast<const Run*>(a.plan + plan_header)[work / a.kv_heads];
    const int kv_head = work % a.kv_heads;
    const int valid = min(tile_rows, run.n * group - run.row0);
    const int r0 = run.row0 + min(g, valid - 1), r1 = run.row0 + min(g + 8, valid - 1);
    const Reach reach0(r0, group, run.n, run.kv_start, a), reach1(r1, group, run.n, run.kv_start, a);

    uint32_t q[K][4];
    {
      const auto row_at = [&](int r) {
        return a.q + (int64_t(run.token_start + r / group) * a.heads + kv_head * group + r % group) * D + 2 * t;
      };
      const __nv_bfloat16 *q0 = row_at(r0), *q1 = row_at(r1);
#pragma unroll
      for (int k = 0; k < K; k++) {
        q[k][0] = from_bf16<T>(*reinterpret_cast<const uint32_t*>(q0 + 16 * k));
        q[k][1] = from_bf16<T>(*reinterpret_cast<const uint32_t*>(q1 + 16 * k));
        q[k][2] = from_bf16<T>(*reinterpret_cast<const uint32_t*>(q0 + 16 * k + 8));
        q[k][3] = from_bf16<T>(*reinterpret_cast<const uint32_t*>(q1 + 16 * k + 8));
      }
    }

    // Of the super so far, and of the whole run: rows g and g + 8.
    float m[2] = {nothing, nothing}, l[2] = {0, 0}, o[N][4] = {};
    float run_m[2] = {nothing, nothing}, run_l[2] = {0, 0}, run_o[N][4] = {};
    const bool starts = run.partial <= run.base;  // the first run of its rows, or the only one
    int partial = run.partial;

    const auto store = [&](const float(&pm)[2], const float(&pl)[2], const float(&po)[N][4]) {
      float* to = a.partial + (int64_t(partial) * a.kv_heads + kv_head) * partial_floats<D>;
      partial++;
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int row = g + 8 * h;
        if (row >= valid) continue;
#pragma unroll
        for (int n = 0; n < N; n++)
          *reinterpret_cast<float2*>(to + row * D + warp * (D / 4) + 8 * n + 2 * t) = {po[n][2 * h], po[n][2 * h + 1]};
        if (warp == 0 && t == 0) to[16 * D + row] = pm[h], to[16 * D + 16 + row] = pl[h];
      }
    };

    for (int part = run.part0; part < run.part1; part++) {
      const uint32_t keys = base + slot * 2 * Layout::tile, values = keys + Layout::tile;
      slot = slot + 1 == SLOTS ? 0 : slot + 1;

      wait_all_but<2 * SLOTS - 1>();
      __syncwarp();
      float s[2][4] = {};
#pragma unroll
      for (int k = 0; k < K; k++) {
        uint32_t b[4];
        load_matrices(b, keys + Rows<D>::at(warp * 16 + ((lane >> 4) << 3) + (lane & 7), 2 * k + ((lane >> 3) & 1)));
        multiply<T>(s[0], q[k], b[0], b[1]);
        multiply<T>(s[1], q[k], b[2], b[3]);
      }
      __syncwarp();
      copy_keys();

      const int p0 = part * part_tokens + warp * 16 + 2 * t;
      float best[2] = {nothing, nothing};
#pragma unroll
      for (int j = 0; j < 2; j++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
          const int position = p0 + 8 * j + (c & 1);
          const Reach& reach = c < 2 ? reach0 : reach1;
          float x = s[j][c];
          if (a.softcap > 0) x = scale.capped(x);
          if (position < reach.first || position > reach.last) x = nothing;
          s[j][c] = x;
          best[c >> 1] = fmaxf(best[c >> 1], x);
        }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        best[h] = fmaxf(best[h], __shfl_xor_sync(~0u, best[h], 1));
        best[h] = fmaxf(best[h], __shfl_xor_sync(~0u, best[h], 2));
        if (t == 0) maxima[warp * 16 + g + 8 * h] = best[h];
      }
      __syncthreads();
      float part_m[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int row = g + 8 * h;
        const float most = fmaxf(fmaxf(maxima[row], maxima[16 + row]), fmaxf(maxima[32 + row], maxima[48 + row]));
        part_m[h] = most * scale.factor;
        const float off = most == nothing ? 0.0f : part_m[h];
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const float e0 = exp2_fast(fmaf(s[j][2 * h], scale.factor, -off));
          const float e1 = exp2_fast(fmaf(s[j][2 * h + 1], scale.factor, -off));
          const int at = Layout::weights + Rows<64>::at(row, warp * 2 + j) + 4 * t;
          *reinterpret_cast<uint32_t*>(shared + at) = pack<T>(e0, e1);
        }
      }
      __syncthreads();

      wait_all_but<2 * SLOTS - 1>();
      __syncwarp();
      float part_o[N][4] = {}, sum[4] = {};
#pragma unroll
      for (int k = 0; k < 4; k++) {
        uint32_t p[4];
        load_matrices(p, base + Layout::weights + Rows<64>::at(lane & 15, 2 * k + (lane >> 4)));
        multiply<T>(sum, p, ones<T>, ones<T>);
#pragma unroll
        for (int n = 0; n + 1 < N; n += 2) {
          uint32_t b[4];
          load_transposed(b, values + Rows<D>::at(16 * k + (lane & 15), warp * N + n + (lane >> 4)));
          multiply<T>(part_o[n], p, b[0], b[1]);
          multiply<T>(part_o[n + 1], p, b[2], b[3]);
        }
        if constexpr (N % 2) {
          uint32_t b[2];
          load_transposed(b, values + Rows<D>::at(16 * k + (lane & 15), warp * N + N - 1));
          multiply<T>(part_o[N - 1], p, b[0], b[1]);
        }
      }
      __syncwarp();
      copy_values();

#pragma unroll
      for (int h = 0; h < 2; h++) {
        const Fold fold(m[h], l[h], part_m[h], sum[2 * h]);
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
          for (int c = 2 * h; c < 2 * h + 2; c++) o[n][c] = fold(o[n][c], part_o[n][c]);
      }
      if (supers.ends(part + 1) || part + 1 == run.part1) {
        if (starts) {
#pragma unroll
          for (int h = 0; h < 2; h++) {
            const Fold fold(run_m[h], run_l[h], m[h], l[h]);
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
              for (int c = 2 * h; c < 2 * h + 2; c++) run_o[n][c] = fold(run_o[n][c], o[n][c]);
          }
        } else {
          store(m, l, o);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) m[h] = nothing, l[h] = 0;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
          for (int c = 0; c < 4; c++) o[n][c] = 0;
      }
    }

    if (run.runs == 1) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        if (g + 8 * h >= valid) continue;
        const int r = h ? r1 : r0, token = r / group, head = kv_head * group + r % group;
        const float by = finish(run_m[h], run_l[h], a.sinks, head);
        __nv_bfloat16* to = a.y + (int64_t(run.token_start + token) * a.heads + head) * D + warp * (D / 4) + 2 * t;
#pragma unroll
        for (int n = 0; n < N; n++)
          *reinterpret_cast<uint32_t*>(to + 8 * n) =
              pack<__nv_bfloat16>(run_o[n][2 * h] * by, run_o[n][2 * h + 1] * by);
      }
      continue;
    }
    if (starts) store(run_m, run_l, run_o);
    int* flag = reinterpret_cast<int*>(shared + Layout::flag);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      int* arrived = a.arrived + run.rows * a.kv_heads + kv_head;
      const int before = atomicAdd(arrived, 1);
      *flag = before;
      if (before == run.runs - 1) *arrived = 0;  // for the next layer
    }
    __syncthreads();
    if (*flag == run.runs - 1) {
      __threadfence();
      merge<T, D>(a, run, kv_head, group, valid);
    }
  }
}

}  // namespace attn
}  // namespace mr
