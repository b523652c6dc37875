// Owns: the kernel of walk.cuh.
#pragma once
#include "walk_attend.cuh"
#include "walk_linear.cuh"

namespace mr {
namespace walk {

#ifdef MR_HOPPER
__device__ void manage(const uint8_t* program, int count, const Exchange& exchange, Board& board, int lane) {
  int turn = 0;
  for (int c = 0; c < count; c++) {
    uint4 next;
    const bool more = c + held < count && lane < instruction_bytes / 16;
    if (more) next = *reinterpret_cast<const uint4*>(program + static_cast<int64_t>(c + held) * stride + lane * 16);
    const Instruction& now = board.at(c);
    if (now.op == op_linear) {
      const Deal deal(now);
      finish(now, deal, c, turn, exchange, board, lane);
      turn += deal.count;
    }
    if (c + held >= count) continue;
    while (!__all_sync(~0u, lane >= producers || board.found[lane] > c)) {}
    while (!__all_sync(~0u, lane >= warps || board.finished[lane] > c)) {}
    if (more) reinterpret_cast<uint4*>(board.table[c % held])[lane] = next;
    __threadfence_block();
    __syncwarp();
    if (lane == 0) board.known = c + held + 1;
  }
}
#endif

template <class T, int D>
__device__ __forceinline__ void walk(const uint8_t* program, int count, const int* positions, uint64_t* begun, uint8_t* values, int pairs, int tiles, int corner_bytes) {
#ifdef MR_HOPPER
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ Board board;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  for (int i = threadIdx.x; i < min(held, count) * (instruction_bytes / 16); i += threads) {
    const int c = i / (instruction_bytes / 16), j = i % (instruction_bytes / 16);
    reinterpret_cast<uint4*>(board.table[c])[j] = *reinterpret_cast<const uint4*>(program + static_cast<int64_t>(c) * stride + j * 16);
  }
  if (threadIdx.x < buffers) barrier_init(&board.summed[threadIdx.x], warps), barrier_init(&board.taken[threadIdx.x], 1);
  if (threadIdx.x < warps) {
    for (int i = 0; i < flying; i++) barrier_init(&board.there[threadIdx.x][i], 1);
    board.used[threadIdx.x].write(0, 0);
    board.finished[threadIdx.x] = 0;
  }
  if (threadIdx.x == 0) board.known = min(held, count);
  if (threadIdx.x < producers) board.found[threadIdx.x] = 0;
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  release();

  uint32_t ring_bytes;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(ring_bytes));
  ring_bytes = (ring_bytes / warps - corner_bytes) & ~1023u;
  if (warp > warps) {
    const int producer = warp - warps - 1, mine = lane * producers + producer;
    if (mine < warps) bring<D>(program, count, positions, producer, mine, shared + mine * ring_bytes, ring_bytes, board);
    return;
  }
  wait();
  // Blocks begin when they can: each counts itself, and finds which step it is in.
  if (threadIdx.x == 32) board.position = positions[0];
  if (threadIdx.x == 0) board.step = static_cast<unsigned>(atomicAdd(reinterpret_cast<unsigned long long*>(begun), 1ull) / gridDim.x);
  asm volatile("bar.sync 2, %0;" ::"n"(32 * (warps + 1)) : "memory");
  const Exchange exchange{values, pairs, tiles, board.step * count + 1};
  if (warp == warps) {
    manage(program, count, exchange, board, lane);
    return;
  }
  Warp me{board, exchange, shared + warp * ring_bytes, shared + warps * ring_bytes, static_cast<int>(ring_bytes), corner_bytes, warp, lane};
  int turn = 0;
  for (int c = 0; c < count; c++) {
    while (board.known <= c) {}
    const Instruction& now = board.at(c);
    if (now.op == op_linear) {
      const Deal deal(now);
      linear(now, deal, turn, me);
      turn += deal.count;
    } else {
      attend<T, D>(now, c, me);
    }
    __syncwarp();
    if (lane == 0) board.finished[warp] = c + 1;
  }
#endif
}

}  // namespace walk
}  // namespace mr

// grid: the multiprocessors. program: `count` instructions; positions: of the token; begun: blocks that have begun a step; values:
// the exchanges, of so many pairs and tiles; corner_bytes: a warp's share of shared memory beside its ring.
#define MR_WALK(NAME, T, D)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(mr::walk::threads, 1)                                                          \
      mr_walk_##NAME##_##D(const uint8_t* program, int count, const int* positions, uint64_t* begun, uint8_t* values,         \
                           int pairs, int tiles, int corner_bytes) {                                                          \
    mr::walk::walk<T, D>(program, count, positions, begun, values, pairs, tiles, corner_bytes);                               \
  }
