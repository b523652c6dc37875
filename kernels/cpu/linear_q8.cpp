// Owns: y = x · Wᵀ for the block formats over a few tokens, straight from the packed codes: bound by memory. More tokens
// go to linear_panel.cpp.
#include <algorithm>
#include "linear_block.h"

namespace mr {
namespace {

// Groups are read side by side: several streams keep more of memory busy than one, and each is asked for ahead.
constexpr int max_streams = 8, ahead = 1024;

// `streams` groups, T tokens (rows of `blocks` records from x on); y[v][t]: R outputs.
template <class L, int T>
inline void direct(const uint8_t* group, int64_t group_bytes, int streams, int blocks, const ActBlock* x, vf y[][T]) {
  const int64_t stride = blocks;
  for (int v = 0; v < streams; v++)
    for (int t = 0; t < T; t++) y[v][t] = vzero();
  const int supers = blocks / L::subs;
  for (int i = 0; i < supers; i++, group += L::bytes * R) {
    for (int s = 0; s < L::subs; s++, x++) {
      // Near its end a stream asks for its next group, which lies max_streams further.
      const bool near = (int64_t(i) * L::bytes + L::head + s * L::sub) * R + ahead >= group_bytes;
      const int64_t asked = ahead + (near ? (max_streams - 1) * group_bytes : 0);
      for (int v = 0; v < streams; v++) {
        const uint8_t* super = group + v * group_bytes;
        const uint8_t* sub = super + (L::head + s * L::sub) * R;
        for (int line = 0; line < (L::sub + L::head / L::subs) * R; line += 64)
          _mm_prefetch(reinterpret_cast<const char*>(sub + asked + line), _MM_HINT_T0);
        dot a[T][accumulators<L>];
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
        for (int t = 0; t < T; t++) dot_finish<L>(a[t], w, x[t * stride], y[v][t]);
      }
    }
  }
}

template <class L, int T>
void direct_groups(const RunArgs& a, int64_t group_bytes) {
  const int blocks = a.w.cols / 32;
  const ActBlock* x = static_cast<const ActBlock*>(a.act) + int64_t(a.t0) * blocks;
  for (int g = a.g0; g < a.g1; g += max_streams) {
    const int streams = std::min(max_streams, a.g1 - g);
    vf y[max_streams][T];
    direct<L, T>(a.w.data + g * group_bytes, group_bytes, streams, blocks, x, y);
    for (int v = 0; v < streams; v++)
      for (int t = 0; t < T; t++) {
        const int row = (g + v) * R;
        store_rows(y[v][t], a.y + (a.t0 + t) * a.ldy, row, std::min(R, a.w.rows - row), a.epilogue);
      }
  }
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
