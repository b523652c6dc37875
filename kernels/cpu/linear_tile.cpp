// Owns: y = x · Wᵀ in bf16 tile products (AMX), for more than a few tokens where equal bits are not asked for: x and the
// weights' values rounded to bf16 (BF16 weights are exact), summed in f32 inside the tiles. Scales are in the values, so
// nothing leaves the tiles before a slab of k ends:
//
//   for tokens in runs whose activations stay in the second-level cache
//     for each slab of k: for each pair of groups:  expand once;  for each 32 tokens: 2 × 2 tiles over the slab, add to y
//
// A panel: for each group, for each 32 values: 16 × R pairs of bf16, values 2p and 2p + 1 of the R rows: a tile.
#include <algorithm>
#if defined(__AMX_INT8__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include "linear_block.h"
#include "tile.h"

namespace mr {
namespace {

// A run of tokens' activations stay in the second-level cache: as many tokens as there are, up to most_tokens, and as much
// of k as fits then.
constexpr int64_t act_budget = 1 << 20;
constexpr int most_tokens = 512, slab_cols = 2048;
constexpr int64_t tile_bytes = 16 * 64;  // of activations: 16 tokens × 32 values
constexpr int64_t panel_tile = 16 * VB, panel_bytes = 2 * slab_cols / 32 * panel_tile;
constexpr int64_t sums_bytes = 4 * 16 * VB;

}  // namespace

const int64_t tile_scratch_bytes = has_tiles ? panel_bytes + sums_bytes : 0;

#if defined(__AMX_INT8__)
// The system gives a process the tiles' state only if it asks.
static bool permitted() {
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
bool have_tiles() {
  static const bool may = permitted();
  return may;
}
#else
bool have_tiles() { return has_tiles; }
#endif

#if defined(__AMX_INT8__) || defined(MR_EMULATE_TILES)
namespace {

// Values 2p and 2p + 1 of R rows as pairs of bf16, rounded to nearest even.
#if defined(__AVX512BF16__)
inline vi bf16_pairs(vf even, vf odd) { return ipairs((vi)_mm512_cvtne2ps_pbh(odd, even)); }
#else
inline vi bf16_pairs(vf even, vf odd) {
  alignas(64) float values[2][R];
  vstore(values[0], even), vstore(values[1], odd);
  bf16 out[2 * R];
  for (int i = 0; i < 2 * R; i++) out[i] = from_float<bf16>(values[i / R][i % R]);
  return ipairs(iload(out));
}
#endif

// 32 values of R rows: block b of a group.
template <class L>
inline void expand_block(const uint8_t* group, int b, uint8_t* to) {
  const int s = b % L::subs;
  const uint8_t* super = group + int64_t(b / L::subs) * L::bytes * R;
  const uint8_t* sub = super + (L::head + s * L::sub) * R;
  const SubScales w = load_scales<L>(super, s);
  vf scale[2] = {w.scale, w.scale}, offset[2];
  for (int h = 0; h < 2; h++) {
    if constexpr (halves<L>) scale[h] = vmul(w.scale, to_vf(iload_s8(super + (2 + 2 * s + h) * R)));
    if constexpr (centre<L> != 0)
      offset[h] = vmul(scale[h], vset(-float(centre<L>)));
    else
      offset[h] = vzero();
    if constexpr (L::has_min) offset[h] = vadd(w.min, offset[h]);
  }
  const vi byte = iset32(255);
  const auto quad = [&](vi x, int h, uint8_t* at) {
    const vf v0 = vfma(to_vf(iand(x, byte)), scale[h], offset[h]);
    const vf v1 = vfma(to_vf(iand(iright32(x, 8), byte)), scale[h], offset[h]);
    const vf v2 = vfma(to_vf(iand(iright32(x, 16), byte)), scale[h], offset[h]);
    const vf v3 = vfma(to_vf(iright32(x, 24)), scale[h], offset[h]);
    istore(at, bf16_pairs(v0, v1));
    istore(at + VB, bf16_pairs(v2, v3));
  };
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    vi low, high;
    load_codes<L>(sub, j, low, high);
    quad(low, 0, to + 2 * j * VB);
    quad(high, 1, to + (2 * j + 8) * VB);
  }
}

// What expands the weights of a type.
template <class L>
struct Blocks {
  static void expand(const uint8_t* group, int b, uint8_t* to) { expand_block<L>(group, b, to); }
};
struct Plain {
  static void expand(const uint8_t* group, int b, uint8_t* to) {
    for (int p = 0; p < 16; p++) istore(to + p * VB, ipairs(iload(group + (16 * b + p) * VB)));
  }
};

// T tiles of tokens by V groups over `blocks` blocks; x: the tokens' tiles, `x_stride` bytes from one 16 tokens to the next.
template <int T, int V>
void tiles(const uint8_t* x, int64_t x_stride, const uint8_t* panel, int64_t group_stride, int blocks, float* sums) {
  tile_zero<0>();
  if constexpr (V == 2) tile_zero<1>();
  if constexpr (T == 2) tile_zero<2>();
  if constexpr (T == 2 && V == 2) tile_zero<3>();
  for (int b = 0; b < blocks; b++, x += tile_bytes, panel += panel_tile) {
    tile_load<4>(x, 64);
    tile_load<6>(panel, VB);
    tile_dot_bf16<0, 4, 6>();
    if constexpr (V == 2) {
      tile_load<7>(panel + group_stride, VB);
      tile_dot_bf16<1, 4, 7>();
    }
    if constexpr (T == 2) {
      tile_load<5>(x + x_stride, 64);
      tile_dot_bf16<2, 5, 6>();
      if constexpr (V == 2) tile_dot_bf16<3, 5, 7>();
    }
  }
  tile_store<0>(sums, VB);
  if constexpr (V == 2) tile_store<1>(sums + 16 * R, VB);
  if constexpr (T == 2) tile_store<2>(sums + 32 * R, VB);
  if constexpr (T == 2 && V == 2) tile_store<3>(sums + 48 * R, VB);
}

// Tokens [t0, t1) by V groups from g on, blocks [b0, b1) of k.
template <class Source, int V>
void panel_run(const RunArgs& a, int t0, int t1, int g, int b0, int b1) {
  uint8_t* panel = static_cast<uint8_t*>(a.scratch);
  float* sums = reinterpret_cast<float*>(panel + panel_bytes);
  const int64_t group_bytes = linear_group_bytes(a.w.type, a.w.cols), group_stride = (b1 - b0) * panel_tile;
  for (int v = 0; v < V; v++)
    for (int b = b0; b < b1; b++)
      Source::expand(a.w.data + (g + v) * group_bytes, b, panel + v * group_stride + (b - b0) * panel_tile);
  const int64_t x_stride = a.w.cols / 32 * tile_bytes;
  const Epilogue epilogue = b0 == 0 ? a.epilogue : Epilogue{nullptr, true};
  for (int i = t0 / 16; i < (t1 + 15) / 16; i += 2) {
    const uint8_t* x = static_cast<const uint8_t*>(a.act) + i * x_stride + b0 * tile_bytes;
    if (16 * (i + 1) < t1)
      tiles<2, V>(x, x_stride, panel, group_stride, b1 - b0, sums);
    else
      tiles<1, V>(x, x_stride, panel, group_stride, b1 - b0, sums);
    for (int t = std::max(16 * i, t0); t < std::min(16 * (i + 2), t1); t++)
      for (int v = 0; v < V; v++) {
        const int row = (g + v) * R, of = (t / 16 - i) * 2 + v;
        store_rows(vload(sums + (of * 16 + t % 16) * R), a.y + t * a.ldy, row, std::min(R, a.w.rows - row), epilogue);
      }
  }
}

template <class Source>
void run(const RunArgs& a) {
  TileShapes shapes;
  for (int i = 0; i < 4; i++) shapes.set(i, 16, VB);
  for (int i = 4; i < 6; i++) shapes.set(i, 16, 64);
  for (int i = 6; i < 8; i++) shapes.set(i, 16, VB);
  tiles_begin(shapes);
  const int blocks = a.w.cols / 32, tokens = std::min(a.t1 - a.t0 + 31, most_tokens) / 32 * 32;
  const int64_t fit = std::min<int64_t>(act_budget / (tokens * 64), slab_cols / 32), slabs = (blocks + fit - 1) / fit;
  const int step = int((blocks + slabs - 1) / slabs + 7) / 8 * 8;
  for (int t = a.t0; t < a.t1;) {
    const int end = std::min(t / 32 * 32 + tokens, a.t1);
    for (int b = 0; b < blocks; b += step) {
      const int to = std::min(b + step, blocks);
      int g = a.g0;
      for (; g + 2 <= a.g1; g += 2) panel_run<Source, 2>(a, t, end, g, b, to);
      if (g < a.g1) panel_run<Source, 1>(a, t, end, g, b, to);
    }
    t = end;
  }
  tiles_end();
}

}  // namespace

void run_tiles(const RunArgs& a) {
  if (a.w.type == Storage::BF16) return run<Plain>(a);
  for_block_format(a.w.type, [&]<Storage S>() { run<Blocks<Layout<S>>>(a); });
}
#else
void run_tiles(const RunArgs&) {}
#endif

}  // namespace mr
