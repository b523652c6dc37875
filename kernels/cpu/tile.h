// Owns: the tile registers of AMX, as far as the matrix kernels use them, and for machines without them a stand-in in plain
// loops (MR_EMULATE_TILES: tests of the layouts; its tiles are as wide as the vectors of this build).
//
//   dot_i8:   c[m][n] += Σ a[m][4k + i] · b[k][4n + i], signed bytes, int32
//   dot_bf16: c[m][n] += Σ a[m][2k + i] · b[k][2n + i], f32
#pragma once
#include <cstdint>
#include <cstring>
#include "simd.h"

namespace mr {

// Rows and bytes a row of each tile register, as the processor reads them.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
  void set(int tile, int height, int bytes) { rows[tile] = uint8_t(height), row_bytes[tile] = uint16_t(bytes); }
};
static_assert(sizeof(TileShapes) == 64);

#if defined(__AMX_INT8__)

constexpr bool has_tiles = true;
inline void tiles_begin(const TileShapes& shapes) { _tile_loadconfig(&shapes); }
inline void tiles_end() { _tile_release(); }
// What was stored before is there: the compiler does not see that a tile load reads memory.
template <int T>
inline void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int C, int A, int B>
inline void tile_dot_i8() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B>
inline void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#elif defined(MR_EMULATE_TILES)

constexpr bool has_tiles = true;
struct EmulatedTiles {
  TileShapes shapes;
  alignas(64) uint8_t data[8][16][64];
};
inline thread_local EmulatedTiles emulated;
inline void tiles_begin(const TileShapes& shapes) { emulated.shapes = shapes; }
inline void tiles_end() { emulated.shapes = {}; }
template <int T>
void tile_load(const void* from, int64_t stride) {
  for (int r = 0; r < emulated.shapes.rows[T]; r++)
    std::memcpy(emulated.data[T][r], static_cast<const uint8_t*>(from) + r * stride, emulated.shapes.row_bytes[T]);
}
template <int T>
void tile_store(void* to, int64_t stride) {
  for (int r = 0; r < emulated.shapes.rows[T]; r++)
    std::memcpy(static_cast<uint8_t*>(to) + r * stride, emulated.data[T][r], emulated.shapes.row_bytes[T]);
}
template <int T>
void tile_zero() {
  std::memset(emulated.data[T], 0, sizeof emulated.data[T]);
}
// X: what the tiles hold; Y: what it is widened to and summed in.
template <class X, class Y, int C, int A, int B, class Widen>
void emulated_dot(Widen&& widen) {
  constexpr int each = 4 / int(sizeof(X));
  const TileShapes& shapes = emulated.shapes;
  const int columns = shapes.row_bytes[C] / 4, steps = shapes.rows[B];
  for (int m = 0; m < shapes.rows[C]; m++) {
    Y* c = reinterpret_cast<Y*>(emulated.data[C][m]);
    const X* a = reinterpret_cast<const X*>(emulated.data[A][m]);
    for (int k = 0; k < steps; k++) {
      const X* b = reinterpret_cast<const X*>(emulated.data[B][k]);
      for (int n = 0; n < columns; n++)
        for (int i = 0; i < each; i++) c[n] += widen(a[each * k + i]) * widen(b[each * n + i]);
    }
  }
}
template <int C, int A, int B>
void tile_dot_i8() {
  emulated_dot<int8_t, int32_t, C, A, B>([](int8_t x) { return int32_t(x); });
}
template <int C, int A, int B>
void tile_dot_bf16() {
  emulated_dot<bf16, float, C, A, B>([](bf16 x) { return to_float(x); });
}

#else

constexpr bool has_tiles = false;

#endif

}  // namespace mr
