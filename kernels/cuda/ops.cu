// Owns: what is done to each token or row by itself: norms, sums, activations, rope, writing keys and values, gathering rows.
// Rows of activations are bf16 or f32, said by a flag; arithmetic is f32.
#include "heads.cuh"

namespace {

using namespace mr;

__device__ __forceinline__ float4 get4(const void* p, int wide, int64_t i) {
  return wide ? load4(static_cast<const float*>(p) + i) : load4(static_cast<const bf16*>(p) + i);
}
__device__ __forceinline__ void put4(void* p, int wide, int64_t i, float4 x) {
  if (wide) store4(static_cast<float*>(p) + i, x);
  else store4(static_cast<bf16*>(p) + i, x);
}

__device__ __forceinline__ int count(const StepInfo* info, int rows) { return rows ? info->rows : info->tokens; }

}  // namespace

// sum = alpha·a + beta·b where b is there (else the row is a), y = sum / rms(sum) · weight. One block a group of d values,
// which stay in registers between the two passes where they fit.
extern "C" __global__ void __launch_bounds__(1024) mr_norm(const StepInfo* info, int rows, const void* a, int a_wide,
                                                          const void* b, int b_wide, void* sum, int sum_wide, void* y,
                                                          int y_wide, const float* weight, int d, int groups, float alpha,
                                                          float beta, float eps) {
  __shared__ float scratch[32];
  constexpr int most = 4;
  const bool held = d % 4 == 0 && d <= int(4 * most * blockDim.x);
  float4 values[most], weights[most];
  if (held) {
#pragma unroll
    for (int j = 0; j < most; j++) {
      const int i = 4 * (threadIdx.x + j * blockDim.x);
      if (i < d) weights[j] = load4(weight + i);
    }
  }
  wait();
  release();
  if (int(blockIdx.x) >= count(info, rows) * groups) return;
  const int64_t at = int64_t(blockIdx.x) * d;
  float squares = 0;
  if (held) {
#pragma unroll
    for (int j = 0; j < most; j++) {
      const int i = 4 * (threadIdx.x + j * blockDim.x);
      if (i >= d) continue;
      float4 x = get4(a, a_wide, at + i);
      if (b) {
        const float4 z = get4(b, b_wide, at + i);
        x = make_float4(alpha * x.x + beta * z.x, alpha * x.y + beta * z.y, alpha * x.z + beta * z.z,
                        alpha * x.w + beta * z.w);
        put4(sum, sum_wide, at + i, x);
      }
      values[j] = x;
      squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
    }
    const float scale = rsqrtf(block_sum(squares, scratch) / d + eps);
#pragma unroll
    for (int j = 0; j < most; j++) {
      const int i = 4 * (threadIdx.x + j * blockDim.x);
      if (i >= d) continue;
      const float4 x = values[j], w = weights[j];
      put4(y, y_wide, at + i, make_float4(x.x * scale * w.x, x.y * scale * w.y, x.z * scale * w.z, x.w * scale * w.w));
    }
    return;
  }
  for (int i = threadIdx.x; i < d; i += blockDim.x) {
    float x = get(a, a_wide, at + i);
    if (b) {
      x = alpha * x + beta * get(b, b_wide, at + i);
      put(sum, sum_wide, at + i, x);
    }
    squares += x * x;
  }
  const float scale = rsqrtf(block_sum(squares, scratch) / d + eps);
  const void* from = b ? sum : a;
  const int wide = b ? sum_wide : a_wide;
  for (int i = threadIdx.x; i < d; i += blockDim.x) put(y, y_wide, at + i, get(from, wide, at + i) * scale * weight[i]);
}

extern "C" __global__ void mr_layer_norm(const StepInfo* info, int rows, const void* x, int x_wide, void* y, int y_wide,
                                         const float* weight, const float* bias, int d, float eps) {
  __shared__ float scratch[32];
  wait();
  release();
  if (int(blockIdx.x) >= count(info, rows)) return;
  const int64_t at = int64_t(blockIdx.x) * d;
  float sum = 0;
  for (int i = threadIdx.x; i < d; i += blockDim.x) sum += get(x, x_wide, at + i);
  const float mean = block_sum(sum, scratch) / d;
  float squares = 0;
  for (int i = threadIdx.x; i < d; i += blockDim.x) {
    const float z = get(x, x_wide, at + i) - mean;
    squares += z * z;
  }
  const float scale = rsqrtf(block_sum(squares, scratch) / d + eps);
  for (int i = threadIdx.x; i < d; i += blockDim.x)
    put(y, y_wide, at + i, (get(x, x_wide, at + i) - mean) * scale * weight[i] + (bias ? bias[i] : 0.0f));
}

// y = alpha·a + beta·b; b absent: y = alpha·a, which also changes the type.
extern "C" __global__ void mr_add(const StepInfo* info, int rows, const void* a, int a_wide, const void* b, int b_wide,
                                  void* y, int y_wide, int d, float alpha, float beta) {
  wait();
  release();
  const int64_t all = int64_t(count(info, rows)) * d;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += step)
    put(y, y_wide, i, alpha * get(a, a_wide, i) + (b ? beta * get(b, b_wide, i) : 0.0f));
}

// y = f(gate) · up; up absent: y = f(gate).
extern "C" __global__ void mr_activation(const StepInfo* info, int rows, const void* gate, int gate_wide, const void* up,
                                         int up_wide, void* y, int y_wide, int d, int kind) {
  wait();
  release();
  const int64_t all = int64_t(count(info, rows)) * d;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += step) {
    const float x = activate(kind, get(gate, gate_wide, i));
    put(y, y_wide, i, up ? x * get(up, up_wide, i) : x);
  }
}

// y[r] = x[row_tokens[r]], in units of 4 bytes (or 2: bytes says how many of a row).
extern "C" __global__ void mr_gather(const StepInfo* info, const uint8_t* x, uint8_t* y, const int* row_tokens, int bytes) {
  wait();
  release();
  const int r = blockIdx.x;
  if (r >= info->rows) return;
  const uint8_t* from = x + int64_t(row_tokens[r]) * bytes;
  uint8_t* to = y + int64_t(r) * bytes;
  if (bytes % 16 == 0) {
    for (int i = threadIdx.x; i < bytes / 16; i += blockDim.x)
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  } else {
    for (int i = threadIdx.x; i < bytes / 2; i += blockDim.x)
      reinterpret_cast<uint16_t*>(to)[i] = reinterpret_cast<const uint16_t*>(from)[i];
  }
}

// table[t] = cos and sin of position · frequency, pair after pair; the angle in double, as the specification has it.
extern "C" __global__ void mr_rope_table(const StepInfo* info, const int* positions, const double* frequencies, int half,
                                         float magnitude, float2* table) {
  wait();
  release();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= info->tokens * half) return;
  double sine, cosine;
  sincos(positions[i / half] * frequencies[i % half], &sine, &cosine);
  table[i] = make_float2(float(cosine * magnitude), float(sine * magnitude));
}

extern "C" __global__ void mr_rope(const StepInfo* info, const void* x, int x_wide, void* y, int y_wide, int heads, int d,
                                   int rotary, int interleaved, const float2* table) {
  wait();
  release();
  const int t = blockIdx.x, h = blockIdx.y * (blockDim.x / head_lanes) + threadIdx.x / head_lanes;
  if (t >= info->tokens || h >= heads) return;
  const int64_t at = (int64_t(t) * heads + h) * d;
  const Turn turn{d, rotary, interleaved, table + int64_t(t) * (rotary / 2)};
  turn_head(x, x_wide, at, turn, nullptr, 0.0f, [&](int i, float z) { put(y, y_wide, at + i, z); });
}

extern "C" __global__ void mr_cache_write(const StepInfo* info, const int* positions, const int* sequences, const void* k,
                                          int k_wide, const void* v, int v_wide, int heads, int d, int v_d, uint8_t* kp,
                                          uint8_t* vp, int64_t page_bytes, const int* start, const int* first,
                                          const int* ids, int type) {
  wait();
  release();
  const int t = blockIdx.x, h = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x & 31;
  if (t >= info->tokens || h >= heads) return;
  const Kv kv{kp, vp, page_bytes, start, first, ids, type};
  const int position = positions[t];
  const int64_t page = page_of(kv, sequences[t], position), row = int64_t(h) * page_tokens + position % page_tokens;
  for (int i = lane; i < d; i += 32) put_kv(kv.k + page, type, row * d + i, get(k, k_wide, (int64_t(t) * heads + h) * d + i));
  for (int i = lane; i < v_d; i += 32)
    put_kv(kv.v + page, type, row * v_d + i, get(v, v_wide, (int64_t(t) * heads + h) * v_d + i));
}

// qkvRopeCache: head_lanes lanes a head of q, k or v. The step's arrays were there before the first launch of the step.
extern "C" __global__ void mr_qkv(const StepInfo* info, const int* positions, const int* sequences, const void* qkv,
                                  int wide, void* q, int q_wide, int heads, int kv_heads, int d, int v_d, int rotary,
                                  int interleaved, const float2* table, const float* q_norm, const float* k_norm, float eps,
                                  uint8_t* kp, uint8_t* vp, int64_t page_bytes, const int* start, const int* first,
                                  const int* ids, int type) {
  const int t = blockIdx.x, h = blockIdx.y * (blockDim.x / head_lanes) + threadIdx.x / head_lanes;
  const int lane = threadIdx.x % head_lanes;
  const bool there = t < info->tokens && h < heads + 2 * kv_heads;
  const Kv kv{kp, vp, page_bytes, start, first, ids, type};
  const int position = there ? positions[t] : 0;
  const int64_t page = there && h >= heads ? page_of(kv, sequences[t], position) : 0;
  wait();
  release();
  if (!there) return;
  const int64_t width = int64_t(heads + kv_heads) * d + int64_t(kv_heads) * v_d, row = t * width;
  const Turn turn{d, rotary, interleaved, table + int64_t(t) * (rotary / 2)};
  if (h < heads) {
    const int64_t at = (int64_t(t) * heads + h) * d;
    turn_head(qkv, wide, row + int64_t(h) * d, turn, q_norm, eps, [&](int i, float z) { put(q, q_wide, at + i, z); });
    return;
  }
  const int within = position % page_tokens;
  if (h < heads + kv_heads) {
    const int64_t to = (int64_t(h - heads) * page_tokens + within) * d;
    turn_head(qkv, wide, row + int64_t(h) * d, turn, k_norm, eps,
              [&](int i, float z) { put_kv(kv.k + page, type, to + i, z); });
    return;
  }
  const int g = h - heads - kv_heads;
  const int64_t from = row + int64_t(heads + kv_heads) * d + int64_t(g) * v_d, to = (int64_t(g) * page_tokens + within) * v_d;
  for (int i = lane; i < v_d; i += head_lanes) put_kv(kv.v + page, type, to + i, get(qkv, wide, from + i));
}
