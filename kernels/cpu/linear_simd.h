// Owns: the integer vectors of the matrix kernels, one definition per instruction set: R quads (4 bytes a row) a vector,
// the dot product of unsigned weight quads with one signed activation quad, exact on both.
//
//   dot      AVX2: 16 × int16, two a row; a step adds two products to each. Exact as long as the final sums fit int16
//            (wrapping in between is harmless): 32 values of 4-bit codes, or of centred 5-bit codes (|q − 16| · 127 · 16
//            = 32512), or 16 values of centred 6-bit codes. One pair of products must fit too: codes below 129.
//            VNNI: 16 × int32. ARM: linear_neon.h.
#pragma once
#include "linear_layout.h"
#include "simd.h"

namespace mr {

constexpr int VB = 4 * R;  // bytes a vector
static_assert(R == VL);

inline int32_t load_i32(const void* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return x;
}

}  // namespace mr

#if defined(__ARM_NEON)
#include "linear_neon.h"
#endif

namespace mr {

#if !defined(__ARM_NEON)
// signed_bytes: 8-bit codes are read with their zero taken off.
constexpr bool signed_bytes = false;
#endif

#if defined(__AVX512F__)

constexpr bool split_bytes = false;  // 8-bit codes go through the dot product whole
inline vi iload(const void* p) { return _mm512_loadu_si512(p); }
inline void istore(void* p, vi v) { _mm512_storeu_si512(p, v); }
inline vi iset32(int32_t x) { return _mm512_set1_epi32(x); }
inline vi iset8(int x) { return _mm512_set1_epi8(char(x)); }
inline vi iand(vi a, vi b) { return _mm512_and_si512(a, b); }
inline vi ior(vi a, vi b) { return _mm512_or_si512(a, b); }
inline vi ixor(vi a, vi b) { return _mm512_xor_si512(a, b); }
inline vi ileft(vi a, int n) { return _mm512_slli_epi16(a, unsigned(n)); }
inline vi iright(vi a, int n) { return _mm512_srli_epi16(a, unsigned(n)); }
inline vi iadd32(vi a, vi b) { return _mm512_add_epi32(a, b); }
inline vf to_vf(vi a) { return _mm512_cvtepi32_ps(a); }
// R bytes, one a row.
inline vi iload_u8(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline vi iload_s8(const uint8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline vi iright32(vi a, int n) { return _mm512_srli_epi32(a, unsigned(n)); }
inline vi ileft32(vi a, int n) { return _mm512_slli_epi32(a, unsigned(n)); }
// | R values of 2 bytes | R more | to R pairs of them.
inline vi ipairs(vi a) {
  const vi order = _mm512_setr_epi32(0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007,
                                     0x180008, 0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f);
  return _mm512_permutexvar_epi16(order, a);
}

using dot = __m512i;
inline dot dot_zero() { return _mm512_setzero_si512(); }
// −zero · the sum of the activations: where centred codes start from. zero: a power of two.
inline dot dot_centre(int32_t sums, int zero) { return iset32(-sums * zero); }
inline dot dot_step(dot acc, vi codes, vi x) { return _mm512_dpbusd_epi32(acc, codes, x); }
inline vi dot_end(dot acc) { return acc; }
vi dot_nibbles(const dot sums[2]);  // nobody's here: split_bytes is false
// Sums of 16 values of 6 bits times an int8 a row, both halves, as scale_int8 prepares the latter: below 2^24 in size,
// so exact in f32 too, where multiplying is cheaper.
inline vi scale_int8(const uint8_t* p) { return _mm512_castps_si512(to_vf(iload_s8(p))); }
inline vf dot_halves(const dot sums[2], const vi scales[2]) {
  return vfma(to_vf(sums[1]), _mm512_castsi512_ps(scales[1]), vmul(to_vf(sums[0]), _mm512_castsi512_ps(scales[0])));
}

#elif !defined(__ARM_NEON)

constexpr bool split_bytes = true;  // 8-bit codes go through the dot product as two nibbles
inline vi iload(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void istore(void* p, vi v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
inline vi iset32(int32_t x) { return _mm256_set1_epi32(x); }
inline vi iset8(int x) { return _mm256_set1_epi8(char(x)); }
inline vi iand(vi a, vi b) { return _mm256_and_si256(a, b); }
inline vi ior(vi a, vi b) { return _mm256_or_si256(a, b); }
inline vi ixor(vi a, vi b) { return _mm256_xor_si256(a, b); }
inline vi ileft(vi a, int n) { return _mm256_slli_epi16(a, n); }
inline vi iright(vi a, int n) { return _mm256_srli_epi16(a, n); }
inline vi iadd32(vi a, vi b) { return _mm256_add_epi32(a, b); }
inline vf to_vf(vi a) { return _mm256_cvtepi32_ps(a); }
inline vi iload_u8(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
inline vi iload_s8(const uint8_t* p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
inline vi iright32(vi a, int n) { return _mm256_srli_epi32(a, n); }
inline vi ileft32(vi a, int n) { return _mm256_slli_epi32(a, n); }
inline vi ipairs(vi a) {
  const __m128i first = _mm256_castsi256_si128(a), second = _mm256_extracti128_si256(a, 1);
  return _mm256_set_m128i(_mm_unpackhi_epi16(first, second), _mm_unpacklo_epi16(first, second));
}

using dot = __m256i;
inline dot dot_zero() { return _mm256_setzero_si256(); }
inline dot dot_centre(int32_t sums, int zero) {
  return _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(iset32(sums), __builtin_ctz(unsigned(zero))));
}
inline dot dot_step(dot acc, vi codes, vi x) {
  acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(codes, x));
  asm("" : "+x"(acc));  // else the compiler regroups the sums, multiplies all first and spills
  return acc;
}
inline vi dot_end(dot acc) { return _mm256_madd_epi16(acc, _mm256_set1_epi16(1)); }
inline vi scale_int8(const uint8_t* p) {
  const vi s = iload_s8(p);
  return ior(_mm256_slli_epi32(s, 16), iand(s, iset32(0xffff)));
}
inline vi dot_end(dot acc, vi scale) { return _mm256_madd_epi16(acc, scale); }
// Of 8-bit codes: the sums over their low and their high nibbles.
inline vi dot_nibbles(const dot sums[2]) { return iadd32(dot_end(sums[0]), dot_end(sums[1], iset32(16 << 16 | 16))); }
inline vf dot_halves(const dot sums[2], const vi scales[2]) {
  return to_vf(iadd32(dot_end(sums[0], scales[0]), dot_end(sums[1], scales[1])));
}

#endif

// R outputs of one token to y[row…], with bias and accumulation; n of the rows exist.
inline void store_rows(vf v, float* y, int row, int n, const Epilogue& e) {
  if (e.bias) v = vadd(v, n == R ? vload(e.bias + row) : vload_n(e.bias + row, n));
  if (e.accumulate) v = vadd(n == R ? vload(y + row) : vload_n(y + row, n), v);
  if (n == R)
    vstore(y + row, v);
  else
    vstore_n(y + row, v, n);
}

}  // namespace mr
