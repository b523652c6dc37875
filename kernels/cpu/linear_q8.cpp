// Owns: y = x · Wᵀ for the block formats over a few tokens, straight from the packed codes: bound by memory. More tokens
// go to linear_panel.cpp.
#include <algorithm>
#include "linear_block.h"

namespace mr {
namespace {

// Groups are read side by side: several streams keep more of memory busy than one, and each is asked for ahead.
constexpr int max_streams = 8, ahead = 1024;

// `streams` groups, `stride` bytes apart, T tokens (rows of `blocks` records from x on); y[v][t]: R outputs. A stream's
// next group lies `next` bytes on.
template <class L, int T>
inline void direct(const uint8_t* group, int64_t stride_bytes, int64_t next, int streams, int blocks, const ActBlock* x,
                   vf y[][T]) {
  const int64_t stride = blocks;
  for (int v = 0; v < streams; v++)
    for (int t = 0; t < T; t++) y[v][t] = vzero();
  const int supers = blocks / L::subs;
  const int64_t group_bytes = int64_t(supers) * L::bytes * R;
  for (int i = 0; i < supers; i++, group += L::bytes * R) {
    for (int s = 0; s < L::subs; s++, x++) {
      const bool near = (int64_t(i) * L::bytes + L::head + s * L::sub) * R + ahead >= group_bytes;
      const int64_t asked = ahead + (near ? next - group_bytes : 0);
      for (int v = 0; v < streams; v++) {
        const uint8_t* super = group + v * stride_bytes;
        const uint8_t* sub = super + (L::head + s * L::sub) * R;
        for (int line = 0; line < (L::sub + L::head / L::subs) * R; line += 64)
          __builtin_prefetch(sub + asked + line);
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
  // From group g on, `streams` groups `apart`; each stream's next is `next` groups on.
  const auto pass = [&](int g, int apart, int next, int streams) {
    vf y[max_streams][T];
    direct<L, T>(a.w.data + g * group_bytes, apart * group_bytes, next * group_bytes, streams, blocks, x, y);
    for (int v = 0; v < streams; v++)
      for (int t = 0; t < T; t++) {
        const int row = (g + v * apart) * R;
        store_rows(y[v][t], a.y + (a.t0 + t) * a.ldy, row, std::min(R, a.w.rows - row), a.epilogue);
      }
  };
  // Long streams: each takes its own run of groups; what is left over is read side by side.
  int run = (a.g1 - a.g0) / max_streams;
  while (run > 1 && run * group_bytes % 4096 < 512) run--;  // else all streams fall on the same lines of the cache
  int g = a.g0;
  if (run > 1) {
    for (; g < a.g0 + run; g++) pass(g, run, 1, max_streams);
    g = a.g0 + run * max_streams;
  }
  for (; g < a.g1; g += max_streams) pass(g, 1, max_streams, std::min(max_streams, a.g1 - g));
}

}  // namespace

void run_q8(const RunArgs& a) {
  if (a.t1 - a.t0 > direct_tokens) return run_panels(a);
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
