// Owns: what both kernels for the block formats share: unpacking codes and scales, and the arithmetic of 32 values.
//
// Every output is one sequence of f32 operations, whatever the shape of the call: for each 32 values in order
//   y = fma(float(Σ (q − centre) · x), scale · x_scale, y),   and with a min   y = fma(min, x_sum, y).
// The sums are exact integers, so the kernels may do them in any order.
#pragma once
#include "linear_layout.h"
#include "linear_simd.h"

namespace mr {

// Quads j and j + 4 of a sub-block's codes.
template <class L>
inline void load_codes(const uint8_t* sub, int j, vi& low, vi& high) {
  if constexpr (L::bits == 8) {
    low = iload(sub + VB * j);
    high = iload(sub + VB * (j + 4));
    if constexpr (signed_bytes) low = ixor(low, iset8(128)), high = ixor(high, iset8(128));
    return;
  }
  const vi x = iload(sub + L::planes * R + VB * j), mask = iset8(15);
  low = iand(x, mask);
  high = iand(iright(x, 4), mask);
  if constexpr (L::bits == 5) {
    const vi plane = iload(sub), fifth = iset8(16);
    low = ior(low, iand(ileft(plane, 4 - j), fifth));
    high = ior(high, iand(j ? iright(plane, j) : plane, fifth));
  }
  if constexpr (L::bits == 6) {
    const vi a = iload(sub), b = iload(sub + VB), top = iset8(48);
    low = ior(low, iand(j < 3 ? ileft(a, 4 - 2 * j) : iright(a, 2), top));
    high = ior(high, iand(j < 3 ? ileft(b, 4 - 2 * j) : iright(b, 2), top));
  }
}

// What multiplies and offsets the codes of R rows in one sub-block: f32 scale and min; what scale_int8 makes of either half's.
struct SubScales {
  vf scale, min;
  vi half[2];
};

// The codes' centre: what dot_centre takes. Min formats of 5 bits are centred too, for int16's sake, and their min moves.
template <class L>
constexpr int centre = signed_bytes && L::bits == 8 ? 0 : L::zero ? L::zero : L::bits == 5 ? 16 : 0;

template <class L>
inline SubScales load_scales(const uint8_t* super, int s) {
  SubScales out;
  out.scale = vload(reinterpret_cast<const f16*>(super));
  if constexpr (L::has_min) out.min = vload(reinterpret_cast<const f16*>(super + 2 * R));
  if constexpr (L::scales == Scales::six_bit) {
    const vi low = iload_u8(super + (4 + s) * R), top = iright32(iload_u8(super + (12 + (s >> 1)) * R), 4 * (s & 1));
    const vi two = iset32(3);
    out.scale = vmul(out.scale, to_vf(ior(iand(low, iset32(15)), ileft32(iand(top, two), 4))));
    const vi min = ior(iright32(low, 4), ileft32(iand(iright32(top, 2), two), 4));
    out.min = vmul(vsub(vzero(), out.min), to_vf(min));
  }
  if constexpr (L::scales == Scales::int8)
    for (int h = 0; h < 2; h++) out.half[h] = scale_int8(super + (2 + 2 * s + h) * R);
  if constexpr (L::has_min && centre<L> != 0) out.min = vfma(out.scale, vset(float(centre<L>)), out.min);
  return out;
}

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

// Quads j (low) and j + 4 (high) of 32 values.
template <class L>
inline void dot_pair(dot a[], vi low, vi high, vi x_low, vi x_high) {
  if constexpr (split<L>) {
    const vi mask = iset8(15);
    a[0] = dot_step(dot_step(a[0], iand(low, mask), x_low), iand(high, mask), x_high);
    a[1] = dot_step(dot_step(a[1], iand(iright(low, 4), mask), x_low), iand(iright(high, 4), mask), x_high);
  } else {
    constexpr int second = accumulators<L> - 1;
    a[0] = dot_step(a[0], low, x_low);
    a[second] = dot_step(a[second], high, x_high);
  }
}

template <class L>
inline void dot_finish(const dot a[], const SubScales& w, const ActBlock& x, vf& y) {
  vf sum;
  if constexpr (halves<L>)
    sum = dot_halves(a, w.half);
  else if constexpr (split<L>)
    sum = to_vf(dot_nibbles(a));
  else
    sum = to_vf(dot_end(a[0]));
  y = vfma(sum, vmul(w.scale, vset(x.scale)), y);
  if constexpr (L::has_min) y = vfma(w.min, vset(x.sum), y);
}

// Formats that differ only in how the file keeps their scales share a kernel over panels.
template <class L>
using Unpacked = BlockLayout<32, L::bits, L::zero, L::has_min, L::scales == Scales::int8 ? Scales::int8 : Scales::f16>;

// Behind the panel of blocks [b, b + step) of V groups from g on: the next slab, or the first of the groups that follow.
template <class L>
Ahead ahead_of(const RunArgs& a, int g, int groups, int b, int step, int64_t group_bytes) {
  const int blocks = a.w.cols / 32;
  const bool last = b + step >= blocks;
  const uint8_t* group = a.w.data + (last ? g + groups : g) * group_bytes;
  const auto offset = [&](int block) { return int64_t(block / L::subs) * L::bytes * R; };
  const int from = last ? 0 : b + step, to = from + step < blocks ? from + step : blocks;
  return {group + offset(from), group + offset(to), group_bytes, groups};
}

}  // namespace mr
