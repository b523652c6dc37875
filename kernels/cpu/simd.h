// Owns: the one vocabulary of vectors that every kernel here shares (the matrix kernels may add their own): `vf`, VL f32
// lanes, with loads and stores from f32, f16 and bf16, loads from int8, and exp and tanh. One definition per instruction set. Sums over
// lanes go through EightLanes or an order that is laid down, so that bits depend on data and length alone. Multiplies and adds fuse only where vfma says
// (-ffp-contract=off).
#pragma once
#if !defined(__ARM_NEON)
#include <immintrin.h>
#endif
#include <bit>
#include <cstdint>
#include <cstring>

namespace mr {

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

}  // namespace mr

#if defined(__ARM_NEON)
#include "simd_neon.h"
#endif

namespace mr {

#if !defined(__ARM_NEON)
inline float half_to_float(uint16_t bits) { return _cvtsh_ss(bits); }
inline uint16_t float_to_half(float x) { return uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)); }
#endif

inline float to_float(float x) { return x; }
inline float to_float(f16 x) { return half_to_float(x.bits); }
inline float to_float(bf16 x) { return std::bit_cast<float>(uint32_t(x.bits) << 16); }

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline f16 from_float<f16>(float x) {
  return {float_to_half(x)};
}
template <>
inline bf16 from_float<bf16>(float x) {
  uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7fffffff) > 0x7f800000) return {uint16_t((u >> 16) | 0x40)};  // a NaN stays one
  return {uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}

#if defined(__ARM_NEON)

// Eight lanes: what running sums are kept in.
using v8f = vf;
inline v8f load8(const float* p) { return vload(p); }
inline v8f set8(float x) { return vset(x); }
inline v8f add8(v8f a, v8f b) { return vadd(a, b); }
inline v8f sub8(v8f a, v8f b) { return vsub(a, b); }
inline v8f mul8(v8f a, v8f b) { return vmul(a, b); }

#elif defined(__AVX512F__)

constexpr int VL = 16;
using vf = __m512;
using vi = __m512i;
inline vf vzero() { return _mm512_setzero_ps(); }
inline vf vset(float x) { return _mm512_set1_ps(x); }
inline vf vload(const float* p) { return _mm512_loadu_ps(p); }
inline vf vload(const f16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline vf vload(const bf16* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
inline vf vload(const int8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))); }
inline void vstore(float* p, vf v) { _mm512_storeu_ps(p, v); }
// First n lanes, 0 < n < VL; the others are `fill` and are not read.
inline vf vload_n(const float* p, int n, float fill = 0) {
  return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), __mmask16((1u << n) - 1), p);
}
inline void vstore_n(float* p, vf v, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v); }
inline vf vadd(vf a, vf b) { return _mm512_add_ps(a, b); }
inline vf vsub(vf a, vf b) { return _mm512_sub_ps(a, b); }
inline vf vmul(vf a, vf b) { return _mm512_mul_ps(a, b); }
inline vf vdiv(vf a, vf b) { return _mm512_div_ps(a, b); }
inline vf vfma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline vf vfnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
// Of (NaN, b) these give b, as the instruction does.
inline vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
inline vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
inline vf vround(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vf vabs(vf a) { return _mm512_abs_ps(a); }
// Bit i: a[i] > b[i].
inline uint32_t vgreater(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline uint32_t vgreater_equal(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline vf vselect_greater(vf a, vf b, vf yes, vf no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), no, yes);
}
inline vf vcopysign(vf magnitude, vf sign) {
  const vi m = _mm512_set1_epi32(int(0x80000000));
  return _mm512_castsi512_ps(_mm512_or_si512(_mm512_and_si512(_mm512_castps_si512(sign), m),
                                             _mm512_andnot_si512(m, _mm512_castps_si512(magnitude))));
}
// x · 2^n for whole n; underflows to zero, overflows to infinity.
inline vf vscale2(vf x, vf n) { return _mm512_scalef_ps(x, n); }
inline void vsplit(vf v, __m256& lo, __m256& hi) {
  lo = _mm512_castps512_ps256(v);
  hi = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
}

#else

constexpr int VL = 8;
using vf = __m256;
using vi = __m256i;
inline vf vzero() { return _mm256_setzero_ps(); }
inline vf vset(float x) { return _mm256_set1_ps(x); }
inline vf vload(const float* p) { return _mm256_loadu_ps(p); }
inline vf vload(const f16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline vf vload(const bf16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline vf vload(const int8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))); }
inline void vstore(float* p, vf v) { _mm256_storeu_ps(p, v); }
inline __m256i vlanes_below(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline vf vload_n(const float* p, int n, float fill = 0) {
  const __m256i m = vlanes_below(n);
  return _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, m), _mm256_castsi256_ps(m));
}
inline void vstore_n(float* p, vf v, int n) { _mm256_maskstore_ps(p, vlanes_below(n), v); }
inline vf vadd(vf a, vf b) { return _mm256_add_ps(a, b); }
inline vf vsub(vf a, vf b) { return _mm256_sub_ps(a, b); }
inline vf vmul(vf a, vf b) { return _mm256_mul_ps(a, b); }
inline vf vdiv(vf a, vf b) { return _mm256_div_ps(a, b); }
inline vf vfma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline vf vfnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
inline vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
inline vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
inline vf vround(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vf vabs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline uint32_t vgreater(vf a, vf b) { return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ))); }
inline uint32_t vgreater_equal(vf a, vf b) { return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ))); }
inline vf vselect_greater(vf a, vf b, vf yes, vf no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
inline vf vcopysign(vf magnitude, vf sign) {
  const vf m = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_and_ps(m, sign), _mm256_andnot_ps(m, magnitude));
}
inline vf vscale2(vf x, vf n) {
  // In two halves, so that neither factor leaves the exponent's range.
  const vi i = _mm256_cvtps_epi32(vmin(vmax(n, vset(-250)), vset(250)));
  const vi half = _mm256_srai_epi32(i, 1), rest = _mm256_sub_epi32(i, half), bias = _mm256_set1_epi32(127);
  const vf a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const vf b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return vmul(vmul(x, a), b);
}

#endif

#if !defined(__ARM_NEON)

// Sums and maxima over the lanes, by halves.
inline float vsum(__m128 v) {
  v = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
}
inline float vmaximum(__m128 v) {
  v = _mm_max_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)));
}
inline float vsum(__m256 v) { return vsum(_mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1))); }
inline float vmaximum(__m256 v) { return vmaximum(_mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1))); }
#if defined(__AVX512F__)
inline float vmaximum(vf v) {
  __m256 lo, hi;
  vsplit(v, lo, hi);
  return vmaximum(_mm256_max_ps(lo, hi));
}
#endif

using v8f = __m256;
inline v8f load8(const float* p) { return _mm256_loadu_ps(p); }
inline v8f set8(float x) { return _mm256_set1_ps(x); }
inline v8f add8(v8f a, v8f b) { return _mm256_add_ps(a, b); }
inline v8f sub8(v8f a, v8f b) { return _mm256_sub_ps(a, b); }
inline v8f mul8(v8f a, v8f b) { return _mm256_mul_ps(a, b); }

#endif

// A running sum in eight lanes on every instruction set: a wider vector is added half by half, the lower half first. So
// bits do not depend on the processor.
struct EightLanes {
  v8f lanes = set8(0);
  void add(vf v) {
#if defined(__AVX512F__)
    __m256 lo, hi;
    vsplit(v, lo, hi);
    lanes = add8(add8(lanes, lo), hi);
#else
    lanes = add8(lanes, v);
#endif
  }
  float sum() const { return vsum(lanes); }
};

// e^x to 2 ulp: x = n·ln 2 + r, a polynomial of r. −Infinity gives 0, NaN gives NaN.
inline vf vexp(vf x) {
  const vf n = vround(vmul(x, vset(1.44269504088896341f)));
  vf r = vfnma(n, vset(0.693359375f), x);
  r = vfnma(n, vset(-2.12194440e-4f), r);
  vf p = vset(1.9875691500e-4f);
  p = vfma(p, r, vset(1.3981999507e-3f));
  p = vfma(p, r, vset(8.3334519073e-3f));
  p = vfma(p, r, vset(4.1665795894e-2f));
  p = vfma(p, r, vset(1.6666665459e-1f));
  p = vfma(p, r, vset(5.0000001201e-1f));
  p = vadd(vfma(vmul(p, r), r, r), vset(1.0f));
  p = vscale2(p, n);
  // Outside the range r is not small (or is infinity − infinity): say what the limit is.
  p = vselect_greater(vset(-104.0f), x, vzero(), p);
  return vselect_greater(x, vset(88.8f), vset(__builtin_inff()), p);
}

inline vf vsigmoid(vf x) { return vdiv(vset(1.0f), vadd(vset(1.0f), vexp(vsub(vzero(), x)))); }

// tanh through e^(−2|x|): absolute error below 1e-7, exact signs, ±1 at the ends.
inline vf vtanh(vf x) {
  const vf a = vabs(x), e = vexp(vmul(a, vset(-2.0f)));
  const vf big = vdiv(vsub(vset(1.0f), e), vadd(vset(1.0f), e));
  const vf x2 = vmul(x, x);
  vf p = vset(-5.70498872745e-3f);
  p = vfma(p, x2, vset(2.06390887954e-2f));
  p = vfma(p, x2, vset(-5.37397155531e-2f));
  p = vfma(p, x2, vset(1.33314422036e-1f));
  p = vfma(p, x2, vset(-3.33332819422e-1f));
  const vf small = vfma(vmul(p, x2), a, a);
  return vcopysign(vselect_greater(a, vset(0.625f), big, small), x);
}

}  // namespace mr
