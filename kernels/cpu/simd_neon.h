// Owns: simd.h's vectors on ARM: eight f32 lanes in two registers, so that layouts and the order of every sum are those of
// AVX2. Included by simd.h alone.
#pragma once
#include <arm_neon.h>

namespace mr {

inline float half_to_float(uint16_t bits) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
}
inline uint16_t float_to_half(float x) { return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(x))), 0); }

constexpr int VL = 8;
struct vf {
  float32x4_t a, b;
};
struct vi {
  uint32x4_t a, b;
};

inline vf vset(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline vf vzero() { return vset(0); }
inline vf vload(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline vf vload(const f16* p) {
  const float16x8_t h = vreinterpretq_f16_u16(vld1q_u16(&p->bits));
  return {vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h)};
}
inline vf vload(const bf16* p) {
  const uint16x8_t h = vld1q_u16(&p->bits);
  return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(h), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(h, 16))};
}
inline vf vload(const int8_t* p) {
  const int16x8_t x = vmovl_s8(vld1_s8(p));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(x))), vcvtq_f32_s32(vmovl_high_s16(x))};
}
inline void vstore(float* p, vf v) { vst1q_f32(p, v.a), vst1q_f32(p + 4, v.b); }
inline vf vload_n(const float* p, int n, float fill = 0) {
  float lanes[8];
  vstore(lanes, vset(fill));
  std::memcpy(lanes, p, size_t(n) * 4);
  return vload(lanes);
}
inline void vstore_n(float* p, vf v, int n) {
  float lanes[8];
  vstore(lanes, v);
  std::memcpy(p, lanes, size_t(n) * 4);
}
inline vf vadd(vf x, vf y) { return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b)}; }
inline vf vsub(vf x, vf y) { return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b)}; }
inline vf vmul(vf x, vf y) { return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b)}; }
inline vf vdiv(vf x, vf y) { return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b)}; }
inline vf vfma(vf x, vf y, vf z) { return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b)}; }
inline vf vfnma(vf x, vf y, vf z) { return {vfmsq_f32(z.a, x.a, y.a), vfmsq_f32(z.b, x.b, y.b)}; }
// fmax would give the number where x86 gives its second operand.
inline vf vmax(vf x, vf y) {
  return {vbslq_f32(vcgtq_f32(x.a, y.a), x.a, y.a), vbslq_f32(vcgtq_f32(x.b, y.b), x.b, y.b)};
}
inline vf vmin(vf x, vf y) {
  return {vbslq_f32(vcltq_f32(x.a, y.a), x.a, y.a), vbslq_f32(vcltq_f32(x.b, y.b), x.b, y.b)};
}
inline vf vround(vf x) { return {vrndnq_f32(x.a), vrndnq_f32(x.b)}; }
inline vf vabs(vf x) { return {vabsq_f32(x.a), vabsq_f32(x.b)}; }
inline uint32_t vbits(uint32x4_t low, uint32x4_t high) {
  const uint32_t weights[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  return vaddvq_u32(vaddq_u32(vandq_u32(low, vld1q_u32(weights)), vandq_u32(high, vld1q_u32(weights + 4))));
}
inline uint32_t vgreater(vf x, vf y) { return vbits(vcgtq_f32(x.a, y.a), vcgtq_f32(x.b, y.b)); }
inline uint32_t vgreater_equal(vf x, vf y) { return vbits(vcgeq_f32(x.a, y.a), vcgeq_f32(x.b, y.b)); }
inline vf vselect_greater(vf x, vf y, vf yes, vf no) {
  return {vbslq_f32(vcgtq_f32(x.a, y.a), yes.a, no.a), vbslq_f32(vcgtq_f32(x.b, y.b), yes.b, no.b)};
}
inline vf vcopysign(vf magnitude, vf sign) {
  const uint32x4_t top = vdupq_n_u32(0x80000000u);
  return {vbslq_f32(top, sign.a, magnitude.a), vbslq_f32(top, sign.b, magnitude.b)};
}
inline float32x4_t scale2_half(float32x4_t x, float32x4_t n) {
  // In two halves, so that neither factor leaves the exponent's range.
  const int32x4_t i = vcvtnq_s32_f32(n), half = vshrq_n_s32(i, 1), bias = vdupq_n_s32(127);
  const int32x4_t rest = vsubq_s32(i, half);
  const float32x4_t a = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23));
  return vmulq_f32(vmulq_f32(x, a), vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23)));
}
inline vf vscale2(vf x, vf n) {
  n = vmin(vmax(n, vset(-250)), vset(250));
  return {scale2_half(x.a, n.a), scale2_half(x.b, n.b)};
}

// By halves, as everywhere.
inline float vsum(vf v) {
  const float32x4_t four = vaddq_f32(v.a, v.b);
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float vmaximum(vf v) {
  const float32x4_t four = vbslq_f32(vcgtq_f32(v.a, v.b), v.a, v.b);
  const float32x2_t low = vget_low_f32(four), high = vget_high_f32(four), two = vbsl_f32(vcgt_f32(low, high), low, high);
  const float x = vget_lane_f32(two, 0), y = vget_lane_f32(two, 1);
  return x > y ? x : y;
}

}  // namespace mr
