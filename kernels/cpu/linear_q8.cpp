// Owns: y = x · Wᵀ for the block formats, over int8 activations.
//
// Every output is one sequence of f32 operations, whatever the shape of the call: for each 32 values in order
//   y = fma(float(Σ (q − centre) · x), scale · x_scale, y),   and with a min   y = fma(min, x_sum, y).
// The sums are exact integers, so the kernels below may do them in any order.
#include <algorithm>
#include "linear_layout.h"
#include "linear_simd.h"

namespace mr {
namespace {

template <class L>
constexpr bool halves = L::scales == Scales::int8;
template <class L>
constexpr bool split = L::bits == 8 && split_bytes;
// Integer accumulators a token: two where the halves have scales of their own or the codes go as two nibbles.
template <class L>
constexpr int accumulators = halves<L> || split<L> ? 2 : 1;

template <class L>
inline void dot_begin(dot a[], const ActBlock& x) {
  if constexpr (halves<L>) {
    // int16 pairs subtract lane by lane: no borrow may cross.
    a[0] = dot_centre(x.first_sums, centre<L>);
    const int32_t rest = split_bytes ? int32_t((uint32_t(x.sums) & 0xffff0000u) - (uint32_t(x.first_sums) & 0xffff0000u)) |
                                           ((x.sums - x.first_sums) & 0xffff)
                                     : x.sums - x.first_sums;
    a[1] = dot_centre(rest, centre<L>);
  } else if constexpr (split<L>) {
    a[0] = dot_zero();
    a[1] = dot_centre(x.sums, 8);
  } else {
    a[0] = centre<L> ? dot_centre(x.sums, centre<L>) : dot_zero();
  }
}

template <class L>
inline void dot_finish(const dot a[], const SubScales& w, const ActBlock& x, vf& y) {
  vi sum;
  if constexpr (halves<L>)
    sum = iadd32(dot_end(a[0], w.half[0]), dot_end(a[1], w.half[1]));
  else if constexpr (split<L>)
    sum = iadd32(dot_end(a[0]), dot_end(a[1], iset32(16 << 16 | 16)));
  else
    sum = dot_end(a[0]);
  y = vfma(to_vf(sum), vmul(w.scale, vset(x.scale)), y);
  if constexpr (L::has_min) y = vfma(w.min, vset(x.sum), y);
}

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
  const int64_t group_bytes = linear_group_bytes(a.w.type, a.w.cols);
  for_block_format(a.w.type, [&]<Storage S>() {
    using L = Layout<S>;
    int t = a.t0;
    for (; t + 4 <= a.t1; t += 4) direct_groups<L, 4>(a, t, group_bytes);
    if (a.t1 - t == 3) direct_groups<L, 3>(a, t, group_bytes);
    if (a.t1 - t == 2) direct_groups<L, 2>(a, t, group_bytes);
    if (a.t1 - t == 1) direct_groups<L, 1>(a, t, group_bytes);
  });
}

}  // namespace mr
