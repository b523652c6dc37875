// Owns: attention of any head size and any type of cache, in f32, on plain cores: what the tensor core kernels have no
// form for. A block is one token and one query head; its positions come in blocks of 64, in order, so that a row's bits
// depend on nothing but the row. Head sizes up to 1024.
#pragma once
#include "attention.cuh"

namespace mr {
namespace attn {

constexpr int any_threads = 128;

template <class T>
__device__ inline float widen(T x) {
  return float(x);
}

// q in f32 [head_dim], then weights [64], maxima [4].
__host__ __device__ constexpr int any_shared_bytes(int head_dim) { return 4 * (head_dim + part_tokens + 4); }

template <class T>
__device__ void attend_any(const Args& a, int head_dim, int v_head_dim, const StepInfo* step, const int* token_sequence,
                           const int* token_starts, const int* kv_starts, const int* page_starts,
                           const int* page_firsts) {
  extern __shared__ __align__(1024) uint8_t shared[];
  float* q = reinterpret_cast<float*>(shared);
  float *weights = q + head_dim, *maxima = weights + part_tokens;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;

  wait();
  release();
  const int token = blockIdx.x, head = blockIdx.y, kv_head = head / (a.heads / a.kv_heads);
  if (token >= step->tokens) return;
  const int s = token_sequence[token];
  const int n = token_starts[s + 1] - token_starts[s];
  const Reach reach(token - token_starts[s], 1, n, kv_starts[s], a);
  const int page_base = page_starts[s] - page_firsts[s];
  const Scale scale(a.scale, a.softcap);
  for (int i = threadIdx.x; i < head_dim; i += any_threads)
    q[i] = __bfloat162float(a.q[(int64_t(token) * a.heads + head) * head_dim + i]);

  constexpr int most_columns = 8;  // of a thread
  float m = nothing, l = 0, o[most_columns] = {};
  for (int part = reach.first / part_tokens; part <= reach.last / part_tokens; part++) {
    const int64_t page = int64_t(a.page_ids[page_base + part]) * a.page_bytes;
    const T* keys = reinterpret_cast<const T*>(a.k + page) + int64_t(kv_head) * part_tokens * head_dim;
    const T* values = reinterpret_cast<const T*>(a.v + page) + int64_t(kv_head) * part_tokens * v_head_dim;
    const int begin = max(reach.first - part * part_tokens, 0), end = min(reach.last - part * part_tokens + 1, part_tokens);
    __syncthreads();  // q is there; the part before is done with its weights
    float best = nothing;
    for (int j = warp; j < part_tokens; j += any_threads / 32) {
      float x = 0;
      if (j >= begin && j < end)
        for (int i = lane; i < head_dim; i += 32) x = fmaf(q[i], widen(keys[j * head_dim + i]), x);
      for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(~0u, x, d);
      x = (a.softcap > 0 ? a.softcap * tanhf(x * a.scale / a.softcap) : x * a.scale) * log2_e;
      if (j < begin || j >= end) x = nothing;
      if (lane == 0) weights[j] = x;
      best = fmaxf(best, x);
    }
    if (lane == 0) maxima[warp] = best;
    __syncthreads();
    const float now = fmaxf(m, fmaxf(fmaxf(maxima[0], maxima[1]), fmaxf(maxima[2], maxima[3])));
    const float keep = exp2f(m - now);
    m = now;
    l *= keep;
#pragma unroll
    for (int i = 0; i < most_columns; i++) o[i] *= keep;
    for (int j = begin; j < end; j++) {
      const float weight = exp2f(weights[j] - now);
      l += weight;
#pragma unroll
      for (int i = 0; i < most_columns; i++) {
        const int column = i * any_threads + threadIdx.x;
        if (column < v_head_dim) o[i] = fmaf(weight, widen(values[j * v_head_dim + column]), o[i]);
      }
    }
  }
  const float by = finish(m, l, a.sinks, head);
#pragma unroll
  for (int i = 0; i < most_columns; i++) {
    const int column = i * any_threads + threadIdx.x;
    if (column < v_head_dim)
      a.y[(int64_t(token) * a.heads + head) * v_head_dim + column] = __float2bfloat16(o[i] * by);
  }
}

}  // namespace attn
}  // namespace mr
