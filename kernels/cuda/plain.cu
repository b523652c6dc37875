// Owns: products in their plainest form, for any format: what runs where no faster kernel takes
// the case. Weights are the file's own rows, each dequantised where it is read.
#include "common.cuh"

namespace {

using namespace mr;

__device__ __forceinline__ float half_at(const uint8_t* p) {
  return __half2float(__ushort_as_half(uint16_t(p[0] | p[1] << 8)));
}

// Scale and min of group j of a Q4_K or Q5_K block: 6 bits each.
__device__ __forceinline__ void scale_min(const uint8_t* q, int j, int& scale, int& min) {
  if (j < 4) scale = q[j] & 63, min = q[j + 4] & 63;
  else scale = (q[j + 4] & 15) | q[j - 4] >> 6 << 4, min = q[j + 4] >> 4 | q[j] >> 6 << 4;
}

// Value i of a row. formats/quant/dequantize.ts is the specification.
__device__ float value_at(int type, const uint8_t* row, int i) {
  const int b = i / 32, j = i % 32;
  switch (type) {
    case F32: return __uint_as_float(row[4 * i] | row[4 * i + 1] << 8 | row[4 * i + 2] << 16 | uint32_t(row[4 * i + 3]) << 24);
    case F16: return half_at(row + 2 * i);
    case BF16: return __uint_as_float(uint32_t(row[2 * i] | row[2 * i + 1] << 8) << 16);
    case Q4_0: {
      const uint8_t* p = row + 18 * b;
      const int q = j < 16 ? p[2 + j] & 15 : p[2 + j - 16] >> 4;
      return half_at(p) * float(q - 8);
    }
    case Q4_1: {
      const uint8_t* p = row + 20 * b;
      const int q = j < 16 ? p[4 + j] & 15 : p[4 + j - 16] >> 4;
      return half_at(p) * float(q) + half_at(p + 2);
    }
    case Q5_0:
    case Q5_1: {
      const int header = type == Q5_0 ? 2 : 4;
      const uint8_t *p = row + (header + 20) * b, *high = p + header;
      const int bit = high[j / 8] >> (j % 8) & 1;
      const int q = (j < 16 ? high[4 + j] & 15 : high[4 + j - 16] >> 4) | bit << 4;
      return type == Q5_0 ? half_at(p) * float(q - 16) : half_at(p) * float(q) + half_at(p + 2);
    }
    case Q8_0: return half_at(row + 34 * b) * float(int8_t(row[34 * b + 2 + j]));
    case Q4_K: {
      const uint8_t* p = row + 144 * (i / 256);
      const int k = i % 256, g = k / 32;
      int scale, min;
      scale_min(p + 4, g, scale, min);
      const int byte = p[16 + 32 * (g / 2) + j], q = g % 2 ? byte >> 4 : byte & 15;
      return half_at(p) * float(scale) * float(q) - half_at(p + 2) * float(min);
    }
    case Q5_K: {
      const uint8_t* p = row + 176 * (i / 256);
      const int k = i % 256, g = k / 32;
      int scale, min;
      scale_min(p + 4, g, scale, min);
      const int byte = p[48 + 32 * (g / 2) + j], q = (g % 2 ? byte >> 4 : byte & 15) | (p[16 + j] >> g & 1) << 4;
      return half_at(p) * float(scale) * float(q) - half_at(p + 2) * float(min);
    }
    default: {  // Q6_K
      const uint8_t* p = row + 210 * (i / 256);
      const int k = i % 256, half = k / 128, within = k % 128, quarter = within / 32;
      const int low = p[64 * half + 32 * (quarter % 2) + j];
      const int high = p[128 + 32 * half + j] >> (2 * quarter) & 3;
      const int q = ((quarter < 2 ? low & 15 : low >> 4) | high << 4) - 32;
      return half_at(p + 208) * float(int8_t(p[192 + 8 * half + within / 16])) * float(q);
    }
  }
}

__device__ __forceinline__ float x_at(const void* p, int wide, int64_t i) {
  return wide ? static_cast<const float*>(p)[i] : load(static_cast<const bf16*>(p) + i);
}

}  // namespace

// Rows of a checkpoint's tensor, columns cut out, one after another.
extern "C" __global__ void mr_plain_pack(const uint8_t* from, int64_t row_bytes, int64_t column, int row0, const int* map,
                                         uint8_t* to, int bytes) {
  const int r = blockIdx.x;
  const uint8_t* source = from + row_bytes * (map ? map[r] : row0 + r) + column;
  for (int i = threadIdx.x; i < bytes; i += blockDim.x) to[int64_t(r) * bytes + i] = source[i];
}

extern "C" __global__ void mr_plain_unpack(const uint8_t* from, int type, int row_bytes, int cols, float* to) {
  const int r = blockIdx.x;
  for (int i = threadIdx.x; i < cols; i += blockDim.x)
    to[int64_t(r) * cols + i] = value_at(type, from + int64_t(r) * row_bytes, i);
}

// y[t] = scale · table[ids[t]] for the ids of this piece, whose rows are [first, first + rows) of the table.
extern "C" __global__ void mr_plain_embed(const StepInfo* info, const int* ids, const uint8_t* table, int type, int row_bytes,
                                          int first, int rows, float scale, void* y, int wide, int d) {
  wait();
  release();
  const int t = blockIdx.x;
  if (t >= info->tokens) return;
  const int id = ids[t] - first;
  if (id < 0 || id >= rows) return;
  for (int i = threadIdx.x; i < d; i += blockDim.x) {
    const float z = scale * value_at(type, table + int64_t(id) * row_bytes, i);
    if (wide) static_cast<float*>(y)[int64_t(t) * d + i] = z;
    else store(static_cast<bf16*>(y) + int64_t(t) * d + i, z);
  }
}

// A warp an output row and token: y[t, column + r] = x[t] · w[r] + bias. gated: y = f(x · w[r]) · (x · u[r]).
extern "C" __global__ void mr_plain_linear(const StepInfo* info, int on_rows, const void* x, int x_wide, int k,
                                           const uint8_t* w, int type, int row_bytes, int rows, const float* bias, void* y,
                                           int y_wide, int width, int column, int add, const uint8_t* u, int u_type,
                                           int u_row_bytes, const float* u_bias, int kind) {
  wait();
  release();
  const int t = blockIdx.y, r = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x & 31;
  if (t >= (on_rows ? info->rows : info->tokens) || r >= rows) return;
  float sum = 0, other = 0;
  for (int i = lane; i < k; i += 32) {
    const float z = x_at(x, x_wide, int64_t(t) * k + i);
    sum += z * value_at(type, w + int64_t(r) * row_bytes, i);
    if (u) other += z * value_at(u_type, u + int64_t(r) * u_row_bytes, i);
  }
  sum = warp_sum(sum);
  if (u) other = warp_sum(other);
  if (lane) return;
  if (bias) sum += bias[r];
  if (u) sum = activate(kind, sum) * (other + (u_bias ? u_bias[r] : 0.0f));
  const int64_t at = int64_t(t) * width + column + r;
  if (add) static_cast<float*>(y)[at] += sum;
  else if (y_wide) static_cast<float*>(y)[at] = sum;
  else store(static_cast<bf16*>(y) + at, sum);
}
