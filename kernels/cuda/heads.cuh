// Owns: what is done to a head of queries, keys or values on its way to attention: its norm, its turning by position (rope),
// and where keys and values lie in their pages. Rows of activations are bf16 or f32, said by a flag; arithmetic is f32.
#pragma once
#include "common.cuh"

namespace mr {

__device__ __forceinline__ float get(const void* p, int wide, int64_t i) {
  return wide ? static_cast<const float*>(p)[i] : load(static_cast<const bf16*>(p) + i);
}
__device__ __forceinline__ void put(void* p, int wide, int64_t i, float x) {
  if (wide) static_cast<float*>(p)[i] = x;
  else store(static_cast<bf16*>(p) + i, x);
}

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

// What turns a head of d values: the first `rotary` by half as many pairs of cosine and sine.
struct Turn {
  int d, rotary, interleaved;
  const float2* pairs;
};

constexpr int head_lanes = 16;

// head_lanes lanes turn one head: d values from x on, normed where `norm` is there, to `to(i, value)`. Four pairs' loads are on
// their way together: nothing between them may wait for one.
template <class X, class To>
__device__ __forceinline__ void turn_head(const X* x, const Turn& turn, const float* norm, float eps, To to) {
  const int lane = threadIdx.x % head_lanes, half = turn.rotary / 2;
  float scale = 1;
  if (norm) {
    float squares = 0;
#pragma unroll 8
    for (int i = lane; i < turn.d; i += head_lanes) {
      const float z = load(x + i);
      squares += z * z;
    }
    const unsigned mates = 0xffffu << (threadIdx.x & 16);
#pragma unroll
    for (int o = head_lanes / 2; o > 0; o >>= 1) squares += __shfl_xor_sync(mates, squares, o);
    scale = rsqrtf(squares / turn.d + eps);
  }
  const int along = turn.interleaved ? 2 : 1, apart = turn.interleaved ? 1 : half;
  for (int i0 = lane; i0 < half; i0 += 4 * head_lanes) {
    float a[4], b[4];
    float2 by[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int i = min(i0 + j * head_lanes, half - 1);
      a[j] = load(x + i * along), b[j] = load(x + i * along + apart), by[j] = turn.pairs[i];
    }
    if (norm) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int i = min(i0 + j * head_lanes, half - 1);
        a[j] = a[j] * scale * norm[i * along], b[j] = b[j] * scale * norm[i * along + apart];
      }
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int i = i0 + j * head_lanes;
      if (i >= half) continue;
      to(i * along, a[j] * by[j].x - b[j] * by[j].y);
      to(i * along + apart, b[j] * by[j].x + a[j] * by[j].y);
    }
  }
  for (int i = turn.rotary + lane; i < turn.d; i += head_lanes) to(i, norm ? load(x + i) * scale * norm[i] : load(x + i));
}

// x: f32 where `wide`, else bf16.
template <class To>
__device__ __forceinline__ void turn_head(const void* x, int wide, int64_t at, const Turn& turn, const float* norm, float eps, To to) {
  if (wide) turn_head(static_cast<const float*>(x) + at, turn, norm, eps, to);
  else turn_head(static_cast<const bf16*>(x) + at, turn, norm, eps, to);
}

}  // namespace mr
