// Owns: y = x · Wᵀ for many tokens on Hopper: weights in BF16's layout come by bulk copies, tokens by cp.async, the products
// run on wgmma. One warpgroup loads, two multiply; a block goes through tiles of BM tokens × BN rows of W.
//
//   stage in shared memory: | x: BM rows of 128 bytes | W: BN rows of 128 bytes |, both in wgmma's 128-byte swizzle
//   BM = 128: a warpgroup has 64 tokens and all of BN;  BM = 64: all tokens and half of BN
//   gated: tiles of 16 rows alternate, gate then up, so that a thread holds both of an output
//   splits > 1: k is cut; the blocks of a tile leave their sums in `partial`, the last to come adds them in order
#include "linear_layout.cuh"

namespace mr {

// wgmma exists on sm_90a alone: everywhere else the kernels are empty and never launched.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MR_HOPPER 1
#endif

struct Gemm {
  const bf16* x;
  int cols;
  void* y;
  int y_f32, y_width;
  const float* bias;
  const int* count;
  int epilogue, activation, rows;  // as linear_stream.cuh; rows: gated, of a half
  int blocks_m, splits, late;      // late: the launch before makes the weights
  float* partial;
  int* tickets;
  const uint8_t* data[4];
  int segment_rows[4], num_segments;
};

#ifdef MR_HOPPER
template <int N>
__device__ __forceinline__ void wgmma(float (&d)[N / 8][4], uint64_t a, uint64_t b, int scale);
template <>
__device__ __forceinline__ void wgmma<256>(float (&d)[32][4], uint64_t a, uint64_t b, int scale) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
      " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63,"
      " %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79,"
      " %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95,"
      " %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111,"
      " %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, p, 1, 1, 0, 0;\n}\n"
      : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
        "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
        "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
        "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]),
        "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]), "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]),
        "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]), "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]),
        "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]), "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),
        "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]), "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3]),
        "+f"(d[16][0]), "+f"(d[16][1]), "+f"(d[16][2]), "+f"(d[16][3]), "+f"(d[17][0]), "+f"(d[17][1]), "+f"(d[17][2]), "+f"(d[17][3]),
        "+f"(d[18][0]), "+f"(d[18][1]), "+f"(d[18][2]), "+f"(d[18][3]), "+f"(d[19][0]), "+f"(d[19][1]), "+f"(d[19][2]), "+f"(d[19][3]),
        "+f"(d[20][0]), "+f"(d[20][1]), "+f"(d[20][2]), "+f"(d[20][3]), "+f"(d[21][0]), "+f"(d[21][1]), "+f"(d[21][2]), "+f"(d[21][3]),
        "+f"(d[22][0]), "+f"(d[22][1]), "+f"(d[22][2]), "+f"(d[22][3]), "+f"(d[23][0]), "+f"(d[23][1]), "+f"(d[23][2]), "+f"(d[23][3]),
        "+f"(d[24][0]), "+f"(d[24][1]), "+f"(d[24][2]), "+f"(d[24][3]), "+f"(d[25][0]), "+f"(d[25][1]), "+f"(d[25][2]), "+f"(d[25][3]),
        "+f"(d[26][0]), "+f"(d[26][1]), "+f"(d[26][2]), "+f"(d[26][3]), "+f"(d[27][0]), "+f"(d[27][1]), "+f"(d[27][2]), "+f"(d[27][3]),
        "+f"(d[28][0]), "+f"(d[28][1]), "+f"(d[28][2]), "+f"(d[28][3]), "+f"(d[29][0]), "+f"(d[29][1]), "+f"(d[29][2]), "+f"(d[29][3]),
        "+f"(d[30][0]), "+f"(d[30][1]), "+f"(d[30][2]), "+f"(d[30][3]), "+f"(d[31][0]), "+f"(d[31][1]), "+f"(d[31][2]), "+f"(d[31][3])
      : "l"(a), "l"(b), "r"(scale));
}
template <>
__device__ __forceinline__ void wgmma<128>(float (&d)[16][4], uint64_t a, uint64_t b, int scale) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
      " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 0, 0;\n}\n"
      : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
        "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
        "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
        "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]),
        "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]), "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]),
        "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]), "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]),
        "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]), "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),
        "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]), "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3])
      : "l"(a), "l"(b), "r"(scale));
}
template <>
__device__ __forceinline__ void wgmma<64>(float (&d)[8][4], uint64_t a, uint64_t b, int scale) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, p, 1, 1, 0, 0;\n}\n"
      : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
        "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
        "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
        "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])
      : "l"(a), "l"(b), "r"(scale));
}

__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
__device__ __forceinline__ void barrier_init(uint64_t* b, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
__device__ __forceinline__ void barrier_expect(uint64_t* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t* b, int phase) {
  asm volatile(
      "{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra again;\n}\n" ::"r"(shared_address(b)),
      "r"(phase)
      : "memory");
}
__device__ __forceinline__ void bulk_copy(void* to, const void* from, int bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)), "l"(from),
               "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
// Rows of 128 bytes in 128-byte swizzle, groups of 8 rows 1024 bytes apart.
__device__ __forceinline__ uint64_t descriptor(const void* p) {
  return static_cast<uint64_t>((shared_address(p) & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

// A block of BN rows of W: its tiles of 16 rows are tile0… of `data` (gated: of `data` and `up` in turn), `last` being the
// last there is. Columns of y: column + 16 · tile, up to limit.
struct RowBlock {
  const uint8_t *data, *up;
  int tile0, last, column, limit;
};

template <int BN>
__device__ __forceinline__ RowBlock row_block(const Gemm& task, int block, int64_t tile_bytes) {
  if (task.epilogue == 2) {
    const uint8_t* up = task.num_segments == 2 ? task.data[1] : task.data[0] + task.rows / 16 * tile_bytes;
    return {task.data[0], up, block * (BN / 32), (task.rows + 15) / 16 - 1, 0, task.rows};
  }
  int column = 0;
  RowBlock out{task.data[0], nullptr, 0, 0, 0, 0};
#pragma unroll
  for (int s = 0; s < 4; s++) {
    if (s >= task.num_segments || block < 0) break;
    const int tiles = (task.segment_rows[s] + 15) / 16, blocks = (tiles + BN / 16 - 1) / (BN / 16);
    if (block < blocks) out = {task.data[s], nullptr, block * (BN / 16), tiles - 1, column, column + task.segment_rows[s]};
    block -= blocks, column += task.segment_rows[s];
  }
  return out;
}

template <int BN>
__device__ __forceinline__ int row_blocks(const Gemm& task) {
  if (task.epilogue == 2) return ((task.rows + 15) / 16 + BN / 32 - 1) / (BN / 32);
  int blocks = 0;
#pragma unroll
  for (int s = 0; s < 4; s++) {
    if (s < task.num_segments) blocks += ((task.segment_rows[s] + 15) / 16 + BN / 16 - 1) / (BN / 16);
  }
  return blocks;
}

// Item i: neighbours share weights, a band of 16 blocks of tokens shares x.
struct Item {
  int m, n, split;
};
__device__ __forceinline__ Item item_at(const Gemm& task, int i, int blocks_n) {
  const int split = i % task.splits;
  i /= task.splits;
  const int band = i / (16 * blocks_n), first = band * 16, high = min(16, task.blocks_m - first);
  i -= band * 16 * blocks_n;
  return {first + i % high, i / high, split};
}

template <int BM, int BN, int STAGES>
struct Tile {
  static constexpr int WN = BM == 64 ? BN / 2 : BN;  // of a warpgroup
  static constexpr int x_bytes = BM * 128, stage = (BM + BN) * 128, shared = STAGES * stage + 1024 + 256;
};

template <int BM, int BN, int STAGES>
__device__ __forceinline__ void load_tiles(const Gemm& task, uint8_t* stages, uint64_t* full, uint64_t* empty, int items, int blocks_n) {
  using T = Tile<BM, BN, STAGES>;
  constexpr int lag = 2;
  const int p = threadIdx.x, chunk = p & 7, row0 = p >> 3;
  const int steps = (task.cols + 63) / 64;
  const int64_t tile_bytes = static_cast<int64_t>(steps) * 2048;
  // Sixteen rows of 2048 bytes at k: a lane of the first warp for each.
  const uint8_t* mine = nullptr;
  const auto find = [&](const Item& item) {
    const RowBlock rows = row_block<BN>(task, item.n, tile_bytes);
    const bool gated = task.epilogue == 2;
    mine = (gated && (p & 1) ? rows.up : rows.data) + min(rows.tile0 + (gated ? p >> 1 : p), rows.last) * tile_bytes;
  };
  const auto weights = [&](int k, int stage) {
    if (p < BN / 16) {
      if (p == 0) barrier_expect(full + stage, BN * 128);
      __syncwarp((1u << (BN / 16)) - 1);
      bulk_copy(stages + stage * T::stage + T::x_bytes + p * 2048, mine + k * 2048ll, 2048, full + stage);
    }
  };
  int early = 0;
  if (!task.late && task.blocks_m == 1 && static_cast<int>(blockIdx.x) < items) {
    const Item item = item_at(task, blockIdx.x, blocks_n);
    find(item);
    const int k0 = steps * item.split / task.splits, k1 = steps * (item.split + 1) / task.splits;
    for (; early < STAGES && k0 + early < k1; early++) weights(k0 + early, early);
  }
  wait();
  const int count = *task.count;
  int done = 0, stage = 0, phase = 0;
  const auto arrive = [&](int at) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    barrier_arrive(full + at);
  };
  for (int i = blockIdx.x; i < items; i += gridDim.x) {
    const Item item = item_at(task, i, blocks_n);
    if (item.m * BM >= count) continue;
    find(item);
    const int k0 = steps * item.split / task.splits, k1 = steps * (item.split + 1) / task.splits;
    for (int k = k0; k < k1; k++) {
      if (done >= STAGES) barrier_wait(empty + stage, phase ^ 1);
      if (done >= early) weights(k, stage);
      uint8_t* to = stages + stage * T::stage;
#pragma unroll
      for (int j = 0; j < BM / 16; j++) {
        const int row = row0 + 16 * j, token = item.m * BM + row, col = k * 64 + chunk * 8;
        const bool there = token < count && col < task.cols;
        const bf16* from = task.x + (there ? static_cast<int64_t>(token) * task.cols + col : 0);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to + swizzled(row, chunk))), "l"(from), "r"(there ? 16 : 0)
                     : "memory");
      }
      asm volatile("cp.async.commit_group;" ::: "memory");
      if (done >= lag) {
        asm volatile("cp.async.wait_group %0;" ::"n"(lag) : "memory");
        arrive((stage + STAGES - lag) % STAGES);
      }
      done++;
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
  }
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  for (int left = min(done, lag); left > 0; left--) arrive((stage + STAGES - left) % STAGES);
}

template <int BM, int BN, int STAGES>
__device__ __forceinline__ void multiply_tiles(const Gemm& task, uint8_t* stages, uint64_t* full, uint64_t* empty, int items, int blocks_n, int* ticket) {
  using T = Tile<BM, BN, STAGES>;
  constexpr int WN = T::WN;
  const int thread = threadIdx.x - 128, group = thread >> 7, warp = thread >> 5 & 3, lane = thread & 31;
  const int steps = (task.cols + 63) / 64;
  const int64_t tile_bytes = static_cast<int64_t>(steps) * 2048;
  wait();
  const int count = *task.count;
  int stage = 0, phase = 0;
  for (int i = blockIdx.x; i < items; i += gridDim.x) {
    const Item item = item_at(task, i, blocks_n);
    if (item.m * BM >= count) continue;
    const int k0 = steps * item.split / task.splits, k1 = steps * (item.split + 1) / task.splits;
    float d[WN / 8][4];
    int previous = -1;
    for (int k = k0; k < k1; k++) {
      barrier_wait(full + stage, phase);
      const uint8_t* at = stages + stage * T::stage;
      const uint64_t a = descriptor(at + (BM == 128 ? group * 64 * 128 : 0));
      const uint64_t b = descriptor(at + T::x_bytes + (BM == 64 ? group * WN * 128 : 0));
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int s = 0; s < 4; s++) wgmma<WN>(d, a + 2 * s, b + 2 * s, k > k0 || s > 0);
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
      if (previous >= 0 && lane == 0) barrier_arrive(empty + previous);
      previous = stage;
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    if (previous >= 0 && lane == 0) barrier_arrive(empty + previous);
    if (previous < 0) {
#pragma unroll
      for (int j = 0; j < WN / 8; j++) d[j][0] = d[j][1] = d[j][2] = d[j][3] = 0.0f;
    }
    if (task.splits > 1) {
      const int tile = item.n * task.blocks_m + item.m;
      float* partial = task.partial + static_cast<int64_t>(tile) * task.splits * BM * BN + thread;
#pragma unroll
      for (int j = 0; j < WN / 2; j++) __stcg(partial + item.split * BM * BN + j * 256, d[j / 4][j % 4]);
      __threadfence();
      asm volatile("bar.sync 1, 256;" ::: "memory");
      if (thread == 0) {
        *ticket = atomicAdd(task.tickets + tile, 1);
        if (*ticket == task.splits - 1) task.tickets[tile] = 0;
      }
      asm volatile("bar.sync 1, 256;" ::: "memory");
      const bool last = *ticket == task.splits - 1;
      asm volatile("bar.sync 1, 256;" ::: "memory");
      if (!last) continue;
      __threadfence();
#pragma unroll
      for (int j = 0; j < WN / 2; j++) {
        float sum = 0.0f;
        for (int s = 0; s < task.splits; s++) sum += __ldcg(partial + s * BM * BN + j * 256);
        d[j / 4][j % 4] = sum;
      }
    }
    const int token0 = item.m * BM + (BM == 128 ? group * 64 : 0) + warp * 16 + (lane >> 2);
    const int tile0 = BM == 64 ? group * (WN / 16) : 0;
    const bool gated = task.epilogue == 2;
    const RowBlock rows = row_block<BN>(task, item.n, tile_bytes);
#pragma unroll
    for (int j = 0; j < WN / 16; j++) {
      if (gated && (j & 1)) continue;
      const int first = rows.column + (rows.tile0 + (gated ? (tile0 + j) >> 1 : tile0 + j)) * 16;
#pragma unroll
      for (int part = 0; part < 2; part++) {
        const int column = first + part * 8 + 2 * (lane & 3);
        if (column >= rows.limit) continue;
        const bool both = column + 1 < rows.limit;
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int token = token0 + 8 * half;
          if (token >= count) continue;
          float v[2] = {d[2 * j + part][2 * half], d[2 * j + part][2 * half + 1]};
          if (task.bias) {
            v[0] += task.bias[column];
            if (both) v[1] += task.bias[column + 1];
          }
          if (gated) {
            float up[2] = {d[(2 * j + 2) % (WN / 8) + part][2 * half], d[(2 * j + 2) % (WN / 8) + part][2 * half + 1]};
            if (task.bias) {
              up[0] += task.bias[task.rows + column];
              if (both) up[1] += task.bias[task.rows + column + 1];
            }
            v[0] = activate(task.activation, v[0]) * up[0], v[1] = activate(task.activation, v[1]) * up[1];
          }
          const int64_t at = static_cast<int64_t>(token) * task.y_width + column;
          if (task.y_f32) {
            float* y = static_cast<float*>(task.y) + at;
            if (task.epilogue == 1) v[0] += y[0], v[1] += both ? y[1] : 0.0f;
            if (both && !(at & 1)) *reinterpret_cast<float2*>(y) = make_float2(v[0], v[1]);
            else {
              y[0] = v[0];
              if (both) y[1] = v[1];
            }
          } else {
            bf16* y = static_cast<bf16*>(task.y) + at;
            if (both && !(at & 1)) *reinterpret_cast<__nv_bfloat162*>(y) = __floats2bfloat162_rn(v[0], v[1]);
            else {
              y[0] = __float2bfloat16_rn(v[0]);
              if (both) y[1] = __float2bfloat16_rn(v[1]);
            }
          }
        }
      }
    }
  }
}

template <int BM, int BN, int STAGES>
__device__ __forceinline__ void gemm_block(const Gemm& task) {
  using T = Tile<BM, BN, STAGES>;
  extern __shared__ uint8_t raw[];
  uint8_t* stages = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(raw) + 1023) & ~static_cast<uintptr_t>(1023));
  uint64_t* full = reinterpret_cast<uint64_t*>(stages + STAGES * T::stage);
  uint64_t* empty = full + STAGES;
  int* ticket = reinterpret_cast<int*>(empty + STAGES);
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) barrier_init(full + s, 129), barrier_init(empty + s, 8);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  release();
  const int blocks_n = row_blocks<BN>(task), items = blocks_n * task.blocks_m * task.splits;
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    load_tiles<BM, BN, STAGES>(task, stages, full, empty, items, blocks_n);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    multiply_tiles<BM, BN, STAGES>(task, stages, full, empty, items, blocks_n, ticket);
  }
}
#endif

}  // namespace mr

#ifdef MR_HOPPER
#define MR_GEMM_BODY(BM, BN, STAGES, TASK) mr::gemm_block<BM, BN, STAGES>(TASK)
#else
#define MR_GEMM_BODY(BM, BN, STAGES, TASK)
#endif
// grid: as many blocks as run at once; blocks_m: of BM tokens in the bucket.
#define MR_GEMM(NAME, BM, BN, STAGES)                                                                                    \
  extern "C" __global__ void __launch_bounds__(384, 1) NAME(                                                             \
      const mr::bf16* x, int cols, void* y, int y_f32, int y_width, const float* bias, const int* count, int epilogue,   \
      int activation, int rows, int blocks_m, int splits, int late, float* partial, int* tickets, int num_segments,      \
      const uint8_t* d0, int n0, const uint8_t* d1, int n1, const uint8_t* d2, int n2, const uint8_t* d3, int n3) {      \
    const mr::Gemm task{x,        cols,   y,    y_f32,   y_width, bias,    count,   epilogue,                            \
                        activation, rows, blocks_m, splits, late, partial, tickets, {d0, d1, d2, d3},                    \
                        {n0, n1, n2, n3}, num_segments};                                                                 \
    MR_GEMM_BODY(BM, BN, STAGES, task);                                                                                  \
  }
MR_GEMM(mr_linear_gemm_256, 128, 256, 4)
MR_GEMM(mr_linear_gemm_128, 128, 128, 6)
MR_GEMM(mr_linear_gemm_64, 64, 128, 8)
