// Owns: linear_simd.h's integer vectors on ARM, R = 8 quads in two registers. Codes meet the activations as signed bytes,
// so 8-bit codes are read with their zero taken off; sums are int32.
//
//   dot      with dotprod: SDOT. Without: 8 products in int16, neighbours added (at most 2 · 128 · 127: it fits), and
//            those added in pairs to int32.
//   mmla     with i8mm: SMMLA, the products of two rows and two tokens over 8 values at once: panels lie in pairs of
//            quads (linear_panel.cpp).
#pragma once

namespace mr {

constexpr bool split_bytes = false, signed_bytes = true;
inline vi iload(const void* p) {
  const uint8_t* at = static_cast<const uint8_t*>(p);
  return {vreinterpretq_u32_u8(vld1q_u8(at)), vreinterpretq_u32_u8(vld1q_u8(at + 16))};
}
inline void istore(void* p, vi v) {
  uint8_t* at = static_cast<uint8_t*>(p);
  vst1q_u8(at, vreinterpretq_u8_u32(v.a)), vst1q_u8(at + 16, vreinterpretq_u8_u32(v.b));
}
inline vi iset32(int32_t x) { return {vdupq_n_u32(uint32_t(x)), vdupq_n_u32(uint32_t(x))}; }
inline vi iset8(int x) { return iset32(int32_t(uint32_t(x & 255) * 0x01010101u)); }
inline vi iand(vi x, vi y) { return {x.a & y.a, x.b & y.b}; }
inline vi ior(vi x, vi y) { return {x.a | y.a, x.b | y.b}; }
inline vi ixor(vi x, vi y) { return {x.a ^ y.a, x.b ^ y.b}; }
inline uint32x4_t left16(uint32x4_t x, int n) { return vreinterpretq_u32_u16(vreinterpretq_u16_u32(x) << vdupq_n_u16(uint16_t(n))); }
inline uint32x4_t right16(uint32x4_t x, int n) { return vreinterpretq_u32_u16(vreinterpretq_u16_u32(x) >> vdupq_n_u16(uint16_t(n))); }
inline vi ileft(vi x, int n) { return {left16(x.a, n), left16(x.b, n)}; }
inline vi iright(vi x, int n) { return {right16(x.a, n), right16(x.b, n)}; }
inline vi ileft32(vi x, int n) { return {x.a << vdupq_n_u32(uint32_t(n)), x.b << vdupq_n_u32(uint32_t(n))}; }
inline vi iright32(vi x, int n) { return {x.a >> vdupq_n_u32(uint32_t(n)), x.b >> vdupq_n_u32(uint32_t(n))}; }
inline vi iadd32(vi x, vi y) { return {x.a + y.a, x.b + y.b}; }
inline vf to_vf(vi x) { return {vcvtq_f32_s32(vreinterpretq_s32_u32(x.a)), vcvtq_f32_s32(vreinterpretq_s32_u32(x.b))}; }
inline vi iload_u8(const uint8_t* p) {
  const uint16x8_t x = vmovl_u8(vld1_u8(p));
  return {vmovl_u16(vget_low_u16(x)), vmovl_high_u16(x)};
}
inline vi iload_s8(const uint8_t* p) {
  const int16x8_t x = vmovl_s8(vreinterpret_s8_u8(vld1_u8(p)));
  return {vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(x))), vreinterpretq_u32_s32(vmovl_high_s16(x))};
}

struct dot {
  int32x4_t a, b;
};
inline dot dot_zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
inline dot dot_centre(int32_t sums, int zero) { return {vdupq_n_s32(-sums * zero), vdupq_n_s32(-sums * zero)}; }
inline int32x4_t dot_quads(int32x4_t acc, uint32x4_t codes, uint32x4_t x) {
  const int8x16_t c = vreinterpretq_s8_u32(codes), y = vreinterpretq_s8_u32(x);
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(acc, c, y);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(c), vget_low_s8(y)), high = vmull_high_s8(c, y);
  return vpadalq_s16(acc, vpaddq_s16(low, high));
#endif
}
inline dot dot_step(dot acc, vi codes, vi x) { return {dot_quads(acc.a, codes.a, x.a), dot_quads(acc.b, codes.b, x.b)}; }
inline dot dot_add(dot x, dot y) { return {vaddq_s32(x.a, y.a), vaddq_s32(x.b, y.b)}; }
inline vi dot_end(dot acc) { return {vreinterpretq_u32_s32(acc.a), vreinterpretq_u32_s32(acc.b)}; }
vi dot_nibbles(const dot sums[2]);  // nobody's here: split_bytes is false
// As on VNNI: the sums and their products with an int8 are below 2^24 in size, exact in f32.
inline vi scale_int8(const uint8_t* p) {
  const vf s = to_vf(iload_s8(p));
  return {vreinterpretq_u32_f32(s.a), vreinterpretq_u32_f32(s.b)};
}
inline vf dot_halves(const dot sums[2], const vi scales[2]) {
  const auto floats = [](vi x) { return vf{vreinterpretq_f32_u32(x.a), vreinterpretq_f32_u32(x.b)}; };
  return vfma(to_vf(dot_end(sums[1])), floats(scales[1]), vmul(to_vf(dot_end(sums[0])), floats(scales[0])));
}

#if defined(__ARM_FEATURE_MATMUL_INT8)

// Quads j and j + 1 of 8 rows as | rows 0 and 1, 8 bytes each | rows 2 and 3 | 4 and 5 | 6 and 7 |: 64 bytes at `to`.
inline void store_pairs(uint8_t* to, vi first, vi second) {
  istore(to, {vzip1q_u32(first.a, second.a), vzip2q_u32(first.a, second.a)});
  istore(to + 32, {vzip1q_u32(first.b, second.b), vzip2q_u32(first.b, second.b)});
}
// Four 2 × 2 sums: of the four pairs of rows, | row 2i: token 0, 1 | row 2i + 1: token 0, 1 |.
struct pair_dot {
  int32x4_t of[4];
};
inline pair_dot pair_zero() { return {{vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)}}; }
inline void pair_step(pair_dot& acc, const uint8_t* rows, const int8_t* token0, const int8_t* token1) {
  const int8x16_t x = vcombine_s8(vld1_s8(token0), vld1_s8(token1));
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) acc.of[i] = vmmlaq_s32(acc.of[i], vreinterpretq_s8_u8(vld1q_u8(rows + 16 * i)), x);
}
inline dot pair_end(const pair_dot& acc, int token) {
  if (token == 0) return {vuzp1q_s32(acc.of[0], acc.of[1]), vuzp1q_s32(acc.of[2], acc.of[3])};
  return {vuzp2q_s32(acc.of[0], acc.of[1]), vuzp2q_s32(acc.of[2], acc.of[3])};
}

#endif

}  // namespace mr
