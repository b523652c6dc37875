// Owns: y = x · Wᵀ for one token, every format: what a single user waits for. linear_1.cu is its instance. The chain of a
// step's kernels decides here, so all that does not depend on the launch before is done before wait(): each warp's ring of
// weights is on its way (by the copy engine on Hopper), the norm's weight and the bias are in registers.
//
//   block = 8 warps = 1 row of 8 slices of k, 16 rows of W; gated: 2 rows of 4 slices, 16 gates and their 16 ups
//   a warp: units of its slice through `depth` places of `per` units each; x straight into registers, 256 values at a time,
//   eight a lane: chunk j of 32 values is column j of the B operand, so that one accumulator takes all chunks
//
// A norm between two products is no launch of its own: the product that ends the residual row leaves row · weight in bf16 and
// the sum of squares of each block's rows; the one that reads it multiplies its sums by 1 / rms.
#pragma once
#include "linear_stream.cuh"

namespace mr {

struct OneTask {
  const bf16* x;
  int cols;
  void* y;
  int y_f32, y_width;
  const float* bias;
  const int* count;
  int epilogue, activation;
  int rows;  // gated: of a half
  Segment segments[4];
  int num_segments;
  // x is row · weight of a norm: the sums of the row's squares, to be added up; null: x as it is.
  const float* squares;
  int num_squares;
  float eps;
  // What the next norm leaves of y; null: nothing.
  const float* next_weight;
  bf16* next;
  float* next_squares;
};

namespace one {

constexpr int most_depth = 8;

__device__ __forceinline__ uint32_t address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
__device__ __forceinline__ void barrier_init(uint64_t* b) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(b)) : "memory");
#else
  asm volatile("mbarrier.init.shared.b64 [%0], 32;" ::"r"(address(b)) : "memory");
#endif
}
// `bytes` (a multiple of 16) by the warp; the barrier's phase ends when they are there.
__device__ __forceinline__ void fetch(uint8_t* to, const uint8_t* from, int bytes, uint64_t* barrier, int lane) {
#if __CUDA_ARCH__ >= 900
  if (lane > 0) return;
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(barrier)), "r"(bytes) : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(address(to)), "l"(from),
               "r"(bytes), "r"(address(barrier))
               : "memory");
#else
  for (int at = lane * 16; at < bytes; at += 512) copy16(to + at, from + at);
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(address(barrier)) : "memory");
#endif
}
__device__ __forceinline__ void arrival(uint64_t* barrier, uint32_t parity) {
  uint32_t done = 0;
  while (!done) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(address(barrier)), "r"(parity)
                 : "memory");
#elif __CUDA_ARCH__ >= 800
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(address(barrier)), "r"(parity)
                 : "memory");
#endif
  }
}

// A lane's eight values of the 256 from k on: of chunk lane / 4, in the order of the format's fragments.
template <int S>
__device__ __forceinline__ uint4 load_values(const bf16* x, int k, int lane, int cols) {
  const int g = lane >> 2, t = lane & 3;
  if constexpr (S == Q6_K) {
    const uint2 a = __ldcg(reinterpret_cast<const uint2*>(x + k + 32 * g + 4 * t)), b = __ldcg(reinterpret_cast<const uint2*>(x + k + 32 * g + 16 + 4 * t));
    return make_uint4(a.x, a.y, b.x, b.y);
  } else {
    const int at = k + 8 * lane;
    if (Format<S>::floating && (cols & 7) != 0) return load_ragged(x, at, cols);
    return at < cols ? __ldcg(reinterpret_cast<const uint4*>(x + at)) : make_uint4(0, 0, 0, 0);
  }
}

// The pair, or zeros: a product, which the integer pipe has no part in.
__device__ __forceinline__ uint32_t masked(uint32_t pair, uint32_t mask) {
  const __nv_bfloat162 out = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&pair), *reinterpret_cast<const __nv_bfloat162*>(&mask));
  return *reinterpret_cast<const uint32_t*>(&out);
}

// A super-block: sub-block j is column j, so that a lane ends with the sums of sub-blocks it has the scales of.
template <int S>
__device__ __forceinline__ void super_block(const uint8_t* unit, const uint4& b, const uint32_t (&masks)[8], int lane, float2& acc) {
  using L = Format<S>;
  const int g = lane >> 2, t = lane & 3;
  float first[4] = {0.0f, 0.0f, 0.0f, 0.0f}, second[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int j = 0; j < 8; j++) {
    Fragments<S> f;
    f.load(unit, lane, j);
    mma(first, f.a[0][0], masked(b.x, masks[j]), masked(b.y, masks[j]));
    mma(second, f.a[0][1], masked(b.z, masks[j]), masked(b.w, masks[j]));
  }
  if constexpr (S == Q6_K) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = g + 8 * half;
      const float d = f16_value(*reinterpret_cast<const uint16_t*>(unit + L::head_at + 256 + row * 2));
      const uint32_t s = *reinterpret_cast<const uint32_t*>(unit + L::head_at + row * 16 + 4 * t);
      const auto scale = [&](int i) { return static_cast<float>(static_cast<int8_t>(s >> (8 * i))); };
      const float sum = scale(0) * first[2 * half] + scale(1) * second[2 * half] + scale(2) * first[2 * half + 1] + scale(3) * second[2 * half + 1];
      (half ? acc.y : acc.x) += d * sum;
    }
  } else {
    const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    mma(sums, ones, b.x, b.y);
    mma(sums, ones, b.z, b.w);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint4 h = *reinterpret_cast<const uint4*>(unit + L::head_at + (g + 8 * half) * 16);
      const float d = f16_value(h.x & 0xffff), dmin = f16_value(h.x >> 16);
      float dots = 0.0f, mins = 0.0f;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int j = 2 * t + i;
        const float scale = static_cast<float>((h.y >> (4 * j) & 15) | (h.w >> (2 * j) & 3) << 4);
        const float min = static_cast<float>((h.z >> (4 * j) & 15) | (h.w >> (16 + 2 * j) & 3) << 4);
        dots += scale * (first[2 * half + i] + second[2 * half + i] - 128.0f * sums[i]), mins += min * sums[i];
      }
      (half ? acc.y : acc.x) += d * dots - dmin * mins;
    }
  }
}

// A unit of up to 64 values; masks: its chunks'.
template <int S>
__device__ __forceinline__ void small_unit(const uint8_t* unit, const uint4& values, const uint32_t* masks, int lane, float (&sums)[4]) {
  using L = Format<S>;
  const int g = lane >> 2;
#pragma unroll
  for (int chunk = 0; chunk < L::k / 32; chunk++) {
    Fragments<S> f[1];
    f[0].load(unit, lane, chunk);
    float2 low[1] = {}, high[1] = {};
    if constexpr (!L::floating) {
      const auto scale = [&](int r, int at) { return f16_value(*reinterpret_cast<const uint16_t*>(unit + L::head_at + at + r * 4 + chunk * 2)); };
      low[0].x = scale(g, 0), high[0].x = scale(g + 8, 0);
      if (L::has_min) low[0].y = scale(g, 64) - 128.0f * low[0].x, high[0].y = scale(g + 8, 64) - 128.0f * high[0].x;
    }
    const uint32_t mask = masks[chunk];
    const uint4 b = make_uint4(masked(values.x, mask), masked(values.y, mask), masked(values.z, mask), masked(values.w, mask));
    products<S, 1, 1>(f, low, high, b, reinterpret_cast<float(&)[1][1][4]>(sums), 0);
  }
}

// Units [u0, u1) of a tile. begun() is called after wait() and before x is used; the sums of rows g and g + 8.
template <int S, class Begun>
__device__ __forceinline__ float2 slice(const uint8_t* tile, int u0, int u1, uint8_t* ring, int ring_bytes, uint64_t* barriers, const OneTask& task,
                                        Begun&& begun) {
  using L = Format<S>;
  // The copy engine wants pieces of 4 KB; `held`: units whose x a warp holds.
  constexpr int held = 256 / L::k, per = L::bytes <= 1152 ? 4 : L::bytes <= 2304 ? 2 : 1, group = held > per ? held : per, place = per * L::bytes;
  const int lane = threadIdx.x & 31, depth = min(ring_bytes / place, most_depth);
  const auto bring = [&](int from, int slot) {
    if (from < u1) fetch(ring + slot * place, tile + static_cast<int64_t>(from) * L::bytes, min(per, u1 - from) * L::bytes, barriers + slot, lane);
  };
  const int count = *task.count;  // there before the step's first launch
  for (int i = 0; i < depth; i++) bring(u0 + i * per, i);
  wait();
  uint4 values = load_values<S>(task.x, u0 * L::k, lane, task.cols);
  begun();
  if (count <= 0) u1 = min(u1, u0 + depth * per);  // only what is on its way

  uint32_t masks[8];  // of a chunk's column: 1 and 1, as bf16
#pragma unroll
  for (int j = 0; j < 8; j++) masks[j] = lane >> 2 == j ? 0x3f803f80u : 0;
  float2 acc = make_float2(0.0f, 0.0f);
  float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  int slot = 0, parity = 0;
  uint4 now = values;
  for (int base = u0; base < u1; base += group) {
#pragma unroll
    for (int i = 0; i < group; i++) {
      const int u = base + i;
      if (u >= u1) break;
      if (i % held == 0) {
        now = values;
        if (u + held < u1) values = load_values<S>(task.x, (u + held) * L::k, lane, task.cols);
      }
      if (i % per == 0) arrival(barriers + slot, parity);
      const uint8_t* unit = ring + slot * place + i % per * L::bytes;
      if constexpr (L::k == 256) super_block<S>(unit, now, masks, lane, acc);
      else small_unit<S>(unit, now, masks + i % held * (L::k / 32), lane, sums);
      if (i % per == per - 1 || u + 1 == u1) {
        __syncwarp();
        bring(u - i % per + depth * per, slot);
        if (++slot == depth) slot = 0, parity ^= 1;
      }
    }
  }
  if constexpr (L::k < 256) acc = make_float2(sums[0] + sums[1], sums[2] + sums[3]);
#pragma unroll
  for (int o = 1; o < 4; o *= 2) acc.x += __shfl_xor_sync(0xffffffffu, acc.x, o), acc.y += __shfl_xor_sync(0xffffffffu, acc.y, o);
  return acc;
}

}  // namespace one

__device__ __forceinline__ void linear_one(const OneTask& task) {
  extern __shared__ __align__(128) uint8_t rings[];
  __shared__ float sums[8][16];
  __shared__ float parts[8];
  __shared__ uint64_t barriers[8 * one::most_depth];
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const bool gated = task.epilogue == gated_y;
  const int wk = gated ? 4 : 8, my_wk = warp % wk;
  const bool up = gated && warp >= 4;
  Tiles tiles{task.segments[0], static_cast<int>(blockIdx.x), 0};
  if (!gated) tiles = block_tiles(task, blockIdx.x, 1);
  else if (up && task.num_segments == 2) tiles.segment = task.segments[1];
  const int tile = tiles.tile0 + (up && task.num_segments == 1 ? task.rows / 16 : 0);
  const int row = tiles.tile0 * 16 + threadIdx.x, column = tiles.column + row;  // of the threads that write
  const bool writes = threadIdx.x < 16 && row < (gated ? task.rows : tiles.segment.rows);

  uint64_t* mine = barriers + warp * one::most_depth;
  if (lane < one::most_depth) one::barrier_init(mine + lane);
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  __syncwarp();
  release();
  const float bias = writes && task.bias ? task.bias[column] : 0.0f, up_bias = writes && task.bias && gated ? task.bias[task.rows + column] : 0.0f;
  const float next_weight = writes && task.next ? task.next_weight[column] : 0.0f;
  float before = 0.0f;
  uint32_t ring_bytes;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(ring_bytes));
  ring_bytes = ring_bytes / 8 & ~127u;
  for_storage(tiles.segment.type, [&]<int S>() {
    using L = Format<S>;
    const int units = (task.cols + L::k - 1) / L::k;
    const float2 d = one::slice<S>(tiles.segment.data + static_cast<int64_t>(tile) * units * L::bytes, units * my_wk / wk, units * (my_wk + 1) / wk,
                                   rings + warp * ring_bytes, ring_bytes, mine, task, [&] {
      if (writes && task.epilogue == add_y) before = __ldcg(static_cast<const float*>(task.y) + column);
      if (task.squares == nullptr) return;
      float square = 0.0f;
      for (int i = threadIdx.x; i < task.num_squares; i += 256) square += __ldcg(task.squares + i);
      square = warp_sum(square);
      if (lane == 0) parts[warp] = square;
    });
    if ((lane & 3) == 0) sums[warp][lane >> 2] = d.x, sums[warp][8 + (lane >> 2)] = d.y;
  });
  __syncthreads();
  if (warp > 0 || *task.count <= 0) return;
  const auto total = [&](int first) {
    float sum = sums[first][lane & 15];
    for (int s = 1; s < wk; s++) sum += sums[first + s][lane & 15];
    return sum;
  };
  float value = total(0), other = gated ? total(4) : 0.0f, square = 0.0f;
  if (task.squares) {
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) all += parts[i];
    const float scale = rsqrtf(all / task.cols + task.eps);
    value *= scale, other *= scale;
  }
  value += bias;
  if (gated) value = activate(task.activation, value) * (other + up_bias);
  value += before;
  if (writes) {
    if (task.y_f32) static_cast<float*>(task.y)[column] = value;
    else static_cast<bf16*>(task.y)[column] = __float2bfloat16_rn(value);
    if (task.next) task.next[column] = __float2bfloat16_rn(value * next_weight), square = value * value;
  }
  if (task.next) {
    square = warp_sum(square);
    if (lane == 0) task.next_squares[blockIdx.x] = square;
  }
}

}  // namespace mr

// grid: tiles of 16 rows (gated: of the gate's); shared memory: eight rings of 6720 bytes or more.
#define MR_LINEAR_ONE(NAME, BLOCKS)                                                                                         \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS) NAME(                                                          \
      const mr::bf16* x, int cols, void* y, int y_f32, int y_width, const float* bias, const int* count, int epilogue,     \
      int activation, int rows, const float* squares, int num_squares, float eps, const float* next_weight,                \
      mr::bf16* next, float* next_squares, int num_segments, const uint8_t* d0, int t0, int n0, const uint8_t* d1, int t1, \
      int n1, const uint8_t* d2, int t2, int n2, const uint8_t* d3, int t3, int n3) {                                      \
    mr::linear_one({x, cols, y, y_f32, y_width, bias, count, epilogue, activation, rows,                                   \
                    {{d0, t0, n0}, {d1, t1, n1}, {d2, t2, n2}, {d3, t3, n3}}, num_segments, squares, num_squares, eps,     \
                    next_weight, next, next_squares});                                                                     \
  }
