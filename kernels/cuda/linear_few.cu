// Owns: y = x · Wᵀ for up to 128 tokens on Hopper, at the rate of reading W (BF16's layout). A block streams R rows of W and
// multiplies them on wgmma with all tokens; a cluster of blocks cuts k among them and adds up through shared memory, so that
// there is a block for every multiprocessor whatever the matrix. W is asked for before the launch before has ended.
//
//   stage in shared memory: | x: tokens of 128 bytes, in eights | W: R rows of 128 bytes |, both in wgmma's 128-byte swizzle
//   wgmma takes 64 rows of x: those beyond the tokens are what lies there, and their sums are dropped
//   BM = 64: each of two warpgroups has all tokens and half of R;  BM = 128: 64 tokens and all of R
//   gated: half of R are rows of gate, half of up
#include "linear_wgmma.cuh"

namespace mr {

struct Few : Product {
  int x_rows, splits, stages, late;  // late: the launch before makes the weights
};

#ifdef MR_HOPPER
// One thread asks for all.
template <int R>
__device__ __forceinline__ void load(const Few& task, const Maps& maps, const RowBlock& rows, uint8_t* stages, uint64_t* full, uint64_t* empty, int k0, int k1) {
  const int x_bytes = task.x_rows * 128, stage_bytes = x_bytes + R * 128;
  const TensorMap *first = segment_map(maps, rows.segment), *second = segment_map(maps, rows.up_segment);
  const auto weights = [&](int k, int stage) {
    uint8_t* to = stages + stage * stage_bytes + x_bytes;
    barrier_expect(full + stage, stage_bytes);
    copy_box(to, first, k * 256, rows.tile, full + stage);
    copy_box(to + R * 64, second, k * 256, rows.up_tile, full + stage);
  };
  const int n = k1 - k0, early = task.late ? 0 : min(task.stages, n);
  for (int i = 0; i < early; i++) weights(k0 + i, i);
  wait();
  int stage = 0, phase = 0;
  for (int i = 0; i < n; i++) {
    if (i >= task.stages) barrier_wait(empty + stage, phase ^ 1);
    if (i >= early) weights(k0 + i, stage);
    copy_box(stages + stage * stage_bytes, maps.x, (k0 + i) * 64, blockIdx.y * task.x_rows, full + stage);
    if (++stage == task.stages) stage = 0, phase ^= 1;
  }
}

// sums: [token][R + 8], over the stages once all are read.
template <int BM, int R>
__device__ __forceinline__ void multiply(const Few& task, uint8_t* stages, uint64_t* full, uint64_t* empty, int k0, int k1, int count) {
  constexpr int WN = BM == 64 ? R / 2 : R;
  const int group = threadIdx.x >> 7, warp = threadIdx.x >> 5 & 3, lane = threadIdx.x & 31;
  const int x_bytes = task.x_rows * 128, stage_bytes = x_bytes + R * 128;
  float d[WN / 8][4];
  int stage = 0, phase = 0, previous = -1;
  for (int k = k0; k < k1; k++) {
    barrier_wait(full + stage, phase);
    const uint8_t* at = stages + stage * stage_bytes;
    const uint64_t a = descriptor(at + (BM == 128 ? group * 64 * 128 : 0));
    const uint64_t b = descriptor(at + x_bytes + (BM == 64 ? group * WN * 128 : 0));
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int s = 0; s < 4; s++) wgmma<WN>(d, a + 2 * s, b + 2 * s, k > k0 || s > 0);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
    if (previous >= 0 && lane == 0) barrier_arrive(empty + previous);
    previous = stage;
    if (++stage == task.stages) stage = 0, phase ^= 1;
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  asm volatile("bar.sync 1, 256;" ::: "memory");
  float* sums = reinterpret_cast<float*>(stages) + (BM == 64 ? group * WN : 0) + 2 * (lane & 3);
  const int token = (BM == 128 ? group * 64 : 0) + warp * 16 + (lane >> 2);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (token + 8 * half >= count) continue;
    float* row = sums + (token + 8 * half) * (R + 8);
#pragma unroll
    for (int j = 0; j < WN / 8; j++) *reinterpret_cast<float2*>(row + 8 * j) = make_float2(d[j][2 * half], d[j][2 * half + 1]);
  }
}

template <int BM, int R>
__device__ __forceinline__ void few_block(const Few& task, const Maps& maps) {
  extern __shared__ uint8_t raw[];
  __shared__ uint64_t full[most_stages], empty[most_stages];
  uint8_t* stages = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(raw) + 1023) & ~static_cast<uintptr_t>(1023));
  if (threadIdx.x == 0) {
    for (int s = 0; s < task.stages; s++) barrier_init(full + s, 1), barrier_init(empty + s, 8);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  release();
  const int steps = (task.cols + 63) / 64, rank = blockIdx.x % task.splits;
  const int k0 = steps * rank / task.splits, k1 = steps * (rank + 1) / task.splits;
  int count = 0;
  const RowBlock rows = row_block<R>(task, blockIdx.x / task.splits);
  if (threadIdx.x >= 256) {
    if (threadIdx.x == 256) load<R>(task, maps, rows, stages, full, empty, k0, k1);
  } else {
    wait();
    count = min(*task.count - static_cast<int>(blockIdx.y) * task.x_rows, task.x_rows);
    multiply<BM, R>(task, stages, full, empty, k0, k1, count);
  }
  if (task.splits > 1) cluster_sync();
  else __syncthreads();
  if (threadIdx.x < 256) finish<R>(task, task.splits, blockIdx.y * task.x_rows, threadIdx.x, rows, stages, count);
  if (task.splits > 1) cluster_sync();  // the others read here
}
#endif

}  // namespace mr

#ifdef MR_HOPPER
#define MR_FEW_BODY(BM, R, TASK, MAPS) mr::few_block<BM, R>(TASK, MAPS)
#else
#define MR_FEW_BODY(BM, R, TASK, MAPS)
#endif
// grid: a cluster of `splits` blocks for every R rows × every x_rows tokens; boxes of w: R / 32 tiles. Two blocks of one launch,
// or of two, fit a multiprocessor's registers while BM · R is small.
#define MR_FEW(BM, R)                                                                                                  \
  extern "C" __global__ void __launch_bounds__(288, BM == 64 || R <= 128 ? 2 : 1)                                      \
      mr_linear_few_##BM##_##R(MR_PRODUCT_PARAMETERS, int x_rows, int splits, int stages, int late) {                  \
    const mr::Few task{MR_PRODUCT, x_rows, splits, stages, late};                                                      \
    const mr::Maps maps MR_MAPS;                                                                                       \
    MR_FEW_BODY(BM, R, task, maps);                                                                                    \
  }
#define MR_FEWS(R) MR_FEW(64, R) MR_FEW(128, R)
MR_FEWS(32)
MR_FEWS(64)
MR_FEWS(96)
MR_FEWS(128)
MR_FEWS(192)
MR_FEWS(224)
MR_FEWS(256)
