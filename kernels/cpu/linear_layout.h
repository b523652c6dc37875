// Owns: how the packed matrices lie in memory, a struct a format. A new block format of up to 8 bits is one more Layout
// here, one more case in linear_pack.cpp's readers and one more row in linear.cpp's table.
//
// A group is R = row_group interleaved rows. Super-block after super-block it holds
//
//   | head: R × the scales of one source super-block | for each 32 values: R × the codes |
//
// and as many bytes as the file's blocks. Codes are unsigned (q + zero) in quads: byte i of quad j is value 4j + i. The
// quads of R rows side by side make one vector, so that the dot-product instructions leave one output row a lane:
//
//   codes of 32 values, b bits:  | b − 4 planes of R quads: bits 4… | 4 × R quads of nibbles: quad j low, quad j + 4 high |
//   5 bits: bit j of the plane's byte i is the fifth bit of value 4j + i
//   6 bits: plane p, bits 2j and 2j + 1 of byte i are the top bits of value 16p + 4j + i
//   8 bits: 8 × R quads
//
//   heads:  f16        | R × d f16 | R × m f16 if there is a min |
//           six_bit    | R × d f16 | R × dmin f16 | 8 × R × (low nibble of scale, of min) | 4 × R × the top 2 bits of
//                        (scale, min) of sub-blocks 2i and 2i + 1 |
//           int8       | R × d f16 | 16 × R × i8 |
#pragma once
#include "linear.h"

namespace mr {

#if defined(__AVX512F__)
constexpr int R = 16;
#else
constexpr int R = 8;
#endif

enum class Scales { f16, six_bit, int8 };

// values: of a super-block. A value is scale · (code − zero) + min.
template <int Values, int Bits, int Zero, bool HasMin, Scales Kind>
struct BlockLayout {
  static constexpr int values = Values, bits = Bits, zero = Zero, subs = Values / 32;
  static constexpr bool has_min = HasMin;
  static constexpr Scales scales = Kind;
  // Bytes a row; those of R rows are R times as many.
  static constexpr int head = (HasMin ? 4 : 2) + (Kind == Scales::six_bit ? 12 : Kind == Scales::int8 ? 16 : 0);
  static constexpr int sub = Bits * 4;
  static constexpr int bytes = head + subs * sub;
  static constexpr int planes = Bits == 8 ? 0 : (Bits - 4) * 4;  // bytes before the nibbles
};

template <Storage S>
struct Layout;
template <>
struct Layout<Storage::Q4_0> : BlockLayout<32, 4, 8, false, Scales::f16> {};
template <>
struct Layout<Storage::Q4_1> : BlockLayout<32, 4, 0, true, Scales::f16> {};
template <>
struct Layout<Storage::Q5_0> : BlockLayout<32, 5, 16, false, Scales::f16> {};
template <>
struct Layout<Storage::Q5_1> : BlockLayout<32, 5, 0, true, Scales::f16> {};
template <>
struct Layout<Storage::Q8_0> : BlockLayout<32, 8, 128, false, Scales::f16> {};
template <>
struct Layout<Storage::Q4_K> : BlockLayout<256, 4, 0, true, Scales::six_bit> {};
template <>
struct Layout<Storage::Q5_K> : BlockLayout<256, 5, 0, true, Scales::six_bit> {};
template <>
struct Layout<Storage::Q6_K> : BlockLayout<256, 6, 32, false, Scales::int8> {};

// The plain formats lie value by value: value k of the R rows, then value k + 1.
constexpr int float_bytes(Storage s) {
  return s == Storage::F32 ? 4 : s == Storage::F16 || s == Storage::BF16 ? 2 : 0;
}

// Calls f.template operator()<S>() for the block format `type`; false for the plain ones.
template <class F>
bool for_block_format(Storage type, F&& f) {
  switch (type) {
    case Storage::Q4_0: f.template operator()<Storage::Q4_0>(); return true;
    case Storage::Q4_1: f.template operator()<Storage::Q4_1>(); return true;
    case Storage::Q5_0: f.template operator()<Storage::Q5_0>(); return true;
    case Storage::Q5_1: f.template operator()<Storage::Q5_1>(); return true;
    case Storage::Q8_0: f.template operator()<Storage::Q8_0>(); return true;
    case Storage::Q4_K: f.template operator()<Storage::Q4_K>(); return true;
    case Storage::Q5_K: f.template operator()<Storage::Q5_K>(); return true;
    case Storage::Q6_K: f.template operator()<Storage::Q6_K>(); return true;
    default: return false;
  }
}

// A token's int8 activations: records of 32 values. The sums are what centred codes (q − zero) start from: of all 32
// values and of the first 16, on AVX2 as two int16, of values 4j, 4j + 1 (low) and of 4j + 2, 4j + 3 (high), as
// vpmaddubsw leaves them; on VNNI as one int32.
struct ActBlock {
  int8_t codes[32];
  float scale;   // NaN where an input was NaN or infinite
  float sum;     // scale × the sum of the codes
  int32_t sums;
  int32_t first_sums;
};
static_assert(sizeof(ActBlock) == 48);

// Up to this many tokens go straight through the packed weights.
constexpr int direct_tokens = 4;
// Whether this build and this process have tile registers (AMX).
bool have_tiles();

// Whether a call's input is rounded to bf16: tiles of 16 tokens × 32 values, those of the same tokens one after another.
// With fewer tokens it costs more to widen a block's codes than their exact sums cost.
constexpr int bf16_tokens = 64;
inline bool bf16_for(Act kind, int tokens, int cols) {
  const bool enough = kind == Act::f32_or_bf16 ? tokens > direct_tokens : kind == Act::q8_or_bf16 && tokens >= bf16_tokens;
  return enough && cols % 32 == 0 && have_tiles();
}

// linear_run's arguments, and its parts in linear_q8.cpp, linear_panel.cpp, linear_tile.cpp and
// linear_float.cpp.
struct RunArgs {
  const Weight& w;
  const void* act;
  int t0, t1, g0, g1;
  float* y;
  int64_t ldy;
  const Epilogue& epilogue;
  void* scratch;
};
void run_q8(const RunArgs& args);
void run_panels(const RunArgs& args);
void run_tiles(const RunArgs& args);
void run_float(const RunArgs& args);
extern const int64_t panel_scratch_bytes, tile_scratch_bytes, float_scratch_bytes;

// The packed bytes of the next panel, which are asked for while the tiles of this one compute: memory and arithmetic
// work at the same time. The same range of each of `groups` groups, `stride` apart.
struct Ahead {
  const uint8_t *at, *end;
  int64_t stride;
  int groups;
  void step() {
    if (at >= end) return;
    for (int g = 0; g < groups; g++)
      for (int i = 0; i < 2; i++) __builtin_prefetch(at + g * stride + 64 * i);
    at += 128;
  }
};

}  // namespace mr
