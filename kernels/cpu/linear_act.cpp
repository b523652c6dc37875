// Owns: what the weights' kinds want of their input: int8 with a scale for 32 values,
// bf16 in tiles, or f32 as it is.
#include <algorithm>
#include <cstring>
#include "linear_layout.h"
#include "linear_simd.h"
#include "tile.h"

namespace mr {
namespace {

// A block's int8 codes, their sum and that of the first 16, as the kernels' dot products want them.
struct Sums {
  int32_t all, first;
};

#if defined(__ARM_NEON)

// The largest magnitude. As integers magnitudes order as the floats do, with infinity and NaN above all.
float largest_magnitude(const float* x) {
  uint32x4_t m = vdupq_n_u32(0);
  for (int i = 0; i < 8; i++) m = vmaxq_u32(m, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + 4 * i))));
  return std::bit_cast<float>(vmaxvq_u32(m));
}

Sums to_codes(const float* x, float factor, int8_t* codes) {
  Sums s{0, 0};
  for (int i = 0; i < 2; i++) {
    int16x8_t q[2];
    for (int j = 0; j < 2; j++) {
      const vf v = vmul(vload(x + 16 * i + 8 * j), vset(factor));
      q[j] = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(v.a)), vqmovn_s32(vcvtnq_s32_f32(v.b)));
    }
    const int8x16_t c = vcombine_s8(vqmovn_s16(q[0]), vqmovn_s16(q[1]));
    vst1q_s8(codes + 16 * i, c);
    (i ? s.all : s.first) = vaddlvq_s8(c);
  }
  s.all += s.first;
  return s;
}

int32_t total(int32_t sum) { return sum; }

#else

float largest_magnitude(const float* x) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_setzero_si256();
  for (int i = 0; i < 4; i++)
    largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + 8 * i)), magnitude));
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
  return std::bit_cast<float>(_mm_cvtsi128_si32(m));
}

// The sums as two int16, the two sums of ActBlock.
Sums to_codes(const float* x, float factor, int8_t* to) {
  __m256i q[4];
  for (int i = 0; i < 4; i++) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(factor)));
  const __m256i a = _mm256_packs_epi32(q[0], q[1]), b = _mm256_packs_epi32(q[2], q[3]);
  const __m256i codes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), codes);
  // int16 sums of pairs, then of the pairs of every second lane: the two sums of each half.
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
  const __m128i first = _mm256_castsi256_si128(pairs), second = _mm256_extracti128_si256(pairs, 1);
  const auto fold = [](__m128i p) {
    p = _mm_add_epi16(p, _mm_shuffle_epi32(p, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi16(p, _mm_shuffle_epi32(p, 0xb1)));
  };
  return {fold(_mm_add_epi16(first, second)), fold(first)};
}

int32_t total(int32_t two) { return int32_t(int16_t(two)) + (two >> 16); }

#endif

// 32 values to int8, round to nearest even, the largest to ±127.
void quantize(const float* x, ActBlock& out) {
  const float top = largest_magnitude(x);
  // Below 1e-35 the reciprocal would overflow; not finite: the block has no meaning, and its scale says so.
  const bool usable = top >= 1e-35f && top <= 3.4028234e38f;
  Sums sums{0, 0};
  if (usable)
    sums = to_codes(x, 127.0f / top, out.codes);
  else
    std::memset(out.codes, 0, sizeof out.codes);
  out.scale = usable ? top / 127.0f : top <= 3.4028234e38f ? 0.0f : __builtin_nanf("");
  out.sum = out.scale * float(total(sums.all));
  out.sums = split_bytes ? sums.all : total(sums.all);
  out.first_sums = split_bytes ? sums.first : total(sums.first);
}

// 32 values to bf16, round to nearest even.
void round_bf16(const float* x, bf16* out) {
#if defined(__AVX512BF16__)
  istore(out, (vi)_mm512_cvtne2ps_pbh(vload(x + 16), vload(x)));
#else
  for (int i = 0; i < 32; i++) out[i] = from_float<bf16>(x[i]);
#endif
}

bool is_q8(Act kind) { return kind == Act::q8 || kind == Act::q8_or_bf16; }

}  // namespace

Act linear_act(Storage type, bool exact) {
  const bool rounded = has_tiles && !exact;
  if (float_bytes(type)) return rounded && type == Storage::BF16 ? Act::f32_or_bf16 : Act::f32;
  return rounded ? Act::q8_or_bf16 : Act::q8;
}

int64_t linear_act_bytes(Act kind, int32_t tokens, int32_t cols) {
  const int64_t plain = tokens * (is_q8(kind) ? cols / 32 * int64_t(sizeof(ActBlock)) : cols * int64_t(4));
  return bf16_for(kind, tokens, cols) ? std::max(plain, int64_t(tokens + 15) / 16 * cols * 32) : plain;
}

int linear_token_group() { return 1; }

void linear_prepare(Act kind, const float* x, int64_t ldx, int32_t tokens, int32_t cols, int32_t t0, int32_t t1,
                    void* act) {
  const int blocks = cols / 32;
  const bool rounded = bf16_for(kind, tokens, cols);
  for (int64_t t = t0; t < t1; t++) {
    const float* from = x + t * ldx;
    if (rounded) {
      bf16* to = static_cast<bf16*>(act) + t / 16 * blocks * 512 + t % 16 * 32;
      for (int b = 0; b < blocks; b++) round_bf16(from + 32 * b, to + 512 * b);
    } else if (!is_q8(kind)) {
      std::memcpy(static_cast<float*>(act) + t * cols, from, size_t(cols) * 4);
    } else {
      ActBlock* to = static_cast<ActBlock*>(act) + t * blocks;
      for (int b = 0; b < blocks; b++) quantize(from + 32 * b, to[b]);
    }
  }
}

}  // namespace mr
