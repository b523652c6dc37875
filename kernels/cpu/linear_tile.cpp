// Owns: y = x · Wᵀ for the block formats over more than a few tokens on processors with tile registers (AMX): the same
// arithmetic as linear_panel.cpp, bit for bit. A tile product gives the exact sums of 16 tokens and R rows over 32 values,
// which are multiplied by their scales in vectors as everywhere:
//
//   tokens of 16, V groups, a slab of k:   for each 4 blocks:  4 tile products → sums in memory (first-level cache)
//                                          of the 4 before:    y[t] = fma(sum, scale · x_scale[t], y[t]), 16 y in registers
//
// A panel: for each 32 values, for each group: | 8 vectors of signed quads | scale | min if any | scales of both halves in
// f32 if any |. The quads of R rows side by side are the rows of a tile. Where halves have scales of their own, their sums
// times those scales stay below 2²⁴: exact in f32 too.
#include <algorithm>
#include <cstring>
#include "linear_block.h"
#include "tile.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mr {
namespace {

constexpr int slab_blocks = 16, max_tokens = 256;
constexpr int64_t act_budget = 1 << 20;  // bytes of activations that a run of tokens may hold in the second-level cache
constexpr int sums_at_once = 4;

constexpr int64_t panel_bytes = int64_t(slab_blocks) * 2 * 11 * VB;
constexpr int64_t acc_bytes = int64_t(max_tokens) * 2 * VB;
constexpr int64_t sums_bytes = int64_t(2) * sums_at_once * 16 * VB;

}  // namespace

const int64_t tile_scratch_bytes = has_tiles ? panel_bytes + acc_bytes + sums_bytes : 0;

#if defined(__AMX_INT8__)
// The system gives a process the tiles' state only if it asks.
static bool permitted() {
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
bool tiles_for(int tokens) {
  static const bool may = permitted();
  return may && tokens > direct_tokens;
}
#else
bool tiles_for(int tokens) { return has_tiles && tokens > direct_tokens; }
#endif

#if defined(__AMX_INT8__) || defined(MR_EMULATE_TILES)
namespace {

template <class L>
constexpr int sums_each = halves<L> ? 2 : 1;  // tile products a block
template <class L>
constexpr int block_vectors = 8 + 1 + (L::has_min ? 1 : 0) + (halves<L> ? 2 : 0);

// Blocks [b0, b1) of V groups from `group` on.
template <class L, int V>
void expand(const uint8_t* group, int64_t group_bytes, int b0, int b1, uint8_t* panel) {
  const vi middle = iset8(centre<L>);
  for (int b = b0; b < b1; b++)
    for (int v = 0; v < V; v++, panel += block_vectors<L> * VB) {
      const int s = b % L::subs;
      const uint8_t* super = group + v * group_bytes + int64_t(b / L::subs) * L::bytes * R;
      const uint8_t* sub = super + (L::head + s * L::sub) * R;
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        vi low, high;
        load_codes<L>(sub, j, low, high);
        if constexpr (centre<L> != 0) low = isub8(low, middle), high = isub8(high, middle);
        istore(panel + VB * j, low);
        istore(panel + VB * (j + 4), high);
      }
      const SubScales w = load_scales<L>(super, s);
      float* to = reinterpret_cast<float*>(panel + 8 * VB);
      vstore(to, w.scale);
      if constexpr (L::has_min) vstore(to + R, w.min);
      if constexpr (halves<L>)
        for (int h = 0; h < 2; h++) vstore(to + (1 + h) * R, to_vf(iload_s8(super + (2 + 2 * s + h) * R)));
    }
}

// One tile product to sums [16][R]; `bytes` of k lie `first` bytes into the block.
template <int C>
inline void product(const TileBlock& x, const uint8_t* quads, int first, int32_t* sums) {
  constexpr int A = 4 + (C & 1), B = 6 + (C & 1);
  tile_zero<C>();
  tile_load<A>(x.codes[0] + first, 32);
  tile_load<B>(quads + first / 4 * VB, VB);
  tile_dot_i8<C, A, B>();
  tile_store<C>(sums + C * 16 * R, VB);
}

// Up to sums_at_once tile products: those of `blocks` blocks, whose columns are `stride` bytes apart.
template <class L>
inline void products(const TileBlock* x, const uint8_t* column, int64_t stride, int blocks, int32_t* sums) {
  if constexpr (halves<L>) {
    product<0>(x[0], column, 0, sums);
    product<1>(x[0], column, 16, sums);
    if (blocks < 2) return;
    product<2>(x[1], column + stride, 0, sums);
    product<3>(x[1], column + stride, 16, sums);
  } else {
    product<0>(x[0], column, 0, sums);
    if (blocks < 2) return;
    product<1>(x[1], column + stride, 0, sums);
    if (blocks < 3) return;
    product<2>(x[2], column + 2 * stride, 0, sums);
    if (blocks < 4) return;
    product<3>(x[3], column + 3 * stride, 0, sums);
  }
}

template <class L>
inline void combine(const TileBlock& x, const uint8_t* column, const int32_t* sums, vf y[16]) {
  const float* scales = reinterpret_cast<const float*>(column + 8 * VB);
  const vf scale = vload(scales), second = vload(scales + R), third = halves<L> ? vload(scales + 2 * R) : second;
#pragma GCC unroll 16
  for (int t = 0; t < 16; t++) {
    vf sum = to_vf(iload(sums + t * R));
    if constexpr (halves<L>) sum = vfma(to_vf(iload(sums + (16 + t) * R)), third, vmul(sum, second));
    y[t] = vfma(sum, vmul(scale, vset(x.scale[t])), y[t]);
    if constexpr (L::has_min) y[t] = vfma(second, vset(x.sum[t]), y[t]);
  }
}

// Adds 16 tokens' sums over the panel's blocks to acc[16][R]; x: the tokens' blocks in order.
template <class L>
void tile(const uint8_t* panel, int64_t stride, int blocks, const TileBlock* x, float* acc, int32_t* sums, Ahead& next) {
  constexpr int at_once = sums_at_once / sums_each<L>;
  constexpr int64_t half = int64_t(sums_at_once) * 16 * R;
  vf y[16];
#pragma GCC unroll 16
  for (int t = 0; t < 16; t++) y[t] = vload(acc + t * R);
  products<L>(x, panel, stride, blocks, sums);
  for (int b = 0, turn = 0; b < blocks; b += at_once, turn ^= 1) {
    const int after = b + at_once;
    // Of the next blocks, while the sums of these are combined.
    if (after < blocks) products<L>(x + after, panel + after * stride, stride, blocks - after, sums + (turn ^ 1) * half);
    const int end = std::min(after, blocks);
    for (int i = b; i < end; i++) {
      next.step();
      combine<L>(x[i], panel + i * stride, sums + turn * half + (i - b) * sums_each<L> * 16 * R, y);
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < 16; t++) vstore(acc + t * R, y[t]);
}

// V groups from g on, tokens [t0, t1), at most max_tokens and their tiles of 16.
template <class L, int V>
void tiles_run(const RunArgs& a, int t0, int t1, int g) {
  using U = Unpacked<L>;
  uint8_t* panel = static_cast<uint8_t*>(a.scratch);
  float* acc = reinterpret_cast<float*>(panel + panel_bytes);
  int32_t* sums = reinterpret_cast<int32_t*>(panel + panel_bytes + acc_bytes);
  const int64_t group_bytes = linear_group_bytes(a.w.type, a.w.cols);
  const int blocks = a.w.cols / 32, tile0 = t0 / 16, tiles = (t1 + 15) / 16 - tile0;
  constexpr int64_t column = block_vectors<U> * VB;
  std::memset(acc, 0, size_t(tiles) * 16 * V * VB);
  const int slabs = (blocks + slab_blocks - 1) / slab_blocks;
  const int step = ((blocks + slabs - 1) / slabs + L::subs - 1) / L::subs * L::subs;
  for (int b = 0; b < blocks; b += step) {
    const int count = std::min(step, blocks - b);
    expand<L, V>(a.w.data + g * group_bytes, group_bytes, b, b + count, panel);
    Ahead next = ahead_of<L>(a, g, V, b, step, group_bytes, L::bits);
    const TileBlock* x = static_cast<const TileBlock*>(a.act) + int64_t(tile0) * blocks + b;
    for (int i = 0; i < tiles; i++)
      for (int v = 0; v < V; v++)
        tile<U>(panel + v * column, V * column, count, x + int64_t(i) * blocks, acc + (i * V + v) * 16 * R, sums, next);
  }
  for (int t = t0; t < t1; t++)
    for (int v = 0; v < V; v++) {
      const int row = (g + v) * R, i = t / 16 - tile0;
      store_rows(vload(acc + ((i * V + v) * 16 + t % 16) * R), a.y + t * a.ldy, row, std::min(R, a.w.rows - row), a.epilogue);
    }
}

template <class L>
void all_tiles(const RunArgs& a) {
  TileShapes shapes;
  const int k = 32 / sums_each<L>;
  for (int i = 0; i < 4; i++) shapes.set(i, 16, VB);
  for (int i = 4; i < 6; i++) shapes.set(i, 16, k);
  for (int i = 6; i < 8; i++) shapes.set(i, k / 4, VB);
  tiles_begin(shapes);
  const int64_t tile_bytes = a.w.cols / 32 * int64_t(sizeof(TileBlock));
  const int fit = int(std::clamp<int64_t>(act_budget / tile_bytes, 4, max_tokens / 16)) * 16;
  for (int t = a.t0; t < a.t1;) {
    const int end = std::min(t / 16 * 16 + fit, a.t1);
    int g = a.g0;
    for (; g + 2 <= a.g1; g += 2) tiles_run<L, 2>(a, t, end, g);
    if (g < a.g1) tiles_run<L, 1>(a, t, end, g);
    t = end;
  }
  tiles_end();
}

}  // namespace

void run_tiles(const RunArgs& a) {
  for_block_format(a.w.type, [&]<Storage S>() { all_tiles<Layout<S>>(a); });
}
#else
void run_tiles(const RunArgs&) {}
#endif

}  // namespace mr
