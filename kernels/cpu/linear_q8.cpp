// Owns: y = x · Wᵀ for the block formats over a few tokens, straight from the packed codes: bound by memory. More tokens
// go to linear_panel.cpp.
#include <algorithm>
#include "linear_block.h"

namespace mr {
namespace {

// How far ahead the codes are asked for.
constexpr int ahead = 1024;

// V groups, T tokens (rows of `blocks` records from x on); y[t][v]: R outputs.
template <class L, int T, int V>
inline void direct(const uint8_t* group, int64_t group_bytes, int blocks, const ActBlock* x, vf y[T][V]) {
  constexpr int A = accumulators<L>;
  const int64_t stride = blocks;
  for (int t = 0; t < T; t++)
    for (int v = 0; v < V; v++) y[t][v] = vzero();
  const int supers = blocks / L::subs;
  for (int i = 0; i < supers; i++, group += L::bytes * R) {
    for (int s = 0; s < L::subs; s++, x++) {
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) {
        const uint8_t* super = group + v * group_bytes;
        const uint8_t* sub = super + (L::head + s * L::sub) * R;
        for (int line = 0; line < (L::sub + L::head / L::subs) * R; line += 64)
          _mm_prefetch(reinterpret_cast<const char*>(sub + ahead + line), _MM_HINT_T0);
        dot a[T][A];
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) dot_begin<L>(a[t], x[t * stride]);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
          vi low, high;
          load_codes<L>(sub, j, low, high);
#pragma GCC unroll 4
          for (int t = 0; t < T; t++) {
            const int8_t* codes = x[t * stride].codes + 4 * j;
            dot_pair<L>(a[t], low, high, iset32(load_i32(codes)), iset32(load_i32(codes + 16)));
          }
        }
        const SubScales w = load_scales<L>(super, s);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) dot_finish<L>(a[t], w, x[t * stride], y[t][v]);
      }
    }
  }
}

template <class L, int T, int V>
void direct_group(const RunArgs& a, int64_t group_bytes, int g) {
  const int blocks = a.w.cols / 32;
  vf y[T][V];
  direct<L, T, V>(a.w.data + g * group_bytes, group_bytes, blocks,
                  static_cast<const ActBlock*>(a.act) + int64_t(a.t0) * blocks, y);
  for (int t = 0; t < T; t++)
    for (int v = 0; v < V; v++)
      store_rows(y[t][v], a.y + (a.t0 + t) * a.ldy, (g + v) * R, std::min(R, a.w.rows - (g + v) * R), a.epilogue);
}

template <class L, int T>
void direct_groups(const RunArgs& a, int64_t group_bytes) {
  int g = a.g0;
  if constexpr (T == 1)
    for (; g + 2 <= a.g1; g += 2) direct_group<L, T, 2>(a, group_bytes, g);
  for (; g < a.g1; g++) direct_group<L, T, 1>(a, group_bytes, g);
}

}  // namespace

void run_q8(const RunArgs& a) {
  if (a.t1 - a.t0 > 4) return run_panels(a);
  const int64_t group_bytes = linear_group_bytes(a.w.type, a.w.cols);
  for_block_format(a.w.type, [&]<Storage S>() {
    using L = Layout<S>;
    switch (a.t1 - a.t0) {
      case 4: return direct_groups<L, 4>(a, group_bytes);
      case 3: return direct_groups<L, 3>(a, group_bytes);
      case 2: return direct_groups<L, 2>(a, group_bytes);
      case 1: return direct_groups<L, 1>(a, group_bytes);
    }
  });
}

}  // namespace mr
