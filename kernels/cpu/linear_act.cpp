// Owns: what the weights' kinds want of their input: int8 with a scale for 32 values,
// bf16 in tiles, or f32 as it is.
#include <algorithm>
#include <cstring>
#include "linear_layout.h"
#include "linear_simd.h"
#include "tile.h"

namespace mr {
namespace {

// 32 values to int8, round to nearest even, the largest to ±127.
void quantize(const float* x, ActBlock& out) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256 v[4];
  __m256i largest = _mm256_setzero_si256();
  for (int i = 0; i < 4; i++) {
    v[i] = _mm256_loadu_ps(x + 8 * i);
    // As integers the magnitudes order as the floats do, with infinity and NaN above all.
    largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
  }
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
  const float top = std::bit_cast<float>(_mm_cvtsi128_si32(m));
  // Below 1e-35 the reciprocal would overflow; not finite: the block has no meaning, and its scale says so.
  const bool usable = top >= 1e-35f && top <= 3.4028234e38f;
  const __m256 to_codes = _mm256_set1_ps(usable ? 127.0f / top : 0.0f);
  __m256i q[4];
  for (int i = 0; i < 4; i++)
    q[i] = usable ? _mm256_cvtps_epi32(_mm256_mul_ps(v[i], to_codes)) : _mm256_setzero_si256();
  const __m256i a = _mm256_packs_epi32(q[0], q[1]), b = _mm256_packs_epi32(q[2], q[3]);
  const __m256i codes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.codes), codes);

  // int16 sums of pairs, then of the pairs of every second lane: the two sums of each half.
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
  const __m128i first = _mm256_castsi256_si128(pairs), second = _mm256_extracti128_si256(pairs, 1);
  const auto fold = [](__m128i p) {
    p = _mm_add_epi16(p, _mm_shuffle_epi32(p, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi16(p, _mm_shuffle_epi32(p, 0xb1)));
  };
  const int32_t all = fold(_mm_add_epi16(first, second)), half = fold(first);
  const auto total = [](int32_t two) { return int32_t(int16_t(two)) + (two >> 16); };
  out.scale = usable ? top / 127.0f : top <= 3.4028234e38f ? 0.0f : __builtin_nanf("");
  out.sum = out.scale * float(total(all));
  out.sums = split_bytes ? all : total(all);
  out.first_sums = split_bytes ? half : total(half);
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
