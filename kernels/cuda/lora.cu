// Owns: what adapters add to products: z = y + scale · B (A x) for the tokens of sequences that have one, z = y for others.
#include "common.cuh"

namespace {

using namespace mr;

// What an adapter slot has at a site; rank 0: nothing. src/device/cuda/adapters.ts writes it.
struct Factors {
  const float *a, *b;  // [rank, a_cols], [rows, rank]
  int rank, a_cols;
  float scale;
  int pad;
};
static_assert(sizeof(Factors) == 32);

constexpr int most_rank = 1024, slot_ints = 5, slot_adapter = 3;

__device__ __forceinline__ float get(const void* p, int wide, int64_t i) {
  return wide ? static_cast<const float*>(p)[i] : load(static_cast<const bf16*>(p) + i);
}

}  // namespace

// A block a token; `slots_factors`: of this site, by adapter slot. The order of the sums is fixed by rank and k alone.
extern "C" __global__ void __launch_bounds__(256) mr_lora(const StepInfo* info, int rows, const void* x, int x_wide, int k,
                                                         const void* y, int y_wide, void* z, int z_wide, int m,
                                                         const int* sequences, const int* row_tokens, const int* slots,
                                                         const int* ints, const void* slots_factors, int row_start,
                                                         int col_start) {
  __shared__ float low[most_rank];
  wait();
  release();
  const int t = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  if (t >= (rows ? info->rows : info->tokens)) return;
  const int adapter = ints[slots[sequences[rows ? row_tokens[t] : t]] * slot_ints + slot_adapter];
  Factors f{};
  if (adapter >= 0) f = static_cast<const Factors*>(slots_factors)[adapter];
  for (int j = warp; j < f.rank; j += 8) {
    const float* a = f.a + int64_t(j) * f.a_cols + col_start;
    float sum = 0;
    for (int i = lane; i < k; i += 32) sum += a[i] * get(x, x_wide, int64_t(t) * k + i);
    sum = warp_sum(sum);
    if (lane == 0) low[j] = f.scale * sum;
  }
  __syncthreads();
  for (int r = threadIdx.x; r < m; r += 256) {
    const int64_t at = int64_t(t) * m + r;
    const float* b = f.b + int64_t(row_start + r) * f.rank;
    float sum = get(y, y_wide, at);
    for (int j = 0; j < f.rank; j++) sum += b[j] * low[j];
    if (z_wide) static_cast<float*>(z)[at] = sum;
    else store(static_cast<bf16*>(z) + at, sum);
  }
}
