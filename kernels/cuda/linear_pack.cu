// Owns: a checkpoint's rows into the layout of linear_layout.cuh, without loss, and back: whole matrices to f32 or bf16,
// and rows of embedding tables. Also the gate of pairs that no tile holds.
#include "linear_widen.cuh"

namespace mr {

// Block b of the file, its code j.
template <int S>
__device__ __forceinline__ uint32_t file_code(const uint8_t* b, int j) {
  const int s = j >> 5, l = j & 31;
  switch (S) {
    case Q4_0: return b[2 + (j & 15)] >> (j >> 4) * 4 & 15;
    case Q4_1: return b[4 + (j & 15)] >> (j >> 4) * 4 & 15;
    case Q5_0: return (b[6 + (j & 15)] >> (j >> 4) * 4 & 15) | (b[2 + (j >> 3)] >> (j & 7) & 1) << 4;
    case Q5_1: return (b[8 + (j & 15)] >> (j >> 4) * 4 & 15) | (b[4 + (j >> 3)] >> (j & 7) & 1) << 4;
    case Q8_0: return b[2 + j];
    case Q4_K: return b[16 + 32 * (s >> 1) + l] >> (s & 1) * 4 & 15;
    case Q5_K: return (b[48 + 32 * (s >> 1) + l] >> (s & 1) * 4 & 15) | (b[16 + l] >> s & 1) << 4;
    default: {
      const int h = j >> 7, quarter = s & 3;
      return (b[64 * h + 32 * (quarter & 1) + l] >> (quarter >> 1) * 4 & 15) | (b[128 + 32 * h + l] >> 2 * quarter & 3) << 4;
    }
  }
}

struct Rows {
  const uint8_t* address;
  int64_t row_bytes, column_byte;
  int row0;
  const int* map;
  int rows, cols;
  // Block of value k of row r, or null outside the matrix.
  __device__ const uint8_t* block(int r, int k, int values, int bytes) const {
    if (r >= rows || k >= cols) return nullptr;
    return address + (map ? map[r] : row0 + r) * row_bytes + column_byte + static_cast<int64_t>(k / values) * bytes;
  }
};

__device__ __forceinline__ uint32_t u16_at(const uint8_t* p) { return p ? p[0] | p[1] << 8 : 0; }

// Scale or min j (0…7) of Q4_K and Q5_K; p: the 12 bytes.
__device__ __forceinline__ uint32_t six_bits(const uint8_t* p, int j, bool min) {
  if (j < 4) return p[j + (min ? 4 : 0)] & 63;
  return (min ? p[j + 4] >> 4 : p[j + 4] & 15) | (p[j - (min ? 0 : 4)] >> 6) << 4;
}

constexpr int file_bytes(int s) {
  switch (s) {
    case F32: return 4;
    case F16: case BF16: return 2;
    case Q4_0: return 18;
    case Q4_1: return 20;
    case Q5_0: return 22;
    case Q5_1: return 24;
    case Q8_0: return 34;
    case Q4_K: return 144;
    case Q5_K: return 176;
    default: return 210;
  }
}

// Word `at / 4` of the unit whose first row and value are r0 and k0.
template <int S>
__device__ uint32_t packed_word(const Rows& rows, int r0, int k0, int at) {
  using L = Format<S>;
  constexpr int values = L::floating ? 1 : L::k == 256 ? 256 : 32, bytes = file_bytes(S);
  if constexpr (S == F32) {
    const int group = at >> 9, lane = at >> 4 & 31, r = r0 + (group >> 1) * 8 + (lane >> 2);
    const uint8_t* p = rows.block(r, k0 + (lane & 3) * 8 + (group & 1) * 4 + (at >> 2 & 3), 1, 4);
    return p ? u16_at(p) | u16_at(p + 2) << 16 : 0;
  } else if constexpr (L::floating) {
    const int r = at >> 7, k = k0 + ((at >> 4 & 7) ^ (r & 7)) * 8 + (at >> 1 & 7);
    return u16_at(rows.block(r0 + r, k, 1, 2)) | u16_at(rows.block(r0 + r, k + 1, 1, 2)) << 16;
  } else {
    const auto code = [&](int r, int k) -> uint32_t {
      const uint8_t* b = rows.block(r0 + r, k0 + k, values, bytes);
      return b ? file_code<S>(b, k & (values - 1)) : 0;
    };
    // Value of a lane's place i among its eight of the 32 from k on.
    const auto place = [](int lane, int i) { return S == Q6_K ? (i >> 2) * 16 + (lane & 3) * 4 + (i & 3) : (lane & 3) * 8 + i; };
    uint32_t out = 0;
    if (at < L::plane_at) {
      if (S == Q8_0) {
        const int lane = at >> 4 & 31, r = (lane >> 2) + (at >> 3 & 1) * 8, i0 = at & 4;
        for (int i = 0; i < 4; i++) {
          const int from = (i & 1) << 1 | i >> 1;  // bytes 0 2 1 3
          out |= code(r, (at >> 9) * 32 + place(lane, i0 + from)) << 8 * i;
        }
      } else {
        const int lane = at >> 4 & 31, word = at >> 2 & 3, r = (lane >> 2) + (word & 1) * 8;
        for (int i = 0; i < 8; i++) {
          out |= (code(r, (at >> 9) * 64 + (word >> 1) * 32 + place(lane, i)) & 15) << ((i >> 1) * 4 + (i & 1) * 16);
        }
      }
    } else if (at < L::head_at) {
      const int in = at - L::plane_at;
      if (S == Q6_K) {
        const int lane = in >> 4 & 31, word = in >> 2 & 3, piece = (in >> 9) * 2 + (word >> 1);
        for (int i = 0; i < 16; i++) {
          const uint32_t c = code((lane >> 2) + (word & 1) * 8, piece * 64 + (i >> 3) * 32 + place(lane, i & 7));
          out |= (c >> 4) << (((i >> 3) * 4 + (i >> 1 & 3)) * 2 + (i & 1) * 16);
        }
      } else {
        const int lane = S == Q5_K ? in >> 4 : in >> 2, piece = S == Q5_K ? in >> 2 & 3 : 0;
        for (int f = 0; f < 16; f++) {
          for (int odd = 0; odd < 2; odd++) {
            const uint32_t c = code((lane >> 2) + (f >> 2 & 1) * 8, piece * 64 + (f >> 3) * 32 + place(lane, (f & 3) * 2 + odd));
            out |= (c >> 4 & 1) << (f + 16 * odd);
          }
        }
      }
    } else {
      const int in = at - L::head_at;
      if (S == Q4_K || S == Q5_K) {
        const uint8_t* b = rows.block(r0 + (in >> 4), k0, values, bytes);
        if (!b) return 0;
        const int word = in >> 2 & 3;
        if (word == 0) return u16_at(b) | u16_at(b + 2) << 16;
        for (int j = 0; j < 8; j++) {
          const uint32_t scale = six_bits(b + 4, j, false), min = six_bits(b + 4, j, true);
          if (word == 1) out |= (scale & 15) << 4 * j;
          if (word == 2) out |= (min & 15) << 4 * j;
          if (word == 3) out |= (scale >> 4) << 2 * j | (min >> 4) << (16 + 2 * j);
        }
      } else if (S == Q6_K) {
        for (int i = 0; i < (in < 256 ? 4 : 2); i++) {
          const uint8_t* b = rows.block(r0 + (in < 256 ? in >> 4 : (in - 256) / 2 + i), k0, values, bytes);
          if (b) out |= in < 256 ? b[192 + (in & 15) + i] << 8 * i : u16_at(b + 208) << 16 * i;
        }
      } else {
        const int r = r0 + (in >> 2 & 15), offset = in >= 64 ? 2 : 0;
        for (int i = 0; i < 2; i++) {
          const uint8_t* b = rows.block(r, k0 + 32 * i, values, bytes);
          if (b) out |= u16_at(b + offset) << 16 * i;
        }
      }
    }
    return out;
  }
}

template <int S>
__device__ void embed_row(const uint8_t* table, int units, int row, int cols, float scale, void* y, bool y_f32, int64_t at) {
  const uint8_t* tile = table + static_cast<int64_t>(row >> 4) * units * Format<S>::bytes;
  for (int k = threadIdx.x; k < cols; k += blockDim.x) {
    const float v = unit_value<S>(tile + static_cast<int64_t>(k / Format<S>::k) * Format<S>::bytes, row & 15, k % Format<S>::k) * scale;
    if (y_f32) static_cast<float*>(y)[at + k] = v;
    else static_cast<bf16*>(y)[at + k] = __float2bfloat16_rn(v);
  }
}

}  // namespace mr

// grid: (units, tiles). Row r of the matrix is row map[r] (or row0 + r) of row_bytes bytes, from column_byte on.
extern "C" __global__ void __launch_bounds__(256) mr_linear_pack(int type, const uint8_t* source, int64_t row_bytes,
    int64_t column_byte, int row0, const int* map, int rows, int cols, uint8_t* to) {
  const mr::Rows r{source, row_bytes, column_byte, row0, map, rows, cols};
  mr::for_storage(type, [&]<int S>() {
    using L = mr::Format<S>;
    uint32_t* unit = reinterpret_cast<uint32_t*>(to + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * L::bytes);
    for (int w = threadIdx.x; w < L::bytes / 4; w += blockDim.x) unit[w] = mr::packed_word<S>(r, blockIdx.y * 16, blockIdx.x * L::k, w * 4);
  });
}

// grid: (units, tiles), to f32 [rows, cols].
extern "C" __global__ void __launch_bounds__(256) mr_linear_unpack(int type, const uint8_t* from, int rows, int cols, float* to) {
  mr::for_storage(type, [&]<int S>() {
    using L = mr::Format<S>;
    const uint8_t* unit = from + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * L::bytes;
    for (int i = threadIdx.x; i < 16 * L::k; i += blockDim.x) {
      const int r = i / L::k, k = i % L::k, row = blockIdx.y * 16 + r, col = blockIdx.x * L::k + k;
      if (row < rows && col < cols) to[static_cast<int64_t>(row) * cols + col] = mr::unit_value<S>(unit, r, k);
    }
  });
}

// A matrix to BF16's layout: a warp 16 rows × 64 values. grid: (values / 512, tiles)
extern "C" __global__ void __launch_bounds__(256) mr_linear_widen(int type, const uint8_t* from, int cols, uint8_t* to) {
  mr::release();
  const int units = (cols + 63) / 64, u = blockIdx.x * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  if (u >= units) return;
  uint8_t* unit = to + (static_cast<int64_t>(blockIdx.y) * units + u) * 2048;
  mr::for_storage(type, [&]<int S>() {
    using L = mr::Format<S>;
    const int sources = (cols + L::k - 1) / L::k;
    const uint8_t* tile = from + static_cast<int64_t>(blockIdx.y) * sources * L::bytes;
    uint32_t out[2][2][4] = {};
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const int k = u * 64 + c * 32;
      if (k < sources * L::k) mr::widen_values<S>(tile + static_cast<int64_t>(k / L::k) * L::bytes, k % L::k / 32, lane, out[c]);
    }
    mr::wait();
#pragma unroll
    for (int c = 0; c < 2; c++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint32_t(&v)[4] = out[c][half];
        const int r = g + 8 * half;
        if constexpr (S == mr::Q6_K) {
          *reinterpret_cast<uint2*>(unit + mr::swizzled(r, c * 4 + (t >> 1)) + (t & 1) * 8) = make_uint2(v[0], v[1]);
          *reinterpret_cast<uint2*>(unit + mr::swizzled(r, c * 4 + 2 + (t >> 1)) + (t & 1) * 8) = make_uint2(v[2], v[3]);
        } else {
          *reinterpret_cast<uint4*>(unit + mr::swizzled(r, c * 4 + t)) = make_uint4(v[0], v[1], v[2], v[3]);
        }
      }
  });
}

// y[n] = scale · row ids[n] of the stacked tables, which hold the rows from `first` on; the others are left alone. One block a
// token.
extern "C" __global__ void __launch_bounds__(256) mr_linear_embed(const mr::StepInfo* info, const int* ids, int first, float scale,
    void* y, int y_f32, int cols, int count, const uint8_t* d0, int t0, int n0, const uint8_t* d1, int t1, int n1, const uint8_t* d2, int t2,
    int n2, const uint8_t* d3, int t3, int n3) {
  mr::wait();
  mr::release();
  if (blockIdx.x >= info->tokens) return;
  int row = ids[blockIdx.x] - first;
  if (row < 0) return;
  const uint8_t* data[4] = {d0, d1, d2, d3};
  const int type[4] = {t0, t1, t2, t3}, rows[4] = {n0, n1, n2, n3};
#pragma unroll
  for (int s = 0; s < 4; s++) {
    if (s >= count) return;
    if (row < rows[s]) {
      mr::for_storage(type[s], [&]<int S>() {
        mr::embed_row<S>(data[s], (cols + mr::Format<S>::k - 1) / mr::Format<S>::k, row, cols, scale, y, y_f32,
                         static_cast<int64_t>(blockIdx.x) * cols);
      });
      return;
    }
    row -= rows[s];
  }
}

// y[n, i] = f(both[n, i]) · both[n, half + i]. grid: (half / 256, tokens)
extern "C" __global__ void __launch_bounds__(256) mr_linear_gate(const float* both, void* y, int y_f32, int half, int kind, const int* count) {
  mr::wait();
  mr::release();
  const int i = blockIdx.x * 256 + threadIdx.x, n = blockIdx.y;
  if (n >= *count || i >= half) return;
  const float* row = both + static_cast<int64_t>(n) * 2 * half;
  const float v = mr::activate(kind, row[i]) * row[half + i];
  const int64_t at = static_cast<int64_t>(n) * half + i;
  if (y_f32) static_cast<float*>(y)[at] = v;
  else static_cast<mr::bf16*>(y)[at] = __float2bfloat16_rn(v);
}
