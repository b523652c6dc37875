// Owns: what is done to each token or row by itself: norms, sums, activations, rope, writing keys and values, gathering rows.
// Rows of activations are bf16 or f32, said by a flag; arithmetic is f32.
#include "common.cuh"

namespace {

using namespace mr;

struct View {  // rows of an activation
  void* p;
  int wide;  // f32, not bf16
};

__device__ __forceinline__ float get(const void* p, int wide, int64_t i) {
  return wide ? static_cast<const float*>(p)[i] : load(static_cast<const bf16*>(p) + i);
}
__device__ __forceinline__ void put(void* p, int wide, int64_t i, float x) {
  if (wide) static_cast<float*>(p)[i] = x;
  else store(static_cast<bf16*>(p) + i, x);
}
__device__ __forceinline__ float4 get4(const void* p, int wide, int64_t i) {
  return wide ? load4(static_cast<const float*>(p) + i) : load4(static_cast<const bf16*>(p) + i);
}
__device__ __forceinline__ void put4(void* p, int wide, int64_t i, float4 x) {
  if (wide) store4(static_cast<float*>(p) + i, x);
  else store4(static_cast<bf16*>(p) + i, x);
}

__device__ __forceinline__ int count(const StepInfo* info, int rows) { return rows ? info->rows : info->tokens; }

// What a layer's keys and values need: see KvPlace in launch.ts.
struct Kv {
  uint8_t *k, *v;
  int64_t page_bytes;
  const int *start, *first, *ids;  // the group's page table
  int type;                        // 0 f32, 1 f16, 2 bf16
};
constexpr int page_tokens = 64;

__device__ __forceinline__ void put_kv(uint8_t* p, int type, int64_t i, float x) {
  if (type == 0) reinterpret_cast<float*>(p)[i] = x;
  else if (type == 1) reinterpret_cast<__half*>(p)[i] = __float2half_rn(x);
  else store(reinterpret_cast<bf16*>(p) + i, x);
}

__device__ __forceinline__ int64_t page_of(const Kv& kv, int sequence, int position) {
  return kv.page_bytes * kv.ids[kv.start[sequence] + position / page_tokens - kv.first[sequence]];
}

}  // namespace

// sum = alpha·a + beta·b where b is there (else the row is a), y = sum / rms(sum) · weight. One block a group of d values.
extern "C" __global__ void mr_norm(const StepInfo* info, int rows, const void* a, int a_wide, const void* b, int b_wide,
                                   void* sum, int sum_wide, void* y, int y_wide, const float* weight, int d, int groups,
                                   float alpha, float beta, float eps) {
  __shared__ float scratch[32];
  wait();
  release();
  if (int(blockIdx.x) >= count(info, rows) * groups) return;
  const int64_t at = int64_t(blockIdx.x) * d;
  float squares = 0;
  const bool fours = d % 4 == 0;
  if (fours) {
    for (int i = 4 * threadIdx.x; i < d; i += 4 * blockDim.x) {
      float4 x = get4(a, a_wide, at + i);
      if (b) {
        const float4 z = get4(b, b_wide, at + i);
        x = make_float4(alpha * x.x + beta * z.x, alpha * x.y + beta * z.y, alpha * x.z + beta * z.z,
                        alpha * x.w + beta * z.w);
        put4(sum, sum_wide, at + i, x);
      }
      squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
    }
  } else {
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
      float x = get(a, a_wide, at + i);
      if (b) {
        x = alpha * x + beta * get(b, b_wide, at + i);
        put(sum, sum_wide, at + i, x);
      }
      squares += x * x;
    }
  }
  const float scale = rsqrtf(block_sum(squares, scratch) / d + eps);
  const void* from = b ? sum : a;
  const int wide = b ? sum_wide : a_wide;
  if (fours) {
    for (int i = 4 * threadIdx.x; i < d; i += 4 * blockDim.x) {
      const float4 x = get4(from, wide, at + i), w = load4(weight + i);
      put4(y, y_wide, at + i, make_float4(x.x * scale * w.x, x.y * scale * w.y, x.z * scale * w.z, x.w * scale * w.w));
    }
  } else {
    for (int i = threadIdx.x; i < d; i += blockDim.x) put(y, y_wide, at + i, get(from, wide, at + i) * scale * weight[i]);
  }
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

namespace {

// A warp turns one head: values from `x` (wide or not), normed where `norm` is there, to `to(i, value)`.
template <class To>
__device__ __forceinline__ void turn_head(const void* x, int wide, int64_t at, int d, int rotary, int interleaved,
                                          const float2* turns, const float* norm, float eps, To to) {
  const int lane = threadIdx.x & 31, half = rotary / 2;
  float scale = 1;
  if (norm) {
    float squares = 0;
    for (int i = lane; i < d; i += 32) {
      const float z = get(x, wide, at + i);
      squares += z * z;
    }
    scale = rsqrtf(warp_sum(squares) / d + eps);
  }
  const auto value = [&](int i) {
    const float z = get(x, wide, at + i);
    return norm ? z * scale * norm[i] : z;
  };
  for (int i = lane; i < half; i += 32) {
    const int first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + half;
    const float a = value(first), b = value(second);
    const float2 turn = turns[i];
    to(first, a * turn.x - b * turn.y);
    to(second, b * turn.x + a * turn.y);
  }
  for (int i = rotary + lane; i < d; i += 32) to(i, value(i));
}

}  // namespace

extern "C" __global__ void mr_rope(const StepInfo* info, const void* x, int x_wide, void* y, int y_wide, int heads, int d,
                                   int rotary, int interleaved, const float2* table) {
  wait();
  release();
  const int t = blockIdx.x, h = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
  if (t >= info->tokens || h >= heads) return;
  const int64_t at = (int64_t(t) * heads + h) * d;
  turn_head(x, x_wide, at, d, rotary, interleaved, table + int64_t(t) * (rotary / 2), nullptr, 0.0f,
            [&](int i, float z) { put(y, y_wide, at + i, z); });
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

// qkvRopeCache: a warp a head of q, k or v.
extern "C" __global__ void mr_qkv(const StepInfo* info, const int* positions, const int* sequences, const void* qkv,
                                  int wide, void* q, int q_wide, int heads, int kv_heads, int d, int v_d, int rotary,
                                  int interleaved, const float2* table, const float* q_norm, const float* k_norm, float eps,
                                  uint8_t* kp, uint8_t* vp, int64_t page_bytes, const int* start, const int* first,
                                  const int* ids, int type) {
  wait();
  release();
  const int t = blockIdx.x, h = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x & 31;
  if (t >= info->tokens || h >= heads + 2 * kv_heads) return;
  const int64_t width = int64_t(heads + kv_heads) * d + int64_t(kv_heads) * v_d, row = t * width;
  const float2* turns = table + int64_t(t) * (rotary / 2);
  if (h < heads) {
    const int64_t at = (int64_t(t) * heads + h) * d;
    turn_head(qkv, wide, row + int64_t(h) * d, d, rotary, interleaved, turns, q_norm, eps,
              [&](int i, float z) { put(q, q_wide, at + i, z); });
    return;
  }
  const Kv kv{kp, vp, page_bytes, start, first, ids, type};
  const int position = positions[t], within = position % page_tokens;
  const int64_t page = page_of(kv, sequences[t], position);
  if (h < heads + kv_heads) {
    const int64_t to = (int64_t(h - heads) * page_tokens + within) * d;
    turn_head(qkv, wide, row + int64_t(h) * d, d, rotary, interleaved, turns, k_norm, eps,
              [&](int i, float z) { put_kv(kv.k + page, type, to + i, z); });
    return;
  }
  const int g = h - heads - kv_heads;
  const int64_t from = row + int64_t(heads + kv_heads) * d + int64_t(g) * v_d, to = (int64_t(g) * page_tokens + within) * v_d;
  for (int i = lane; i < v_d; i += 32) put_kv(kv.v + page, type, to + i, get(qkv, wide, from + i));
}
