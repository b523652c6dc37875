// Owns: y = x · Wᵀ for many tokens on Hopper. A cluster of two blocks has the same BN rows of W and two times 128 tokens: each
// block asks for its own tokens and for half of W, which the copy engine lays down in both. One warp loads, two warpgroups
// multiply, each 64 tokens × BN rows; a cluster goes through tiles until none is left.
//
//   stage in shared memory: | x: 128 rows of 128 bytes | W: BN rows of 128 bytes |, both in wgmma's 128-byte swizzle
//   beside the stages: 16 rows × 32 columns of sums for each warp, so that y is written in whole lines
//   gated: half of BN are rows of gate, half of up
#include "linear_wgmma.cuh"

namespace mr {

struct Gemm : Product {
  int pairs_m;  // of 2 × 128 tokens, in the bucket
};

#ifdef MR_HOPPER
constexpr int slice = 32, slice_row = slice + 8;

template <int BN>
struct Tile {
  static constexpr int stages = BN == 256 ? 4 : 6, x_bytes = 128 * 128, stage = x_bytes + BN * 128;
};

// Item i: neighbours share weights, a band of 8 pairs of blocks of tokens shares x.
struct Item {
  int pair, n;
};
__device__ __forceinline__ Item item_at(const Gemm& task, int i, int blocks_n) {
  const int band = i / (8 * blocks_n), first = band * 8, high = min(8, task.pairs_m - first);
  i -= band * 8 * blocks_n;
  return {first + i % high, i / high};
}

// One thread asks for all.
template <int BN>
__device__ __forceinline__ void load_tiles(const Gemm& task, const Maps& maps, uint8_t* stages, uint64_t* full, uint64_t* empty, int items, int blocks_n) {
  using T = Tile<BN>;
  const int rank = blockIdx.x & 1, steps = (task.cols + 63) / 64;
  wait();
  const int count = *task.count;
  int done = 0, stage = 0, phase = 0;
  for (int i = blockIdx.x >> 1; i < items; i += gridDim.x >> 1) {
    const Item item = item_at(task, i, blocks_n);
    if (item.pair * 256 >= count) continue;
    const RowBlock rows = row_block<BN>(task, item.n);
    const TensorMap* map = segment_map(maps, rank ? rows.up_segment : rows.segment);
    const int tile = rank ? rows.up_tile : rows.tile;
    for (int k = 0; k < steps; k++) {
      if (done++ >= T::stages) barrier_wait(empty + stage, phase ^ 1);
      uint8_t* to = stages + stage * T::stage;
      barrier_expect(full + stage, T::stage);
      copy_box(to, maps.x, k * 64, item.pair * 256 + rank * 128, full + stage);
      copy_box_to(3, to + T::x_bytes + rank * BN * 64, map, k * 256, tile, full + stage);
      if (++stage == T::stages) stage = 0, phase ^= 1;
    }
  }
}

// The warp's 16 tokens through shared memory, 32 sums of each at a time: as many columns, or 16 of gate and 16 of up.
template <int BN>
__device__ __forceinline__ void store_tile(const Gemm& task, const float (&d)[BN / 8][4], float* sums, const RowBlock& rows, int token0, int count) {
  const int lane = threadIdx.x & 31;
  const bool gated = task.epilogue == 2;
  const int columns = gated ? 16 : 32, c = 4 * lane % columns;
#pragma unroll
  for (int j = 0; j < BN / 32; j++) {
    const int column = rows.column + j * columns;
    if (column >= rows.limit) break;
    __syncwarp();
#pragma unroll
    for (int part = 0; part < 4; part++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float(&plain)[4] = d[4 * j + part], (&paired)[4] = d[part < 2 ? 2 * j + part : BN / 16 + 2 * j + part - 2];
        *reinterpret_cast<float2*>(sums + ((lane >> 2) + 8 * half) * slice_row + part * 8 + 2 * (lane & 3)) =
            gated ? make_float2(paired[2 * half], paired[2 * half + 1]) : make_float2(plain[2 * half], plain[2 * half + 1]);
      }
    __syncwarp();
    if (column + c >= rows.limit) continue;
#pragma unroll 1
    for (int row = 4 * lane / columns; row < 16 && token0 + row < count; row += 128 / columns) {
      const float* from = sums + row * slice_row + c;
      float v[4] = {from[0], from[1], from[2], from[3]};
      if (gated)
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = gated_value(task, column + c + i, v[i], from[16 + i]);
      store_four(task, token0 + row, column + c, rows.limit, v);
    }
  }
}

template <int BN>
__device__ __forceinline__ void multiply_tiles(const Gemm& task, uint8_t* stages, uint64_t* full, uint64_t* empty, float* sums, int items, int blocks_n) {
  using T = Tile<BN>;
  const int thread = threadIdx.x - 128, group = thread >> 7, warp = thread >> 5 & 3, lane = thread & 31, rank = blockIdx.x & 1;
  const int steps = (task.cols + 63) / 64;
  wait();
  const int count = *task.count;
  int stage = 0, phase = 0;
  const auto free_stage = [&](int s) {  // to both blocks: either may lay W down here
    if (lane < 2) barrier_arrive_at(lane, empty + s);
  };
  for (int i = blockIdx.x >> 1; i < items; i += gridDim.x >> 1) {
    const Item item = item_at(task, i, blocks_n);
    if (item.pair * 256 >= count) continue;
    float d[BN / 8][4];
    int previous = -1;
    for (int k = 0; k < steps; k++) {
      barrier_wait(full + stage, phase);
      const uint8_t* at = stages + stage * T::stage;
      const uint64_t a = descriptor(at + group * 64 * 128), b = descriptor(at + T::x_bytes);
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int s = 0; s < 4; s++) wgmma<BN>(d, a + 2 * s, b + 2 * s, k > 0 || s > 0);
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
      if (previous >= 0) free_stage(previous);
      previous = stage;
      if (++stage == T::stages) stage = 0, phase ^= 1;
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    free_stage(previous);
    store_tile<BN>(task, d, sums + (thread >> 5) * 16 * slice_row, row_block<BN>(task, item.n),
                   item.pair * 256 + rank * 128 + group * 64 + warp * 16, count);
  }
}

template <int BN>
__device__ __forceinline__ void gemm_block(const Gemm& task, const Maps& maps) {
  using T = Tile<BN>;
  extern __shared__ uint8_t raw[];
  __shared__ uint64_t full[T::stages], empty[T::stages];
  uint8_t* stages = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(raw) + 1023) & ~static_cast<uintptr_t>(1023));
  float* sums = reinterpret_cast<float*>(stages + T::stages * T::stage);
  if (threadIdx.x == 0) {
    for (int s = 0; s < T::stages; s++) barrier_init(full + s, 1), barrier_init(empty + s, 16);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_sync();
  release();
  const int blocks_n = row_blocks<BN>(task), items = blocks_n * task.pairs_m;
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) load_tiles<BN>(task, maps, stages, full, empty, items, blocks_n);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    multiply_tiles<BN>(task, stages, full, empty, sums, items, blocks_n);
  }
  cluster_sync();  // the other block arrives at barriers here
}
#endif

}  // namespace mr

#ifdef MR_HOPPER
#define MR_GEMM_BODY(BN, TASK, MAPS) mr::gemm_block<BN>(TASK, MAPS)
#else
#define MR_GEMM_BODY(BN, TASK, MAPS)
#endif
// grid: clusters of two, as many as run at once; boxes of x: 128 tokens, of w: BN / 32 tiles.
#define MR_GEMM(BN)                                                                                                    \
  extern "C" __global__ void __launch_bounds__(384, 1) mr_linear_gemm_##BN(MR_PRODUCT_PARAMETERS, int pairs_m) {       \
    const mr::Gemm task{MR_PRODUCT, pairs_m};                                                                          \
    const mr::Maps maps MR_MAPS;                                                                                       \
    MR_GEMM_BODY(BN, task, maps);                                                                                      \
  }
MR_GEMM(128)
MR_GEMM(256)
