// Owns: attention of short rows (one token a sequence, or a few) over long pasts: runs of positions are dealt to a fixed
// grid, each block streams its run's pages, the last of a run's siblings folds their results.
//
// A block is 4 warps on one part of 64 positions at a time:
//   scores   warp w: positions [16w, 16w + 16), all of the 16 rows
//   weights  meet in shared memory (16 × 64), after the rows' maximum has
//   values   warp w: columns [w · D/4, (w + 1) · D/4), all positions
// Keys and values come SLOTS parts ahead and across runs. On Hopper one thread asks the copy engine for whole parts
// (BOXES): the cores' own copies cannot have enough bytes on their way to fill the memory's pipe. Elsewhere each warp
// copies just what it reads itself, so the copies wait for no other warp.
#pragma once
#include "attention.cuh"

namespace mr {
namespace attn {

constexpr int decode_threads = 128;

using Weights = Rows<64, tile_rows>;

template <int D, int SLOTS>
struct DecodeShared {
  static constexpr int tile = Rows<D>::bytes;
  static constexpr int weights = SLOTS * 2 * tile;             // [16][64] of T
  static constexpr int maxima = weights + Weights::bytes;      // [4][16] float
  static constexpr int barriers = maxima + 4 * 16 * 4;         // [SLOTS] of keys, [SLOTS] of values
  static constexpr int flag = barriers + 2 * SLOTS * 8;
  static constexpr int bytes = flag + 16;
};

// Floats of one partial result: o [16][D], then m [16], then l [16].
template <int D>
constexpr int partial_floats = 16 * (D + 2);

// This block's share: every gridDim.x-th pair of a run and a key/value head.
struct Share {
  int run, head;             // of the pair
  int runs, heads;           // how many there are
  int run_step, head_step;
  // The plan may be read before the wait: the launch before this one waits before it releases, so all before it are done.
  __device__ Share(const Args& a) : runs(__ldcg(a.plan)), heads(a.kv_heads) {
    run = blockIdx.x / heads, head = blockIdx.x % heads;
    run_step = gridDim.x / heads, head_step = gridDim.x % heads;
  }
  __device__ bool any() const { return run < runs; }
  __device__ const Run& at(const Args& a) const { return reinterpret_cast<const Run*>(a.plan + plan_header)[run]; }
  __device__ void next() {
    run += run_step, head += head_step;
    if (head >= heads) head -= heads, run++;
  }
};

// Where the copies are: a part of a run of this block's share.
template <int D>
struct Cursor {
  const Args& a;
  Share share;
  int part, part_end, page_base, length, kv_start;
  int page, next_page;  // ids; the next is asked for a part ahead

  __device__ Cursor(const Args& args, const Share& from) : a(args), share(from) { enter(); }
  __device__ bool any() const { return share.any(); }
  __device__ int real() const { return length - part * part_tokens; }
  // Written by steps before this one.
  __device__ bool old() const { return any() && (part + 1) * part_tokens <= kv_start; }
  // From the pool's start to this part's rows of the head.
  __device__ int64_t bytes() const { return page * a.page_bytes + share.head * (part_tokens * D * 2); }
  __device__ void enter() {
    if (!any()) return;
    const Run& run = share.at(a);
    part = run.part0, part_end = run.part1, page_base = run.page_base, kv_start = run.kv_start, length = kv_start + run.n;
    page = run.page0, next_page = run.page1;
  }
  __device__ void advance() {
    if (!any()) return;
    if (++part < part_end) {
      page = next_page;
      if (part + 1 < part_end) next_page = a.page_ids[page_base + part + 1];
    } else {
      share.next();
      enter();
    }
  }
};

// Which 16-byte chunks of a part's keys and values a lane copies: those that its own warp will read.
template <int D>
struct Copier {
  static constexpr int stride = Rows<D>::stride, C = Rows<D>::chunks, N = D / 32;
  uint32_t key_to, value_to;
  int key_from, value_from, key_row, value_row;

  __device__ Copier(int warp, int lane) {
    // 8 rows × 4 chunks at a time, such that 8 lanes write to different banks.
    const int row = (lane >> 3) + (lane & 4);
    key_row = warp * 16 + row;
    key_to = Rows<D>::at(key_row, lane & 3), key_from = key_row * 2 * D + (lane & 3) * 16;
    // Of values of 64 columns a warp reads 2 chunks a row: 16 rows at a time.
    value_row = N == 2 ? (lane & 6) + (lane >> 3 & 1) + (lane >> 4) * 8 : row;
    const int chunk = warp * N + (N == 2 ? lane & 1 : lane & 3);
    value_to = Rows<D>::at(value_row, chunk), value_from = value_row * 2 * D + chunk * 16;
  }
  // The chunk 4 · i further: in the swizzle, bit 6 turns and the rest is added.
  __device__ static uint32_t further(uint32_t at, int i) {
    return Rows<D>::swizzled ? (i & 1 ? at ^ 64 : at) + (i >> 1) * (part_tokens * 128) : at + i * 64;
  }
  __device__ void keys(uint32_t tile, const uint8_t* from, int real) const {
    const uint8_t* at = from + key_from;
    const int rows = real - key_row;
#pragma unroll
    for (int h = 0; h < 16; h += 8)
#pragma unroll
      for (int i = 0; i < C / 4; i++)
        copy_async(further(tile + key_to, i) + h * stride, at + (h * 2 * D + i * 64), h < rows);
  }
  __device__ void values(uint32_t tile, const uint8_t* from, int real, int warp, int lane) const {
    if constexpr (N == 3) {
#pragma unroll
      for (int i = 0; i < 6; i++) {
        const int c = i * 32 + lane, row = c / 3, chunk = warp * 3 + c % 3;
        copy_async(tile + Rows<D>::at(row, chunk), from + row * 2 * D + chunk * 16, row < real);
      }
    } else {
      const uint8_t* at = from + value_from;
      const int rows = real - value_row;
      constexpr int step = N == 2 ? 16 : 8;
#pragma unroll
      for (int h = 0; h < 64; h += step)
#pragma unroll
        for (int i = 0; i < (N + 3) / 4; i++)
          copy_async(further(tile + value_to, i) + h * stride, at + (h * 2 * D + i * 64), h < rows);
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
    uint2 out = {pack<bf16>(o.x * by, o.y * by), pack<bf16>(o.z * by, o.w * by)};
    *reinterpret_cast<uint2*>(a.y + (int64_t(run.token_start + token) * a.heads + head) * D + column) = out;
  }
}

// key_map, value_map: with BOXES, of the layer's pool as [pages][kv heads · 64][D].
template <class T, int D, int SLOTS, bool BOXES>
__device__ void decode(const Args& a, const TensorMap* key_map, const TensorMap* value_map) {
  using Layout = DecodeShared<D, SLOTS>;
  constexpr int K = D / 16;      // steps of 16 dimensions
  constexpr int N = D / 4 / 8;   // a warp's columns of values, in eights
  static_assert(D % 32 == 0);
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = shared_address(shared);
  float* maxima = reinterpret_cast<float*>(shared + Layout::maxima);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int g = lane >> 2, t = lane & 3;
  const int group = a.heads / a.kv_heads;
  const Supers supers(a.kv_heads, a.window);
  const Scale scale(a.scale, a.softcap);

#if __CUDA_ARCH__ >= 900
  if constexpr (BOXES) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2 * SLOTS; i++) barrier_init(base + Layout::barriers + i * 8);
      before_copies();
    }
    __syncthreads();
  }
#endif
  release();
  Share share(a);
  // Blocks without a share make room at once: the next product's rings fill there. Block 0 keeps the order of launches.
  if (!share.any() && blockIdx.x > 0) return;
  if constexpr (BOXES) wait();
  Cursor<D> ahead(a, share);
  const Copier<D> copier(warp, lane);
  const auto turn = [&](uint32_t tile) { return tile == base + (SLOTS - 1) * 2 * Layout::tile ? base : tile + 2 * Layout::tile; };
  uint32_t tile_ahead = base;
  [[maybe_unused]] uint32_t barrier_ahead = base + Layout::barriers;

#if __CUDA_ARCH__ >= 900
  // Of the part whose keys have been asked for and whose values have not; −1: none.
  int late_page = -1, late_head = 0;
  const auto ask = [&](uint32_t to, const TensorMap* map, int head, int page, uint32_t barrier) {
    barrier_expect(barrier, Layout::tile);
    for (int c = 0; c < D / 64; c++) copy_box(to + c * (part_tokens * 128), map, c * 64, head * part_tokens, page, barrier);
  };
  // The values of the part before, then the keys of the next.
  const auto ask_part = [&] {
    if (late_page >= 0) {
      const bool wrapped = tile_ahead == base;
      const uint32_t to = (wrapped ? base + (SLOTS - 1) * 2 * Layout::tile : tile_ahead - 2 * Layout::tile) + Layout::tile;
      const uint32_t barrier = (wrapped ? base + Layout::barriers + (SLOTS - 1) * 8 : barrier_ahead - 8) + SLOTS * 8;
      ask(to, value_map, late_head, late_page, barrier);
    }
    late_page = -1;
    if (!ahead.any()) return;
    late_page = ahead.page, late_head = ahead.share.head;
    ask(tile_ahead, key_map, late_head, late_page, barrier_ahead);
    ahead.advance();
    tile_ahead = turn(tile_ahead);
    barrier_ahead = tile_ahead == base ? base + Layout::barriers : barrier_ahead + 8;
  };
#endif
  const auto copy_part = [&] {
    if (ahead.any()) copier.keys(tile_ahead, a.k + ahead.bytes(), ahead.real());
    commit();
    if (ahead.any()) copier.values(tile_ahead + Layout::tile, a.v + ahead.bytes(), ahead.real(), warp, lane);
    commit();
    ahead.advance();
    tile_ahead = turn(tile_ahead);
  };
  if constexpr (BOXES) {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x == 0)
      for (int i = 0; i < SLOTS; i++) ask_part();
#endif
  } else {
    // The launch before this one waits before it releases: of the cache, it alone may still be writing.
    bool waited = false;
#pragma unroll
    for (int i = 0; i < SLOTS; i++) {
      if (!waited && !ahead.old()) wait(), waited = true;
      copy_part();
    }
    if (!waited) wait();
  }

  // Rows of a tile that a lane reads: keys not turned, values turned.
  const uint32_t key_at = Rows<D>::at(warp * 16 + ((lane >> 4) << 3) + (lane & 7), (lane >> 3) & 1);
  const uint32_t weight_at = base + Layout::weights + Weights::at(lane & 15, lane >> 4);
  const int weight_to = Layout::weights + Weights::at(g, warp * 2) + 4 * t;

  uint32_t keys = base, barrier = base + Layout::barriers, parity = 0;
  for (; share.any(); share.next()) {
    const Run run = share.at(a);
    const int kv_head = share.head;
    const int valid = min(tile_rows, run.n * group - run.row0);
    const int r0 = run.row0 + min(g, valid - 1), r1 = run.row0 + min(g + 8, valid - 1);
    const auto token_of = [&](int r) { return run.n == 1 ? 0 : r / group; };
    const auto place = [&](int r) {  // row r's query or result
      const int token = token_of(r), head = kv_head * group + r - token * group;
      return (int64_t(run.token_start + token) * a.heads + head) * D;
    };
    const Reach reach0(token_of(r0), 1, run.n, run.kv_start, a), reach1(token_of(r1), 1, run.n, run.kv_start, a);
    // Parts [inside, outside) are seen whole by all rows.
    const Reach low(token_of(run.row0), 1, run.n, run.kv_start, a);
    const Reach high(token_of(run.row0 + valid - 1), 1, run.n, run.kv_start, a);
    const int inside = (high.first + part_tokens - 1) / part_tokens, outside = (low.last + 1) / part_tokens;

    uint32_t q[K][4];
    {
      const bf16 *q0 = a.q + place(r0) + 2 * t, *q1 = a.q + place(r1) + 2 * t;
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
      const uint32_t values = keys + Layout::tile;
      if constexpr (BOXES) {
#if __CUDA_ARCH__ >= 900
        barrier_wait(barrier, parity);
#endif
      } else {
        wait_all_but<2 * SLOTS - 1>();
        __syncwarp();
      }
      float s[2][4] = {};
#pragma unroll
      for (int k = 0; k < K; k++) {
        uint32_t b[4];
        load_matrices(b, Rows<D>::moved(keys + key_at, 2 * k));
        multiply<T>(s[0], q[k], b[0], b[1]);
        multiply<T>(s[1], q[k], b[2], b[3]);
      }
      if (a.softcap > 0) {
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
          for (int c = 0; c < 4; c++) s[j][c] = scale.capped(s[j][c]);
      }
      if (part < inside || part >= outside) {
        const int p0 = part * part_tokens + warp * 16 + 2 * t;
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
          for (int c = 0; c < 4; c++) {
            const int position = p0 + 8 * j + (c & 1);
            const Reach& reach = c < 2 ? reach0 : reach1;
            if (position < reach.first || position > reach.last) s[j][c] = nothing;
          }
      }
      float best[2];
#pragma unroll
      for (int h = 0; h < 2; h++)
        best[h] = fmaxf(fmaxf(s[0][2 * h], s[0][2 * h + 1]), fmaxf(s[1][2 * h], s[1][2 * h + 1]));
#pragma unroll
      for (int h = 0; h < 2; h++) {
        best[h] = fmaxf(best[h], __shfl_xor_sync(~0u, best[h], 1));
        best[h] = fmaxf(best[h], __shfl_xor_sync(~0u, best[h], 2));
        if (t == 0) maxima[warp * 16 + g + 8 * h] = best[h];
      }
      __syncthreads();
#if __CUDA_ARCH__ >= 900
      // Everyone is done with this part's keys and with the values of the one before.
      if constexpr (BOXES)
        if (threadIdx.x == 0) ask_part();
#endif
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
          *reinterpret_cast<uint32_t*>(shared + (weight_to ^ (j * 16)) + h * 8 * Weights::stride) = pack<T>(e0, e1);
        }
      }
      if constexpr (BOXES) {
#if __CUDA_ARCH__ >= 900
        barrier_wait(barrier + SLOTS * 8, parity);
        // Rows that nobody has written yet may hold anything, and 0 · NaN is not 0.
        const int real = run.kv_start + run.n - part * part_tokens;
        if (real < part_tokens) {
          for (int i = threadIdx.x; i < (part_tokens - real) * Rows<D>::chunks; i += decode_threads) {
            const uint32_t at = values - base + Rows<D>::at(real + i / Rows<D>::chunks, i % Rows<D>::chunks);
            *reinterpret_cast<uint4*>(shared + at) = {0, 0, 0, 0};
          }
          before_copies();
        }
#endif
        __syncthreads();
      } else {
        __syncthreads();
        wait_all_but<2 * SLOTS - 2>();
        __syncwarp();
      }
      float part_o[N][4] = {}, sum[4] = {};
#pragma unroll
      for (int k = 0; k < 4; k++) {
        uint32_t p[4], b[2 * N];
        load_matrices(p, Weights::moved(weight_at, 2 * k));
#pragma unroll
        for (int n = 0; n + 1 < N; n += 2)
          load_transposed(reinterpret_cast<uint32_t(&)[4]>(b[2 * n]),
                          values + Rows<D>::at(16 * k + (lane & 15), warp * N + n + (lane >> 4)));
        if constexpr (N % 2)
          load_transposed(reinterpret_cast<uint32_t(&)[2]>(b[2 * N - 2]),
                          values + Rows<D>::at(16 * k + (lane & 15), warp * N + N - 1));
        if (!BOXES && k == 3) {
          // All reads of this part are under way: its place takes the part that is SLOTS further. Here the copies'
          // instructions keep nobody waiting: what follows needs no shared memory for a while.
          __syncwarp();
          copy_part();
        }
        multiply<T>(sum, p, ones<T>, ones<T>);
#pragma unroll
        for (int n = 0; n < N; n++) multiply<T>(part_o[n], p, b[2 * n], b[2 * n + 1]);
      }
      keys = turn(keys), barrier += 8;
      if (keys == base) barrier = base + Layout::barriers, parity ^= 1;

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
        const int r = h ? r1 : r0;
        const float by = finish(run_m[h], run_l[h], a.sinks, kv_head * group + r - token_of(r) * group);
        bf16* to = a.y + place(r) + warp * (D / 4) + 2 * t;
#pragma unroll
        for (int n = 0; n < N; n++)
          *reinterpret_cast<uint32_t*>(to + 8 * n) =
              pack<bf16>(run_o[n][2 * h] * by, run_o[n][2 * h + 1] * by);
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
