// Owns: the kernel of walk.cuh.
#pragma once
#include "walk_attend.cuh"
#include "walk_linear.cuh"

namespace mr {
namespace walk {

template <class T, int D>
__device__ __forceinline__ void walk(const uint8_t* program, int count, unsigned* steps, uint8_t* values, int pairs, int tiles, int corner_bytes) {
#ifdef MR_HOPPER
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ Board board;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  for (int i = threadIdx.x; i < min(held, count) * (instruction_bytes / 16); i += threads) {
    const int c = i / (instruction_bytes / 16), j = i % (instruction_bytes / 16);
    reinterpret_cast<uint4*>(board.table[c])[j] = *reinterpret_cast<const uint4*>(program + static_cast<int64_t>(c) * stride + j * 16);
  }
  if (threadIdx.x < buffers) board.tickets[threadIdx.x] = 0, board.turns[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    barrier_init(&board.scaled, 1), barrier_init(&board.done, warps);
    for (int w = 0; w < warps; w++) {
      for (int i = 0; i < flying; i++) barrier_init(&board.there[w][i], 1);
      board.used[w].write(0, 0);
    }
    board.known = min(held, count), board.found = 0;
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  release();

  uint32_t ring_bytes;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(ring_bytes));
  ring_bytes = (ring_bytes / warps - corner_bytes) & ~1023u;
  if (warp == warps + 1) {
    if (lane < warps) bring<D>(program, count, lane, shared + lane * ring_bytes, ring_bytes, board);
    return;
  }
  wait();
  const unsigned step = *reinterpret_cast<volatile unsigned*>(steps);
  const Exchange exchange{values, pairs, tiles, step * count + 1};
  if (warp == warps) {
    manage(program, count, exchange, board);
    return;
  }
  Warp me{board, exchange, shared + warp * ring_bytes, shared + warps * ring_bytes, static_cast<int>(ring_bytes), corner_bytes, warp, lane};
  int turn = 0;
  for (int c = 0; c < count; c++) {
    while (board.known <= c) {}
    const Instruction& now = board.at(c);
    if (now.op == op_linear) linear(now, c, turn, me);
    else attend<T, D>(now, c, me);
    if (c > 0) barrier_wait(&board.done, c - 1 & 1);
    __syncwarp();
    if (lane == 0) barrier_arrive(&board.done);
  }
  // Every block has begun: this one has read what all had to add to.
  if (blockIdx.x == 0 && threadIdx.x == 0) *reinterpret_cast<volatile unsigned*>(steps) = step + 1;
#endif
}

}  // namespace walk
}  // namespace mr

// grid: the multiprocessors. program: `count` instructions; steps: how many there have been; values: the exchanges, of so many
// pairs and tiles; corner_bytes: a warp's share of shared memory beside its ring.
#define MR_WALK(NAME, T, D)                                                                                            \
  extern "C" __global__ void __launch_bounds__(mr::walk::threads, 1)                                                   \
      mr_walk_##NAME##_##D(const uint8_t* program, int count, unsigned* steps, uint8_t* values, int pairs, int tiles,  \
                           int corner_bytes) {                                                                         \
    mr::walk::walk<T, D>(program, count, steps, values, pairs, tiles, corner_bytes);                                   \
  }
