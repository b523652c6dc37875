// Owns: what the products on wgmma share: their parameters, which rows of W (BF16's layout) a block has and which columns of y
// these are, and how sums become y.
#pragma once
#include "hopper.cuh"
#include "linear_layout.cuh"

namespace mr {

constexpr int most_stages = 24;  // of linear_few.cu

struct Product {
  int cols;
  void* y;
  int y_f32, y_width;
  const float* bias;
  const int* count;
  int epilogue, activation, rows;  // as linear_stream.cuh; rows: gated, of a half
  int segment_rows[4], num_segments;
};

struct Maps {
  const TensorMap *x, *w0, *w1, *w2, *w3;
};

#ifdef MR_HOPPER
__device__ __forceinline__ const TensorMap* segment_map(const Maps& maps, int s) {
  return s == 0 ? maps.w0 : s == 1 ? maps.w1 : s == 2 ? maps.w2 : maps.w3;
}

// A block's rows of W: 16-row tiles of a segment from `tile` on, columns of y from `column` up to limit. Gated: half of them,
// the tiles of up lie in segment `up_segment` from `up_tile` on. Blocks do not go across segments.
struct RowBlock {
  int segment, tile, up_segment, up_tile, column, limit;
};
__device__ __forceinline__ int tiles_of(int rows) { return (rows + 15) / 16; }

template <int R>
__device__ __forceinline__ RowBlock row_block(const Product& task, int block) {
  if (task.epilogue == 2) {
    const int tile = block * (R / 32), apart = task.num_segments == 2;
    return {0, tile, apart, apart ? tile : task.rows / 16 + tile, tile * 16, task.rows};
  }
  RowBlock out{};
  int column = 0;
#pragma unroll
  for (int s = 0; s < 4; s++) {
    if (s < task.num_segments && block >= 0) {
      const int tile = block * (R / 16);
      out = {s, tile, s, tile + R / 32, column + tile * 16, column + task.segment_rows[s]};
      block -= (tiles_of(task.segment_rows[s]) + R / 16 - 1) / (R / 16), column += task.segment_rows[s];
    }
  }
  return out;
}
template <int R>
__device__ __forceinline__ int row_blocks(const Product& task) {
  if (task.epilogue == 2) return (tiles_of(task.rows) + R / 32 - 1) / (R / 32);
  int blocks = 0;
#pragma unroll
  for (int s = 0; s < 4; s++)
    if (s < task.num_segments) blocks += (tiles_of(task.segment_rows[s]) + R / 16 - 1) / (R / 16);
  return blocks;
}

__device__ __forceinline__ float gated_value(const Product& task, int column, float gate, float up) {
  if (task.bias && column < task.rows) gate += task.bias[column], up += task.bias[task.rows + column];
  return activate(task.activation, gate) * up;
}

// Four columns of y, or as many as are there; their bias is added unless they are gated.
__device__ __forceinline__ void store_four(const Product& task, int token, int column, int limit, float (&v)[4]) {
  const int there = limit - column;
  if (task.bias && task.epilogue != 2) {
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < there) v[i] += task.bias[column + i];
  }
  const int64_t at = static_cast<int64_t>(token) * task.y_width + column;
  if (task.y_f32) {
    float* y = static_cast<float*>(task.y) + at;
    if (there >= 4 && !(reinterpret_cast<uintptr_t>(y) & 15)) {
      const float4 out = make_float4(v[0], v[1], v[2], v[3]);
      if (task.epilogue == 1) add4(y, out);
      else store4(y, out);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (i < there) y[i] = task.epilogue == 1 ? y[i] + v[i] : v[i];
    }
  } else {
    bf16* y = static_cast<bf16*>(task.y) + at;
    if (there >= 4 && !(reinterpret_cast<uintptr_t>(y) & 7)) store4(y, make_float4(v[0], v[1], v[2], v[3]));
    else {
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (i < there) y[i] = __float2bfloat16_rn(v[i]);
    }
  }
}

__device__ __forceinline__ float4 load_cluster(uint32_t at, int rank) {
  float4 v;
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %4, %5;\nld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n}\n"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(at), "r"(rank)
      : "memory");
  return v;
}
// Each block of a cluster of `splits` adds up and stores its share of the outputs, the blocks' sums ([token][R + 8]) in their order:
// 256 threads.
template <int R>
__device__ __forceinline__ void finish(const Product& task, int splits, int token0, int thread, const RowBlock& rows, const uint8_t* sums, int count) {
  const bool gated = task.epilogue == 2;
  const int rank = blockIdx.x % splits, fours = gated ? R / 8 : R / 4;
  for (int i = rank * 256 + thread; i < count * fours; i += splits * 256) {
    const int token = i / fours, c = i % fours * 4, column = rows.column + c;
    if (column >= rows.limit) continue;
    const float* from = reinterpret_cast<const float*>(sums) + token * (R + 8) + c;
    const auto sum = [&](float (&to)[4], const float* at) {
      float4 parts[8];
#pragma unroll
      for (int s = 0; s < 8; s++)
        if (s < splits) parts[s] = splits == 1 ? load4(at) : load_cluster(shared_address(at), s);
      to[0] = to[1] = to[2] = to[3] = 0.0f;
#pragma unroll
      for (int s = 0; s < 8; s++)
        if (s < splits) to[0] += parts[s].x, to[1] += parts[s].y, to[2] += parts[s].z, to[3] += parts[s].w;
    };
    float v[4], up[4];
    sum(v, from);
    if (gated) {
      sum(up, from + R / 2);
#pragma unroll
      for (int j = 0; j < 4; j++) v[j] = gated_value(task, column + j, v[j], up[j]);
    }
    store_four(task, token0 + token, column, rows.limit, v);
  }
}
#endif

}  // namespace mr

// x: boxes of 64 values × tokens. w0 … w3: the segments' tiles, as rows of 8-byte words, 256 of them to 16 rows × 64 values.
#define MR_PRODUCT_PARAMETERS                                                                                          \
  const __grid_constant__ mr::TensorMap x, const __grid_constant__ mr::TensorMap w0,                                   \
      const __grid_constant__ mr::TensorMap w1, const __grid_constant__ mr::TensorMap w2,                              \
      const __grid_constant__ mr::TensorMap w3, int cols, void *y, int y_f32, int y_width, const float *bias,          \
      const int *count, int epilogue, int activation, int rows, int num_segments, int n0, int n1, int n2, int n3
#define MR_PRODUCT                                                                                                     \
  { cols, y, y_f32, y_width, bias, count, epilogue, activation, rows, {n0, n1, n2, n3}, num_segments }
#define MR_MAPS \
  { &x, &w0, &w1, &w2, &w3 }
