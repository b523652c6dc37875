// Owns: a plain, correct linear.h: rows kept as on disk, widened to f32 and multiplied in f32. Slow. It stands here only
// until the interleaved kernels land, which replace it whole.
#include "linear.h"

#include <cstring>

#include "simd.h"

namespace mr {
namespace {

struct Block { int values, bytes; };
constexpr Block kBlocks[] = {{1, 4}, {1, 2}, {1, 2}, {32, 18}, {32, 20}, {32, 22}, {32, 24}, {32, 34}, {256, 144}, {256, 176}, {256, 210}};
constexpr int kGroup = 8;

const Block& block_of(Storage t) { return kBlocks[int(t)]; }
int64_t row_bytes(Storage t, int cols) { return int64_t(cols) / block_of(t).values * block_of(t).bytes; }
float half_at(const uint8_t* b) { uint16_t u; memcpy(&u, b, 2); return to_float(f16{u}); }
int k_scale(const uint8_t* p, int s) { return s < 4 ? p[s] & 63 : (p[s + 4] & 15) | ((p[s - 4] >> 6) << 4); }
int k_min(const uint8_t* p, int s) { return s < 4 ? p[s + 4] & 63 : (p[s + 4] >> 4) | ((p[s] >> 6) << 4); }

void widen(Storage t, const uint8_t* b, float* o) {
  switch (t) {
    case Storage::F32: memcpy(o, b, 4); return;
    case Storage::F16: *o = half_at(b); return;
    case Storage::BF16: { uint16_t u; memcpy(&u, b, 2); *o = to_float(bf16{u}); return; }
    case Storage::Q4_0: case Storage::Q4_1: case Storage::Q5_0: case Storage::Q5_1: {
      const bool min = t == Storage::Q4_1 || t == Storage::Q5_1, five = t == Storage::Q5_0 || t == Storage::Q5_1;
      const float d = half_at(b), m = min ? half_at(b + 2) : 0;
      const uint8_t* q = b + (min ? 4 : 2);
      uint32_t high = 0;
      if (five) { memcpy(&high, q, 4); q += 4; }
      for (int j = 0; j < 32; j++) {
        const int c = ((j < 16 ? q[j] & 15 : q[j - 16] >> 4) | (((high >> j) & 1) << 4));
        o[j] = min ? d * c + m : d * (c - (five ? 16 : 8));
      }
      return;
    }
    case Storage::Q8_0:
      for (int j = 0; j < 32; j++) o[j] = half_at(b) * int8_t(b[2 + j]);
      return;
    case Storage::Q4_K: case Storage::Q5_K: {
      const float d = half_at(b), dmin = half_at(b + 2);
      const bool five = t == Storage::Q5_K;
      const uint8_t* q = b + (five ? 48 : 16);
      for (int j = 0; j < 256; j++) {
        const int s = j / 32, i = j % 32;
        const float scale = d * k_scale(b + 4, s), min = dmin * k_min(b + 4, s);
        int c = (q[32 * (s / 2) + i] >> (4 * (s & 1))) & 15;
        if (five) c |= ((b[16 + i] >> s) & 1) << 4;
        o[j] = scale * c - min;
      }
      return;
    }
    case Storage::Q6_K: {
      const float d = half_at(b + 208);
      for (int j = 0; j < 256; j++) {
        const int h = j / 128, r = j % 128, quarter = r / 32, i = r % 32;
        const int low = b[64 * h + 32 * (quarter & 1) + i] >> (quarter >= 2 ? 4 : 0) & 15;
        const int high = (b[128 + 32 * h + i] >> (2 * quarter)) & 3;
        o[j] = d * int8_t(b[192 + j / 16]) * ((low | high << 4) - 32);
      }
      return;
    }
    default: return;
  }
}

float dot(const float* a, const float* b, int n) {
  vf s = vzero();
  int i = 0;
  for (; i + VL <= n; i += VL) s = vfma(vload(a + i), vload(b + i), s);
  float r = vsum(s);
  for (; i < n; i++) r += a[i] * b[i];
  return r;
}

}  // namespace

int linear_row_group() { return kGroup; }
int linear_token_group() { return 1; }
int64_t linear_group_bytes(Storage t, int32_t cols) { return (kGroup * row_bytes(t, cols) + 63) / 64 * 64; }
bool linear_supports(Storage t, int32_t cols) { return cols % block_of(t).values == 0; }
Act linear_act(Storage) { return Act::f32; }
int64_t linear_act_bytes(Act, int32_t tokens, int32_t cols) { return int64_t(tokens) * cols * 4; }
int64_t linear_scratch_bytes(int32_t max_cols) { return int64_t(max_cols) * 4 + 64; }

void linear_pack(Storage t, const uint8_t* src, int64_t src_row_bytes, int64_t src_col_byte, const int32_t* row_map, int32_t rows,
                 int32_t cols, int32_t g0, int32_t g1, uint8_t* dst) {
  for (int r = g0 * kGroup; r < g1 * kGroup; r++) {
    uint8_t* to = dst + r / kGroup * linear_group_bytes(t, cols) + r % kGroup * row_bytes(t, cols);
    if (r >= rows) memset(to, 0, row_bytes(t, cols));
    else memcpy(to, src + (row_map ? row_map[r] : r) * src_row_bytes + src_col_byte, row_bytes(t, cols));
  }
}

void linear_unpack_row(const Weight& w, int32_t row, float* out) {
  const Block k = block_of(w.type);
  const uint8_t* b = w.data + row / kGroup * linear_group_bytes(w.type, w.cols) + row % kGroup * row_bytes(w.type, w.cols);
  for (int c = 0; c < w.cols; c += k.values, b += k.bytes) widen(w.type, b, out + c);
}

void linear_prepare(Act, const float* x, int64_t ldx, int32_t, int32_t cols, int32_t t0, int32_t t1, void* act) {
  for (int t = t0; t < t1; t++) memcpy((float*)act + int64_t(t) * cols, x + t * ldx, size_t(cols) * 4);
}

void linear_run(const Weight& w, const void* act, int32_t, int32_t t0, int32_t t1, int32_t g0, int32_t g1, float* y, int64_t ldy,
                const Epilogue& e, void* scratch) {
  float* row = (float*)scratch;
  for (int r = g0 * kGroup; r < g1 * kGroup && r < w.rows; r++) {
    linear_unpack_row(w, r, row);
    for (int t = t0; t < t1; t++) {
      const float s = dot((const float*)act + int64_t(t) * w.cols, row, w.cols) + (e.bias ? e.bias[r] : 0);
      float& o = y[t * ldy + r];
      o = e.accumulate ? o + s : s;
    }
  }
}

}  // namespace mr
