// Owns: packed values as bf16.
#pragma once
#include "linear_stream.cuh"

namespace mr {

// A lane's eight of 32 values of rows g and g + 8, as pairs of bf16, rounded as unit_value and then to bf16.
template <int S>
__device__ __forceinline__ void widen_values(const uint8_t* unit, int chunk, int lane, uint32_t (&out)[2][4]) {
  using L = Format<S>;
  Fragments<S> f;
  f.load(unit, lane, chunk);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int r = (lane >> 2) + 8 * half;
    float scale[2] = {1.0f, 1.0f}, min = 0.0f;  // of the first and the second 16
    if constexpr (S == Q4_K || S == Q5_K) {
      const uint4 h = *reinterpret_cast<const uint4*>(unit + L::head_at + r * 16);
      scale[0] = scale[1] = __fmul_rn(f16_value(h.x & 0xffff), (h.y >> (4 * chunk) & 15) | (h.w >> (2 * chunk) & 3) << 4);
      min = -__fmul_rn(f16_value(h.x >> 16), (h.z >> (4 * chunk) & 15) | (h.w >> (16 + 2 * chunk) & 3) << 4);
    } else if constexpr (S == Q6_K) {
      const float d = f16_value(*reinterpret_cast<const uint16_t*>(unit + L::head_at + 256 + r * 2));
      const char2 both = *reinterpret_cast<const char2*>(unit + L::head_at + r * 16 + 2 * chunk);
      scale[0] = __fmul_rn(d, both.x), scale[1] = __fmul_rn(d, both.y);
    } else if constexpr (!L::floating) {
      const auto value = [&](int at) { return f16_value(*reinterpret_cast<const uint16_t*>(unit + L::head_at + at + r * 4 + chunk * 2)); };
      scale[0] = scale[1] = value(0);
      if constexpr (L::has_min) min = value(64);
    }
#pragma unroll
    for (int p = 0; p < 4; p++) {
      const uint32_t pair = f.a[0][p >> 1][(p & 1) * 2 + half];
      const auto value = [&](uint32_t bits) {
        const float code = __uint_as_float(bits) - (L::has_min ? 128.0f : 0.0f), product = __fmul_rn(scale[p >> 1], code);
        return L::has_min ? __fadd_rn(product, min) : product;
      };
      out[half][p] = L::floating ? pair : bf16_pair(value(pair << 16), value(pair & 0xffff0000u));
    }
  }
}

}  // namespace mr
