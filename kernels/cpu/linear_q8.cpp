// Owns: y = x · Wᵀ for the block formats over a few tokens, straight from the packed codes: bound by memory. More tokens
// go to linear_panel.cpp.
#include <algorithm>
#include "linear_block.h"

namespace mr {
namespace {

// Straight from the packed codes: one group, T tokens (rows of `blocks` records from x on), y[t] its R outputs.
template <class L, int T>
inline void direct(const uint8_t* group, int blocks, const ActBlock* x, vf y[T]) {
  const int64_t stride = blocks;
  for (int t = 0; t < T; t++) y[t] = vzero();
  const int supers = blocks / L::subs;
  for (int i = 0; i < supers; i++) {
    const uint8_t* super = group + int64_t(i) * L::bytes * R;
    for (int s = 0; s < L::subs; s++, x++) {
      const uint8_t* sub = super + (L::head + s * L::sub) * R;
      for (int line = 0; line < (L::sub + L::head / L::subs) * R; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(sub + 1024 + line), _MM_HINT_T0);
      constexpr int A = accumulators<L>;
      dot a[T][A];
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) dot_begin<L>(a[t], x[t * stride]);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        vi low, high;
        load_codes<L>(sub, j, low, high);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
          const int8_t* codes = x[t * stride].codes + 4 * j;
          const vi x0 = iset32(load_i32(codes)), x1 = iset32(load_i32(codes + 16));
          if constexpr (split<L>) {
            const vi mask = iset8(15);
            a[t][0] = dot_step(dot_step(a[t][0], iand(low, mask), x0), iand(high, mask), x1);
            a[t][1] = dot_step(dot_step(a[t][1], iand(iright(low, 4), mask), x0), iand(iright(high, 4), mask), x1);
          } else {
            a[t][0] = dot_step(a[t][0], low, x0);
            a[t][A - 1] = dot_step(a[t][A - 1], high, x1);
          }
        }
      }
      const SubScales w = load_scales<L>(super, s);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) dot_finish<L>(a[t], w, x[t * stride], y[t]);
    }
  }
}

template <class L, int T>
void direct_groups(const RunArgs& a, int t, int64_t group_bytes) {
  const int blocks = a.w.cols / 32;
  const ActBlock* x = static_cast<const ActBlock*>(a.act) + int64_t(t) * blocks;
  for (int g = a.g0; g < a.g1; g++) {
    vf y[T];
    direct<L, T>(a.w.data + g * group_bytes, blocks, x, y);
    for (int i = 0; i < T; i++) store_rows(y[i], a.y + (t + i) * a.ldy, g * R, std::min(R, a.w.rows - g * R), a.epilogue);
  }
}

}  // namespace

void run_q8(const RunArgs& a) {
  if (a.t1 - a.t0 > 4) return run_panels(a);
  const int64_t group_bytes = linear_group_bytes(a.w.type, a.w.cols);
  for_block_format(a.w.type, [&]<Storage S>() {
    using L = Layout<S>;
    switch (a.t1 - a.t0) {
      case 4: return direct_groups<L, 4>(a, a.t0, group_bytes);
      case 3: return direct_groups<L, 3>(a, a.t0, group_bytes);
      case 2: return direct_groups<L, 2>(a, a.t0, group_bytes);
      case 1: return direct_groups<L, 1>(a, a.t0, group_bytes);
    }
  });
}

}  // namespace mr
