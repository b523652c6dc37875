// Owns: y = x · Wᵀ for the block formats over many tokens. The codes of one or two groups over a slab of k are unpacked
// once into the caller's scratch, where they stay in the first-level cache while tiles of tokens pass:
//
//   for tokens in runs that keep their activations in the second-level cache
//     for each pair of groups
//       for each slab of k:  expand;  for each tile of T tokens: the tile's sums over the slab
//       store
//
// A panel: for each 32 values, for each group: | 8 vectors of quads (split bytes: 8 of low, 8 of high nibbles) | scale |
// min if any | int8 scales of both halves if any |   With i8mm the quads lie in pairs (store_pairs).
#include <algorithm>
#include <cstring>
#include "linear_block.h"

namespace mr {
namespace {

#if defined(__AVX512F__)
constexpr int max_tile = 8, slab_blocks = 16;
#else
constexpr int max_tile = 4, slab_blocks = 24;
#endif
constexpr int max_tokens = 128;
constexpr int64_t act_budget = 192 << 10;  // bytes of activations that a run of tokens may hold in the cache

// Two accumulators a token fill the registers: two groups, or the two sums of one.
template <class L>
constexpr int max_groups = accumulators<L> == 1 ? 2 : 1;
template <class L>
constexpr int code_vectors = split<L> ? 16 : 8;
template <class L>
constexpr int block_vectors = code_vectors<L> + 1 + (L::has_min ? 1 : 0) + (halves<L> ? 2 : 0);

constexpr int64_t panel_bytes = int64_t(slab_blocks) * 2 * 10 * VB;
constexpr int64_t acc_bytes = int64_t(max_tokens) * 2 * VB;

// Blocks [b0, b1) of V groups from `group` on.
template <class L, int V>
void expand(const uint8_t* group, int64_t group_bytes, int b0, int b1, uint8_t* panel) {
  for (int b = b0; b < b1; b++)
    for (int v = 0; v < V; v++, panel += block_vectors<L> * VB) {
      const int s = b % L::subs;
      const uint8_t* super = group + v * group_bytes + int64_t(b / L::subs) * L::bytes * R;
      const uint8_t* sub = super + (L::head + s * L::sub) * R;
#if defined(__ARM_FEATURE_MATMUL_INT8)
      vi quads[8];
      for (int j = 0; j < 4; j++) load_codes<L>(sub, j, quads[j], quads[j + 4]);
      for (int j = 0; j < 8; j += 2) store_pairs(panel + VB * j, quads[j], quads[j + 1]);
#else
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        vi low, high;
        load_codes<L>(sub, j, low, high);
        if constexpr (split<L>) {
          const vi mask = iset8(15);
          istore(panel + VB * (j + 8), iand(iright(low, 4), mask));
          istore(panel + VB * (j + 12), iand(iright(high, 4), mask));
          low = iand(low, mask), high = iand(high, mask);
        }
        istore(panel + VB * j, low);
        istore(panel + VB * (j + 4), high);
      }
#endif
      const SubScales w = load_scales<L>(super, s);
      uint8_t* to = panel + code_vectors<L> * VB;
      vstore(reinterpret_cast<float*>(to), w.scale);
      if constexpr (L::has_min) vstore(reinterpret_cast<float*>(to + VB), w.min);
      if constexpr (halves<L>) istore(to + VB, w.half[0]), istore(to + 2 * VB, w.half[1]);
    }
}

template <class L>
inline SubScales panel_scales(const uint8_t* at) {
  SubScales w;
  w.scale = vload(reinterpret_cast<const float*>(at));
  if constexpr (L::has_min) w.min = vload(reinterpret_cast<const float*>(at + VB));
  if constexpr (halves<L>) w.half[0] = iload(at + VB), w.half[1] = iload(at + 2 * VB);
  return w;
}

#if defined(__ARM_FEATURE_MATMUL_INT8)

// Adds T tokens' sums over the panel's blocks to acc[t][v][R]; x: T rows of `stride` records. Tokens go in pairs; one
// alone is its own neighbour.
template <class L, int T, int V>
void tile(const uint8_t* panel, int blocks, const ActBlock* x, int64_t stride, float* acc, Ahead& next) {
  constexpr int P = (T + 1) / 2, each = accumulators<L>, A = V * each;
  constexpr int column = block_vectors<L> * VB;
  for (int b = 0; b < blocks; b++, panel += V * column, x++) {
    next.step();
    pair_dot a[P][A];
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
#pragma GCC unroll 2
      for (int c = 0; c < A; c++) a[p][c] = pair_zero();
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2)
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) {
        const int8_t *first = x[2 * p * stride].codes + 4 * j, *second = T == 1 ? first : x[(2 * p + 1) * stride].codes + 4 * j;
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) pair_step(a[p][v * each + (halves<L> ? j / 4 : 0)], panel + VB * j + v * column, first, second);
      }
    SubScales w[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) w[v] = panel_scales<L>(panel + v * column + code_vectors<L> * VB);
#pragma GCC unroll 8
    for (int t = 0; t < T; t++)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) {
        dot sums[each];
        dot_begin<L>(sums, x[t * stride]);
#pragma GCC unroll 2
        for (int c = 0; c < each; c++) sums[c] = dot_add(sums[c], pair_end(a[t / 2][v * each + c], t % 2));
        float* at = acc + (t * V + v) * R;
        vf y = vload(at);
        dot_finish<L>(sums, w[v], x[t * stride], y);
        vstore(at, y);
      }
    asm volatile("" ::: "memory");
  }
}

#else

// Adds T tokens' sums over the panel's blocks to acc[t][v][R]; x: T rows of `stride` records.
template <class L, int T, int V>
void tile(const uint8_t* panel, int blocks, const ActBlock* x, int64_t stride, float* acc, Ahead& next) {
  constexpr int A = V * accumulators<L>;
  constexpr int column = block_vectors<L> * VB;
  for (int b = 0; b < blocks; b++, panel += V * column, x++) {
    next.step();
    dot a[T][A];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) dot_begin<L>(a[t] + v * accumulators<L>, x[t * stride]);
    if constexpr (halves<L>) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        const vi first = iload(panel + VB * j), second = iload(panel + VB * (j + 4));
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
          const int8_t* codes = x[t * stride].codes + 4 * j;
          a[t][0] = dot_step(a[t][0], first, iset32(load_i32(codes)));
          a[t][1] = dot_step(a[t][1], second, iset32(load_i32(codes + 16)));
        }
      }
    } else {
#pragma GCC unroll 8
      for (int j = 0; j < 8; j++) {
        vi w[A];
#pragma GCC unroll 2
        for (int c = 0; c < A; c++) w[c] = iload(panel + VB * j + c * (split<L> ? 8 * VB : column));
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
          const vi xj = iset32(load_i32(x[t * stride].codes + 4 * j));
#pragma GCC unroll 2
          for (int c = 0; c < A; c++) a[t][c] = dot_step(a[t][c], w[c], xj);
        }
      }
    }
    SubScales w[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) w[v] = panel_scales<L>(panel + v * column + code_vectors<L> * VB);
#pragma GCC unroll 8
    for (int t = 0; t < T; t++)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) {
        float* at = acc + (t * V + v) * R;
        vf y = vload(at);
        dot_finish<L>(a[t] + v * accumulators<L>, w[v], x[t * stride], y);
        vstore(at, y);
      }
    asm volatile("" ::: "memory");  // else the compiler moves acc to the stack around the loop
  }
}

#endif

// V groups from g on, tokens [t0, t1), at most max_tokens.
template <class L, int V>
void panel_run(const RunArgs& a, int t0, int t1, int g) {
  using U = Unpacked<L>;
  uint8_t* panel = static_cast<uint8_t*>(a.scratch);
  float* acc = reinterpret_cast<float*>(panel + panel_bytes);
  const int64_t group_bytes = linear_group_bytes(a.w.type, a.w.cols);
  const int blocks = a.w.cols / 32;
  std::memset(acc, 0, size_t(t1 - t0) * V * VB);
  const int slabs = (blocks + slab_blocks - 1) / slab_blocks;
  const int step = ((blocks + slabs - 1) / slabs + L::subs - 1) / L::subs * L::subs;
  for (int b = 0; b < blocks; b += step) {
    const int count = std::min(step, blocks - b);
    expand<L, V>(a.w.data + g * group_bytes, group_bytes, b, b + count, panel);
    Ahead next = ahead_of<L>(a, g, V, b, step, group_bytes);
    const ActBlock* x = static_cast<const ActBlock*>(a.act) + b;
    int t = t0;
    const auto tiles = [&]<int T>() {
      for (; t + T <= t1; t += T) tile<U, T, V>(panel, count, x + int64_t(t) * blocks, blocks, acc + (t - t0) * V * R, next);
    };
    if constexpr (max_tile == 8) tiles.template operator()<8>();
    tiles.template operator()<4>();
    tiles.template operator()<2>();
    tiles.template operator()<1>();
  }
  for (int t = t0; t < t1; t++)
    for (int v = 0; v < V; v++)
      store_rows(vload(acc + ((t - t0) * V + v) * R), a.y + t * a.ldy, (g + v) * R,
                 std::min(R, a.w.rows - (g + v) * R), a.epilogue);
}

template <class L>
void panels(const RunArgs& a) {
  const int64_t token_bytes = a.w.cols / 32 * int64_t(sizeof(ActBlock));
  const int fit = int(std::clamp<int64_t>(act_budget / token_bytes / 8 * 8, 64, max_tokens));
  for (int t = a.t0; t < a.t1; t += fit) {
    const int end = std::min(t + fit, a.t1);
    int g = a.g0;
    if constexpr (max_groups<L> == 2)
      for (; g + 2 <= a.g1; g += 2) panel_run<L, 2>(a, t, end, g);
    for (; g < a.g1; g++) panel_run<L, 1>(a, t, end, g);
  }
}

}  // namespace

const int64_t panel_scratch_bytes = panel_bytes + acc_bytes;

void run_panels(const RunArgs& a) {
  for_block_format(a.w.type, [&]<Storage S>() { panels<Layout<S>>(a); });
}

}  // namespace mr
