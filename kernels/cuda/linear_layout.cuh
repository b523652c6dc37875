// Owns: how packed matrices lie in device memory, a struct a format, and reading one value back. linear_pack.cu makes the
// layout, linear_stream.cuh and linear_gemm.cu read it. A format is one more struct here and one more case in each reader.
//
// A matrix is tiles of 16 rows, a tile is units along k, one after the other; a unit holds 16 rows × `k` values in as many
// bytes as the file has for them. Rows and values beyond the matrix are zero. Codes lie as the tensor cores want their A
// operand: lane (g = lane / 4, t = lane % 4) owns rows g and g + 8 and, of every 32 values, eight:
//
//   formats with a scale for 32 values:   8t … 8t + 7
//   Q6_K (a scale for 16):                4t … 4t + 3 and 16 + 4t … 16 + 4t + 3
//
// The eight codes' low nibbles make a word: value 2p in bits 4p…, value 2p + 1 in bits 16 + 4p…, so that a shift and a mask
// leave a pair of 16-bit lanes. A piece is 64 values, two such words for each of two rows: 16 bytes a lane.
//
//   nibbles  piece × 512 + lane × 16: { row g, row g + 8 } of the first 32 values, then of the second
//   plane    5 bits: a word a piece and lane: field f = (second 32, row half, p), bit f for value 2p, 16 + f for 2p + 1
//            Q6_K: a word for each of two rows: field f = (second 32, p), bits 2f and 16 + 2f
//   head     scales: f16 d (and m) as pairs [row][2 blocks]; Q4_K, Q5_K: 16 bytes a row: d, dmin, low nibbles of the 8
//            scales, of the 8 mins, then top bits of the scales (low half) and of the mins; Q6_K: i8 [row][16], f16 d [row]
//   Q8_0     the eight codes of a row as bytes 0 2 1 3 4 6 5 7: { row g: 8, row g + 8: 8 } a lane for each 32 values
//   BF16, F16  rows of 128 bytes, 16-byte chunk c of row r in place c ^ (r & 7): what wgmma calls 128-byte swizzle
//   F32      k = 32: (row half, half of the eight) × lane × 16 bytes
#pragma once
#include "common.cuh"

namespace mr {

// values: of a block of the file; zero: what centres the codes; has_min: value = scale · code + min.
template <int K, int Bits, int Zero, bool HasMin, int Head>
struct Blocks {
  static constexpr int k = K, bits = Bits, zero = Zero, head = Head;
  static constexpr bool has_min = HasMin, floating = false;
  static constexpr int plane_at = 16 * K * (Bits == 8 ? 8 : 4) / 8;
  static constexpr int head_at = 16 * K * Bits / 8;
  static constexpr int bytes = head_at + 16 * Head;
};
template <int K, int Bytes>
struct Floats {
  static constexpr int k = K, bits = 0, zero = 0, head = 0;
  static constexpr bool has_min = false, floating = true;
  static constexpr int plane_at = 0, head_at = 0, bytes = 16 * K * Bytes;
};

template <int S>
struct Format;
template <> struct Format<F32> : Floats<32, 4> {};
template <> struct Format<F16> : Floats<64, 2> {};
template <> struct Format<BF16> : Floats<64, 2> {};
template <> struct Format<Q4_0> : Blocks<64, 4, 8, false, 4> {};
template <> struct Format<Q4_1> : Blocks<64, 4, 0, true, 8> {};
template <> struct Format<Q5_0> : Blocks<64, 5, 16, false, 4> {};
template <> struct Format<Q5_1> : Blocks<64, 5, 0, true, 8> {};
template <> struct Format<Q8_0> : Blocks<64, 8, 0, false, 4> {};
template <> struct Format<Q4_K> : Blocks<256, 4, 0, true, 16> {};
template <> struct Format<Q5_K> : Blocks<256, 5, 0, true, 16> {};
template <> struct Format<Q6_K> : Blocks<256, 6, 32, false, 18> {};

// Calls f.template operator()<S>() for the storage type.
template <class Fn>
__host__ __device__ __forceinline__ void for_storage(int type, Fn&& f) {
  switch (type) {
    case F32: f.template operator()<F32>(); break;
    case F16: f.template operator()<F16>(); break;
    case BF16: f.template operator()<BF16>(); break;
    case Q4_0: f.template operator()<Q4_0>(); break;
    case Q4_1: f.template operator()<Q4_1>(); break;
    case Q5_0: f.template operator()<Q5_0>(); break;
    case Q5_1: f.template operator()<Q5_1>(); break;
    case Q8_0: f.template operator()<Q8_0>(); break;
    case Q4_K: f.template operator()<Q4_K>(); break;
    case Q5_K: f.template operator()<Q5_K>(); break;
    case Q6_K: f.template operator()<Q6_K>(); break;
  }
}

// Where value k of a unit's row r lies: lane, which 32 of its piece, row half, place among the lane's eight.
struct Spot {
  int piece, lane, second, half, pair, odd;
};
template <int S>
__host__ __device__ __forceinline__ Spot spot(int r, int k) {
  const int j = k & 31;
  const int t = S == Q6_K ? (j & 15) >> 2 : j >> 3, i = S == Q6_K ? (j >> 4) * 4 + (j & 3) : j & 7;
  return {k >> 6, (r & 7) * 4 + t, (k >> 5) & 1, r >> 3, i >> 1, i & 1};
}

__device__ __forceinline__ int swizzled(int r, int chunk) { return r * 128 + ((chunk ^ (r & 7)) << 4); }

__device__ __forceinline__ float f16_value(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

template <int S>
__device__ __forceinline__ int plane_word(const Spot& s) {
  if (S == Q6_K) return Format<S>::plane_at + (s.piece >> 1) * 512 + s.lane * 16 + ((s.piece & 1) * 2 + s.half) * 4;
  return Format<S>::plane_at + (S == Q5_K ? s.lane * 16 + s.piece * 4 : s.lane * 4);
}

// Value k of row r of a unit, as formats/quant's dequantiser rounds it.
template <int S>
__device__ __forceinline__ float unit_value(const uint8_t* unit, int r, int k) {
  using L = Format<S>;
  if constexpr (S == F32) {
    const int j = k & 31, i = j & 7;
    const int lane = (r & 7) * 4 + (j >> 3);
    return *reinterpret_cast<const float*>(unit + (((r >> 3) * 2 + (i >> 2)) * 32 + lane) * 16 + (i & 3) * 4);
  } else if constexpr (L::floating) {
    const uint16_t bits = *reinterpret_cast<const uint16_t*>(unit + swizzled(r, k >> 3) + (k & 7) * 2);
    return S == F16 ? f16_value(bits) : __uint_as_float(static_cast<uint32_t>(bits) << 16);
  } else {
    const Spot s = spot<S>(r, k);
    const auto word = [&](int at) { return *reinterpret_cast<const uint32_t*>(unit + at); };
    float scale, min = 0.0f;
    int code;
    if constexpr (S == Q8_0) {
      const int i = s.pair * 2 + s.odd, at = (i & 4) | ((i & 1) << 1) | ((i >> 1) & 1);
      code = static_cast<int8_t>(unit[s.second * 512 + s.lane * 16 + s.half * 8 + at]);
    } else {
      code = (word(s.piece * 512 + s.lane * 16 + (s.second * 2 + s.half) * 4) >> (4 * s.pair + 16 * s.odd)) & 15;
      if (L::bits == 5) code |= ((word(plane_word<S>(s)) >> ((s.second * 2 + s.half) * 4 + s.pair + 16 * s.odd)) & 1) << 4;
      if (L::bits == 6) code |= ((word(plane_word<S>(s)) >> (2 * (s.second * 4 + s.pair) + 16 * s.odd)) & 3) << 4;
    }
    if constexpr (S == Q4_K || S == Q5_K) {
      const int at = L::head_at + r * 16, sub = k >> 5;
      const uint32_t d = word(at), top = word(at + 12);
      scale = __fmul_rn(f16_value(d & 0xffff), (word(at + 4) >> (4 * sub) & 15) | (top >> (2 * sub) & 3) << 4);
      min = __fmul_rn(f16_value(d >> 16), (word(at + 8) >> (4 * sub) & 15) | (top >> (16 + 2 * sub) & 3) << 4);
      return __fsub_rn(__fmul_rn(scale, static_cast<float>(code)), min);
    } else if constexpr (S == Q6_K) {
      const float d = f16_value(*reinterpret_cast<const uint16_t*>(unit + L::head_at + 256 + r * 2));
      scale = __fmul_rn(d, static_cast<float>(static_cast<int8_t>(unit[L::head_at + r * 16 + (k >> 4)])));
    } else {
      scale = f16_value(word(L::head_at + r * 4) >> (16 * s.second) & 0xffff);
      if (L::has_min) min = f16_value(word(L::head_at + 64 + r * 4) >> (16 * s.second) & 0xffff);
    }
    const float product = __fmul_rn(scale, static_cast<float>(code - L::zero));
    return L::has_min ? __fadd_rn(product, min) : product;
  }
}

}  // namespace mr
