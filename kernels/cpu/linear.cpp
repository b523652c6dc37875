// Owns: the dispatch of linear_run to the kernels of a weight's type.
#include <algorithm>
#include "linear_layout.h"

namespace mr {

int64_t linear_scratch_bytes(int32_t max_cols) {
  (void)max_cols;  // panels are slabs of k
  return std::max({panel_scratch_bytes, tile_scratch_bytes, float_scratch_bytes});
}

void linear_run(const Weight& w, const void* act, int32_t tokens, int32_t t0, int32_t t1, int32_t g0, int32_t g1,
                float* y, int64_t ldy, const Epilogue& epilogue, void* scratch) {
  const RunArgs args{w, act, t0, t1, g0, g1, y, ldy, epilogue, scratch};
  if (bf16_for(w.act, tokens, w.cols)) return run_tiles(args);
  if (float_bytes(w.type)) return run_float(args);
  run_q8(args);
}

}  // namespace mr
