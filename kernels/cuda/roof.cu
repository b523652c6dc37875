// Owns: what this GPU can at best: reading memory (`bench ops` measures the kernels against it).
#include <stdint.h>

// Reads n times 64 bytes, each block a stretch of its own; `out` is written only if all that was read is one magic number.
extern "C" __global__ void __launch_bounds__(512) mr_roof_read(const uint4* from, int64_t n, uint32_t* out) {
  const int64_t threads = int64_t(gridDim.x) * blockDim.x, at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  uint32_t seen = 0;
  for (int64_t i = at; i < n; i += threads) {
    uint4 v[4];
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = __ldcs(from + i + j * n);
#pragma unroll
    for (int j = 0; j < 4; j++) seen |= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (seen == 0x9e3779b9u) *out = seen;
}
