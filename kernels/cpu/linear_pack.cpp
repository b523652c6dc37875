// Owns: packing and unpacking. Lossless: every scale and code of the file is in the group, re-laid as linear_layout.h
// says; unpacking multiplies and adds in the order of the format's own dequantiser, each step rounded once.
// Sources of the block formats: ggml-common.h.
#include <cstring>
#include "linear_layout.h"
#include "simd.h"

namespace mr {
namespace {

constexpr uint32_t nibble = 0x0f0f0f0f, one_bit = 0x01010101, two_bits = 0x03030303;

uint32_t load32(const uint8_t* p) {
  uint32_t x;
  std::memcpy(&x, p, 4);
  return x;
}
// Bits 0 to 3 to bit 0 of each byte.
uint32_t spread_bits(uint32_t x) { return ((x & 15) * 0x00204081u) & one_bit; }
void store32(uint8_t* p, uint32_t x) { std::memcpy(p, &x, 4); }
float load_half(const uint8_t* p) {
  uint16_t x;
  std::memcpy(&x, p, 2);
  return to_float(f16{x});
}

// Where a format's parts lie in the file's block; the rest of its layout follows from Layout.
template <Storage S>
constexpr int file_d = S == Storage::Q6_K ? 208 : 0;  // dmin or m follows d

// The eight quads of sub-block s of the file's block b.
template <Storage S>
void read_file(const uint8_t* b, int s, uint32_t q[8]) {
  using L = Layout<S>;
  if constexpr (S == Storage::Q8_0) {
    for (int j = 0; j < 8; j++) q[j] = load32(b + 2 + 4 * j) ^ 0x80808080;
  } else if constexpr (S == Storage::Q6_K) {
    const int quarter = s & 3;
    const uint8_t* low = b + 64 * (s >> 2) + 32 * (quarter & 1);
    const uint8_t* high = b + 128 + 32 * (s >> 2);
    for (int j = 0; j < 8; j++)
      q[j] = ((load32(low + 4 * j) >> (quarter >> 1) * 4) & nibble) |
             ((load32(high + 4 * j) >> quarter * 2) & two_bits) << 4;
  } else if constexpr (L::scales == Scales::six_bit) {
    const uint8_t* codes = b + 16 + (L::bits == 5 ? 32 : 0) + 32 * (s >> 1);
    for (int j = 0; j < 8; j++) {
      q[j] = (load32(codes + 4 * j) >> (s & 1) * 4) & nibble;
      if constexpr (L::bits == 5) q[j] |= ((load32(b + 16 + 4 * j) >> s) & one_bit) << 4;
    }
  } else {
    const uint8_t* after = b + (L::has_min ? 4 : 2);
    const uint8_t* codes = after + (L::bits == 5 ? 4 : 0);
    for (int j = 0; j < 4; j++) {
      const uint32_t x = load32(codes + 4 * j);
      q[j] = x & nibble;
      q[j + 4] = (x >> 4) & nibble;
    }
    if constexpr (L::bits == 5)
      for (int j = 0; j < 8; j++) q[j] |= spread_bits(load32(after) >> 4 * j) << 4;
  }
}

// Quads of row r to and from the R rows' codes of one sub-block.
template <class L>
void write_quads(uint8_t* sub, int r, const uint32_t q[8]) {
  uint8_t* at = sub + 4 * r;
  if constexpr (L::bits == 8) {
    for (int j = 0; j < 8; j++) store32(at + 4 * R * j, q[j]);
    return;
  }
  if constexpr (L::bits == 5) {
    uint32_t plane = 0;
    for (int j = 0; j < 8; j++) plane |= ((q[j] >> 4) & one_bit) << j;
    store32(at, plane);
  }
  if constexpr (L::bits == 6)
    for (int p = 0; p < 2; p++) {
      uint32_t plane = 0;
      for (int j = 0; j < 4; j++) plane |= ((q[4 * p + j] >> 4) & two_bits) << 2 * j;
      store32(at + 4 * R * p, plane);
    }
  for (int j = 0; j < 4; j++) store32(at + L::planes * R + 4 * R * j, (q[j] & nibble) | (q[j + 4] & nibble) << 4);
}

template <class L>
void read_quads(const uint8_t* sub, int r, uint32_t q[8]) {
  const uint8_t* at = sub + 4 * r;
  if constexpr (L::bits == 8) {
    for (int j = 0; j < 8; j++) q[j] = load32(at + 4 * R * j);
    return;
  }
  for (int j = 0; j < 4; j++) {
    const uint32_t x = load32(at + L::planes * R + 4 * R * j);
    q[j] = x & nibble;
    q[j + 4] = (x >> 4) & nibble;
  }
  for (int j = 0; j < 8; j++) {
    if constexpr (L::bits == 5) q[j] |= ((load32(at) >> j) & one_bit) << 4;
    if constexpr (L::bits == 6) q[j] |= ((load32(at + 4 * R * (j >> 2)) >> 2 * (j & 3)) & two_bits) << 4;
  }
}

// Eight 6-bit scales and mins in 12 bytes, as Q4_K and Q5_K keep them.
int file_scale(const uint8_t* b, int s) { return s < 4 ? b[s] & 63 : (b[s + 4] & 15) | (b[s - 4] >> 6) << 4; }
int file_min(const uint8_t* b, int s) { return s < 4 ? b[s + 4] & 63 : b[s + 4] >> 4 | (b[s] >> 6) << 4; }

template <Storage S>
void write_head(uint8_t* head, int r, const uint8_t* b) {
  using L = Layout<S>;
  std::memcpy(head + 2 * r, b + file_d<S>, 2);
  if constexpr (L::has_min) std::memcpy(head + 2 * R + 2 * r, b + file_d<S> + 2, 2);
  if constexpr (L::scales == Scales::six_bit)
    for (int i = 0; i < 4; i++) {
      int top = 0;
      for (int h = 0; h < 2; h++) {
        const int scale = file_scale(b + 4, 2 * i + h), min = file_min(b + 4, 2 * i + h);
        head[4 * R + (2 * i + h) * R + r] = uint8_t((scale & 15) | (min & 15) << 4);
        top |= (scale >> 4 | (min >> 4) << 2) << 4 * h;
      }
      head[12 * R + i * R + r] = uint8_t(top);
    }
  if constexpr (L::scales == Scales::int8)
    for (int i = 0; i < 16; i++) head[2 * R + i * R + r] = b[192 + i];
}

template <Storage S>
void unpack_super(const uint8_t* at, int r, float* out) {
  using L = Layout<S>;
  const float d = load_half(at + 2 * r);
  const float m = L::has_min ? load_half(at + 2 * R + 2 * r) : 0.0f;
  for (int s = 0; s < L::subs; s++, out += 32) {
    uint32_t q[8];
    read_quads<L>(at + L::head * R + s * L::sub * R, r, q);
    float scale[2] = {d, d}, min = m;
    if constexpr (L::scales == Scales::six_bit) {
      const int low = at[4 * R + s * R + r], top = at[12 * R + (s >> 1) * R + r] >> 4 * (s & 1);
      scale[0] = scale[1] = d * float((low & 15) | (top & 3) << 4);
      min = -(m * float(low >> 4 | (top >> 2 & 3) << 4));
    }
    if constexpr (L::scales == Scales::int8)
      for (int h = 0; h < 2; h++) scale[h] = d * float(int8_t(at[2 * R + (2 * s + h) * R + r]));
    for (int k = 0; k < 32; k++) {
      const float x = scale[k >> 4] * float(int(q[k >> 2] >> 8 * (k & 3) & 255) - L::zero);
      out[k] = L::has_min ? x + min : x;
    }
  }
}

template <Storage S, class Row>
void pack_blocks(Row&& row, int rows, int cols, int g0, int g1, uint8_t* dst) {
  using L = Layout<S>;
  const int supers = cols / L::values;
  for (int g = g0; g < g1; g++) {
    uint8_t* group = dst + g * linear_group_bytes(S, cols);
    if ((g + 1) * R > rows) std::memset(group, 0, size_t(linear_group_bytes(S, cols)));
    for (int i = 0; i < supers; i++)
      for (int r = 0; r < R && g * R + r < rows; r++) {
        const uint8_t* block = row(g * R + r) + int64_t(i) * L::bytes;
        uint8_t* at = group + int64_t(i) * L::bytes * R;
        write_head<S>(at, r, block);
        for (int s = 0; s < L::subs; s++) {
          uint32_t q[8];
          read_file<S>(block, s, q);
          write_quads<L>(at + (L::head + s * L::sub) * R, r, q);
        }
      }
  }
}

template <class T, class Row>
void pack_plain(Row&& row, int rows, int cols, int g0, int g1, uint8_t* dst) {
  for (int g = g0; g < g1; g++) {
    T* group = reinterpret_cast<T*>(dst) + int64_t(g) * cols * R;
    for (int r = 0; r < R; r++) {
      const uint8_t* from = g * R + r < rows ? row(g * R + r) : nullptr;
      for (int k = 0; k < cols; k++) {
        T x = 0;
        if (from) std::memcpy(&x, from + sizeof(T) * k, sizeof(T));
        group[int64_t(k) * R + r] = x;
      }
    }
  }
}

}  // namespace

int linear_row_group() { return R; }

int64_t linear_group_bytes(Storage type, int32_t cols) {
  int64_t bytes = int64_t(float_bytes(type)) * cols * R;
  for_block_format(type, [&]<Storage S>() { bytes = int64_t(cols) / Layout<S>::values * Layout<S>::bytes * R; });
  return bytes;
}

bool linear_supports(Storage type, int32_t cols) {
  bool whole = float_bytes(type) != 0;
  for_block_format(type, [&]<Storage S>() { whole = cols % Layout<S>::values == 0; });
  return whole && cols > 0;
}

void linear_pack(Storage type, const uint8_t* src, int64_t src_row_bytes, int64_t src_col_byte, const int32_t* row_map,
                 int32_t rows, int32_t cols, int32_t g0, int32_t g1, uint8_t* dst) {
  const auto row = [=](int i) { return src + (row_map ? row_map[i] : i) * src_row_bytes + src_col_byte; };
  if (for_block_format(type, [&]<Storage S>() { pack_blocks<S>(row, rows, cols, g0, g1, dst); })) return;
  if (type == Storage::F32) return pack_plain<uint32_t>(row, rows, cols, g0, g1, dst);
  pack_plain<uint16_t>(row, rows, cols, g0, g1, dst);
}

void linear_unpack_row(const Weight& w, int32_t row, float* out) {
  const int r = row % R;
  const uint8_t* group = w.data + row / R * linear_group_bytes(w.type, w.cols);
  if (for_block_format(w.type, [&]<Storage S>() {
        using L = Layout<S>;
        for (int i = 0; i < w.cols / L::values; i++)
          unpack_super<S>(group + int64_t(i) * L::bytes * R, r, out + int64_t(i) * L::values);
      }))
    return;
  for (int64_t k = 0; k < w.cols; k++) {
    if (w.type == Storage::F32) {
      out[k] = reinterpret_cast<const float*>(group)[k * R + r];
    } else {
      const uint16_t x = reinterpret_cast<const uint16_t*>(group)[k * R + r];
      out[k] = w.type == Storage::F16 ? to_float(f16{x}) : to_float(bf16{x});
    }
  }
}

}  // namespace mr
