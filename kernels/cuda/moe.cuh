// Owns: one product of a mixture of experts: linear_stream.cuh's blocks, each with an expert's matrix and up to T of the
// assignments that moe.cu has sorted to it. A row's bits depend neither on its place nor on who shares its expert.
#pragma once
#include "linear_stream.cuh"

namespace mr {

// E experts' matrices, `apart` bytes from each other.
struct Stack {
  const uint8_t* data;
  int64_t apart;
  int type;
};

// How a step's assignments are dealt: see mr_moe_sort.
struct Dealt {
  const int *counts, *start, *items;
};

// gated: y = f(x · firstᵀ) · (x · secondᵀ) of `rows` columns; else y = x · firstᵀ. x and y are rows by place. grid: (groups
// of rows, 1, items at most); shared memory as for linear_block.
template <int T>
__device__ void moe_block(const bf16* x, int cols, void* y, int y_f32, int rows, bool gated, int activation, const Stack& first,
                          const Stack& second, const Dealt& dealt, int splits, int wk) {
  wait();
  if (int(blockIdx.z) >= dealt.items[0]) return;
  const int e = dealt.items[1 + 2 * blockIdx.z], pass = dealt.items[2 + 2 * blockIdx.z];
  const int64_t place = dealt.start[e], at = place * rows;
  LinearTask task{};
  task.x = x + place * cols, task.cols = cols;
  task.y = y_f32 ? static_cast<void*>(static_cast<float*>(y) + at) : static_cast<void*>(static_cast<bf16*>(y) + at);
  task.y_f32 = y_f32, task.y_width = rows;
  task.count = dealt.counts + e;
  task.epilogue = gated ? gated_y : store_y, task.activation = activation, task.rows = gated ? rows : 0;
  task.segments[0] = {first.data + e * first.apart, first.type, rows};
  task.segments[1] = {gated ? second.data + e * second.apart : nullptr, second.type, gated ? rows : 0};
  task.num_segments = gated ? 2 : 1;
  task.splits = splits, task.wk = wk, task.tiles = 1;
  linear_block<T>(task, pass);
}

}  // namespace mr

#define MR_MOE(NAME, T, BLOCKS)                                                                                           \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS) NAME(                                                         \
      const mr::bf16* x, int cols, void* y, int y_f32, int rows, int gated, int activation, const uint8_t* first,         \
      int64_t first_apart, int first_type, const uint8_t* second, int64_t second_apart, int second_type,                  \
      const int* counts, const int* start, const int* items, int splits, int wk) {                                        \
    mr::moe_block<T>(x, cols, y, y_f32, rows, gated != 0, activation, {first, first_apart, first_type},                   \
                     {second, second_apart, second_type}, {counts, start, items}, splits, wk);                            \
  }
