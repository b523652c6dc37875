// Owns: y = x · Wᵀ for up to 64 tokens on Hopper, W packed. W streams as it lies; each warp of two warpgroups turns the codes of
// its 16 rows into bf16 fragments, which are wgmma's A operand, the tokens its B operand. A cluster of blocks cuts k among
// them, as in linear_few.cu.
//
//   shared memory: | W: stages of 8 tiles × 256 values | x: stages of tokens × 64 values, 128-byte swizzle | a table a warp |
//   A lane has eight neighbours of every 32 values where wgmma wants four pairs: mr_linear_turn lays x so that they meet.
//   Q4_K, Q5_K, Q6_K: scale · code (+ min) over the super-block's factor, rounded to bf16; the factor multiplies the f32 sum of
//   the super-block. The others: values rounded to bf16, as mr_linear_widen makes them.
//   gated: the first warpgroup has rows of gate, the second of up
#include "linear_wgmma.cuh"
#include "linear_widen.cuh"

namespace mr {

struct Packed : Product {
  const uint8_t* data[4];
  int type[4];
  // x_rows: tokens of a box; tile_slot: bytes of 16 rows × 256 values; stages of W and of x
  int x_rows, splits, tile_slot, w_stages, x_stages;
};

#ifdef MR_HOPPER
constexpr int packed_rows = 128, most_w = 8, most_x = 16, table_bytes = 16 * 72;

template <class T>
__device__ __forceinline__ T of_segment(const T (&v)[4], int s) {
  return s == 0 ? v[0] : s == 1 ? v[1] : s == 2 ? v[2] : v[3];
}
// Bytes of 16 rows × 256 values.
__device__ __forceinline__ int piece_bytes(int type) {
  int bytes = 0;
  for_storage(type, [&]<int S>() { bytes = Format<S>::bytes * (256 / Format<S>::k); });
  return bytes;
}

struct Rings {
  uint8_t *w, *x, *tables;
  uint64_t *w_full, *w_empty, *x_full, *x_empty;
};

// Eight lanes, each its tile. Weights need no wait.
__device__ __forceinline__ void load_weights(const Packed& task, const RowBlock& rows, const Rings& rings, int k0, int k1) {
  const int lane = threadIdx.x & 31, segment = lane < 4 ? rows.segment : rows.up_segment;
  const int bytes = piece_bytes(of_segment(task.type, segment));
  const int all = 4 * (bytes + piece_bytes(of_segment(task.type, rows.up_segment)));  // as lane 0 sees it
  // Tiles beyond the segment stand for its last one and are not stored.
  const int tile = min((lane < 4 ? rows.tile : rows.up_tile) + (lane & 3), tiles_of(of_segment(task.segment_rows, segment)) - 1);
  const uint8_t* from = of_segment(task.data, segment) + (static_cast<int64_t>(tile) * (task.cols / 256) + k0) * bytes;
  uint8_t* const to = rings.w + lane * task.tile_slot;
  int stage = 0, phase = 0;
  for (int k = 0; k < k1 - k0; k++, from += bytes) {
    if (k >= task.w_stages) barrier_wait(rings.w_empty + stage, phase ^ 1);
    if (lane == 0) barrier_expect(rings.w_full + stage, all);
    copy_bytes(to + stage * 8 * task.tile_slot, from, bytes, rings.w_full + stage);
    if (++stage == task.w_stages) stage = 0, phase ^= 1;
  }
}

// One thread.
__device__ __forceinline__ void load_tokens(const Packed& task, const TensorMap* x, const Rings& rings, int k0, int k1) {
  wait();
  int stage = 0, phase = 0;
  for (int i = 4 * k0; i < 4 * k1; i++) {
    if (i - 4 * k0 >= task.x_stages) barrier_wait(rings.x_empty + stage, phase ^ 1);
    barrier_expect(rings.x_full + stage, task.x_rows * 128);
    copy_box(rings.x + stage * task.x_rows * 128, x, i * 64, 0, rings.x_full + stage);
    if (++stage == task.x_stages) stage = 0, phase ^= 1;
  }
}

__device__ __forceinline__ uint32_t twice(float v) { return bf16_pair(v, v); }
__device__ __forceinline__ uint32_t fused(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// A super-block's factor: where it is zero, its values are those of the mins alone.
__device__ __forceinline__ float nonzero(float d) { return d == 0.0f ? 1.0f : d; }
template <int S>
__device__ __forceinline__ float factor(const uint8_t* unit, int row) {
  using L = Format<S>;
  const int at = S == Q6_K ? L::head_at + 256 + row * 2 : L::head_at + row * 16;
  return nonzero(f16_value(*reinterpret_cast<const uint16_t*>(unit + at)));
}

// Each row's scales and mins of a super-block over its factor as pairs of bf16, by the lanes together: rows of 72 bytes, 8 × (scale,
// −min), or 16 scales for Q6_K. Scales are small integers.
template <int S>
__device__ __forceinline__ void tabulate_pairs(const uint8_t* unit, uint8_t* table, int lane) {
  using L = Format<S>;
  const int row = lane >> 1, first = (lane & 1) * 4;
  uint2* to = reinterpret_cast<uint2*>(table + row * 72 + first * 8);
  if constexpr (S == Q6_K) {
    const bool none = f16_value(*reinterpret_cast<const uint16_t*>(unit + L::head_at + 256 + row * 2)) == 0.0f;
    const uint2 s = *reinterpret_cast<const uint2*>(unit + L::head_at + row * 16 + first * 2);
    const auto scale = [&](uint32_t w, int i) { return none ? 0u : twice(static_cast<float>(static_cast<int8_t>(w >> (8 * i)))); };
    to[0] = make_uint2(scale(s.x, 0), scale(s.x, 1)), to[1] = make_uint2(scale(s.x, 2), scale(s.x, 3));
    to[2] = make_uint2(scale(s.y, 0), scale(s.y, 1)), to[3] = make_uint2(scale(s.y, 2), scale(s.y, 3));
  } else {
    const uint4 h = *reinterpret_cast<const uint4*>(unit + L::head_at + row * 16);
    const float d = f16_value(h.x & 0xffff), by = -f16_value(h.x >> 16) / nonzero(d);
    const uint32_t scales = h.y >> (4 * first), mins = h.z >> (4 * first), top = h.w >> (2 * first);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float scale = static_cast<float>((scales >> (4 * i) & 15) | (top >> (2 * i) & 3) << 4);
      const float min = by * static_cast<float>((mins >> (4 * i) & 15) | (top >> (16 + 2 * i) & 3) << 4);
      to[i] = make_uint2(d == 0.0f ? 0u : twice(scale), twice(min));
    }
  }
}

// 32 values of rows g and g + 8 as wgmma's A operands of 16 each; unit: of the warp's tile.
template <int S>
__device__ __forceinline__ void unpack(const uint8_t* unit, const uint8_t* table, int chunk, int lane, uint32_t (&a)[2][4]) {
  using L = Format<S>;
  if constexpr (L::k == 256) {
    Fragments<S> f;
    f.load(unit, lane, chunk);
    const int g = lane >> 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint2 by = *reinterpret_cast<const uint2*>(table + (g + 8 * half) * 72 + chunk * 8);
#pragma unroll
      for (int p = 0; p < 4; p++) {
        const int reg = (p & 1) * 2 + half;
        const uint32_t pair = f.a[0][p >> 1][reg];
        a[p >> 1][reg] = S == Q6_K ? fused(pair, p < 2 ? by.x : by.y, 0x80008000u) : fused(centred(pair, 0x43004300u), by.x, by.y);
      }
    }
  } else {
    uint32_t out[2][4];
    widen_values<S>(unit, chunk, lane, out);
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int p = 0; p < 4; p++) a[p >> 1][(p & 1) * 2 + half] = out[half][p];
  }
}

template <int S, int N>
__device__ __forceinline__ void multiply_packed(const Packed& task, const Rings& rings, int k0, int k1, int warp, int lane, float (&sum)[N / 8][4]) {
  using L = Format<S>;
  constexpr bool super = L::k == 256;
  uint8_t* table = rings.tables + warp * table_bytes;
  uint32_t a[2][2][4];
  float part[super ? N / 8 : 1][4];
  int w_stage = 0, w_phase = 0, x_stage = 0, x_phase = 0, x_before = -1;
#pragma unroll 1
  for (int k = k0; k < k1; k++) {
    barrier_wait(rings.w_full + w_stage, w_phase);
    const uint8_t* tile = rings.w + (w_stage * 8 + warp) * task.tile_slot;
    float low = 0, high = 0;
    if constexpr (super) {
      tabulate_pairs<S>(tile, table, lane);
      low = factor<S>(tile, lane >> 2), high = factor<S>(tile, (lane >> 2) + 8);
      __syncwarp();
    }
#pragma unroll
    for (int piece = 0; piece < 4; piece++) {
      const uint8_t* unit = super ? tile : tile + piece * L::bytes;
      uint64_t b;
#pragma unroll
      for (int c = 0; c < 2; c++) {
        unpack<S>(unit, table, super ? piece * 2 + c : c, lane, a[c]);
        if (c == 0) {
          barrier_wait(rings.x_full + x_stage, x_phase);
          b = descriptor(rings.x + x_stage * task.x_rows * 128);
        }
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int s = 0; s < 2; s++) {
          if constexpr (super) wgmma<N>(part, a[c][s], b + 2 * (2 * c + s), piece + c + s > 0);
          else wgmma<N>(sum, a[c][s], b + 2 * (2 * c + s), 1);
        }
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
        // Until here the registers of the 32 values before were read.
#pragma unroll
        for (int s = 0; s < 2; s++) asm volatile("" ::"r"(a[c ^ 1][s][0]), "r"(a[c ^ 1][s][1]), "r"(a[c ^ 1][s][2]), "r"(a[c ^ 1][s][3]) : "memory");
        if (c == 0 && x_before >= 0 && lane == 0) barrier_arrive(rings.x_empty + x_before);
      }
      x_before = x_stage;
      if (++x_stage == task.x_stages) x_stage = 0, x_phase ^= 1;
    }
    if (lane == 0) barrier_arrive(rings.w_empty + w_stage);
    if (++w_stage == task.w_stages) w_stage = 0, w_phase ^= 1;
    if constexpr (super) {
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
      for (int j = 0; j < N / 8; j++) {
        sum[j][0] += low * part[j][0], sum[j][1] += low * part[j][1];
        sum[j][2] += high * part[j][2], sum[j][3] += high * part[j][3];
      }
    }
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

template <int N>
__device__ __forceinline__ void packed_block(const Packed& task, const TensorMap* x, const TensorMap* x_sixteens) {
  extern __shared__ uint8_t raw[];
  __shared__ uint64_t w_full[most_w], w_empty[most_w], x_full[most_x], x_empty[most_x];
  uint8_t* shared = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(raw) + 1023) & ~static_cast<uintptr_t>(1023));
  uint8_t* w = shared + task.x_stages * task.x_rows * 128;
  const Rings rings{w, shared, w + task.w_stages * 8 * task.tile_slot, w_full, w_empty, x_full, x_empty};
  if (threadIdx.x == 0) {
    for (int s = 0; s < task.w_stages; s++) barrier_init(w_full + s, 1), barrier_init(w_empty + s, 8);
    for (int s = 0; s < task.x_stages; s++) barrier_init(x_full + s, 1), barrier_init(x_empty + s, 8);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  release();
  const int steps = task.cols / 256, rank = blockIdx.x % task.splits;
  const int k0 = steps * rank / task.splits, k1 = steps * (rank + 1) / task.splits;
  const RowBlock rows = row_block<packed_rows>(task, blockIdx.x / task.splits);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  int count = 0;
  if (warp == 8) {
    if (lane < 8) load_weights(task, rows, rings, k0, k1);
  } else if (warp == 9) {
    if (lane == 0) load_tokens(task, of_segment(task.type, rows.segment) == Q6_K ? x_sixteens : x, rings, k0, k1);
  } else {
    float sum[N / 8][4] = {};
    const int type = of_segment(task.type, warp < 4 ? rows.segment : rows.up_segment);
    for_storage(type, [&]<int S>() {
      if constexpr (!Format<S>::floating) multiply_packed<S, N>(task, rings, k0, k1, warp, lane, sum);
    });
    wait();
    count = *task.count;
    asm volatile("bar.sync 1, 256;" ::: "memory");
    float* to = reinterpret_cast<float*>(shared) + warp * 16 + (lane >> 2);
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int token = 8 * j + 2 * (lane & 3) + (i & 1);
        if (token < count) to[token * (packed_rows + 8) + (i >> 1) * 8] = sum[j][i];
      }
    }
  }
  if (task.splits > 1) cluster_sync();
  else __syncthreads();
  if (warp < 8) finish<packed_rows>(task, task.splits, 0, threadIdx.x, rows, shared, count);
  if (task.splits > 1) cluster_sync();  // the others read here
}
#endif

}  // namespace mr

#ifdef MR_HOPPER
#define MR_PACKED_BODY(N, TASK) mr::packed_block<N>(TASK, &x, &x_sixteens)
#else
#define MR_PACKED_BODY(N, TASK)
#endif
// grid: a cluster of `splits` blocks for every 128 rows. x and x_sixteens: as mr_linear_turn makes them, boxes of 64 values × x_rows.
// cols: a multiple of 256; the segments that share a block want the same x.
#define MR_PACKED(N)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(320, N <= 32 ? 2 : 1) mr_linear_packed_##N(                                           \
      const __grid_constant__ mr::TensorMap x, const __grid_constant__ mr::TensorMap x_sixteens, int cols, void* y,    \
      int y_f32, int y_width, const float* bias, const int* count, int epilogue, int activation, int rows,             \
      int num_segments, const uint8_t* d0, int t0, int n0, const uint8_t* d1, int t1, int n1, const uint8_t* d2,       \
      int t2, int n2, const uint8_t* d3, int t3, int n3, int x_rows, int splits, int tile_slot, int w_stages,          \
      int x_stages) {                                                                                                  \
    const mr::Packed task{                                                                                             \
        MR_PRODUCT, {d0, d1, d2, d3}, {t0, t1, t2, t3}, x_rows, splits, tile_slot, w_stages, x_stages};                \
    MR_PACKED_BODY(N, task);                                                                                           \
  }
MR_PACKED(16)
MR_PACKED(32)
MR_PACKED(64)

// x in the order that mr_linear_packed wants: [others', Q6_K's][apart] values, from `first` on. A thread makes 8 values.
// grid: (values / 8 / 256, tokens, 1 or 2)
extern "C" __global__ void __launch_bounds__(256) mr_linear_turn(const mr::bf16* x, int cols, const int* count, mr::bf16* to, int64_t apart, int first) {
  mr::release();
  mr::wait();
  const int i = blockIdx.x * 256 + threadIdx.x, n = blockIdx.y;
  if (n >= *count || i >= cols / 8) return;
  const int s = i >> 1 & 1, h = i & 1, sixteens = first + blockIdx.z;
  const uint32_t* from = reinterpret_cast<const uint32_t*>(x + static_cast<int64_t>(n) * cols + i / 4 * 32);
  const auto pair = [&](int t) { return from[sixteens ? (16 * s + 4 * t + 2 * h) / 2 : (8 * t + 4 * s + 2 * h) / 2]; };
  *reinterpret_cast<uint4*>(to + sixteens * apart + static_cast<int64_t>(n) * cols + i * 8) = make_uint4(pair(0), pair(1), pair(2), pair(3));
}
