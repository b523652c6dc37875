// Owns: y = x · Wᵀ for F32, F16 and BF16 weights over f32 activations: each output is one chain of fused multiply-adds in
// the order of k, whatever the shape of the call.
#include <algorithm>
#include "linear_layout.h"
#include "linear_simd.h"

namespace mr {
namespace {

// V groups from g on, T tokens from t on.
template <class W, int T, int V>
void tile(const RunArgs& a, int t, int g) {
  const int64_t cols = a.w.cols;
  const W* w = reinterpret_cast<const W*>(a.w.data) + g * cols * R;
  const float* x = static_cast<const float*>(a.act) + t * cols;
  vf y[T][V];
#pragma GCC unroll 8
  for (int i = 0; i < T; i++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) y[i][v] = vzero();
  constexpr int per_line = 64 / (int(sizeof(W)) * R) > 0 ? 64 / (int(sizeof(W)) * R) : 1;
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    vf m[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) m[v] = vload(w + (v * cols + k) * R);
#pragma GCC unroll 8
    for (int i = 0; i < T; i++) {
      const vf xi = vset(x[i * cols + k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) y[i][v] = vfma(m[v], xi, y[i][v]);
    }
  };
  int64_t k = 0;
  for (; k + per_line <= cols; k += per_line) {
    if constexpr (T <= 4)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++)
        __builtin_prefetch(reinterpret_cast<const char*>(w + (v * cols + k) * R) + 1024);
#pragma GCC unroll 4
    for (int i = 0; i < per_line; i++) step(k + i);
  }
  for (; k < cols; k++) step(k);
  for (int i = 0; i < T; i++)
    for (int v = 0; v < V; v++) {
      const int row = (g + v) * R, n = std::min(R, a.w.rows - row);
      store_rows(y[i][v], a.y + (t + i) * a.ldy, row, n, a.epilogue);
    }
}

// Tokens from t on, T at a time while there are as many; returns the first that is left.
template <class W, int T>
int tiles(const RunArgs& a, int t) {
  for (; t + T <= a.t1; t += T) {
    int g = a.g0;
    if constexpr (T <= 2)  // few tokens: more groups at once, for more sums in flight and more streams from memory
      for (; g + 4 <= a.g1; g += 4) tile<W, T, 4>(a, t, g);
    for (; g + 2 <= a.g1; g += 2) tile<W, T, 2>(a, t, g);
    if (g < a.g1) tile<W, T, 1>(a, t, g);
  }
  return t;
}

template <class W>
void run(const RunArgs& a) {
  // Six tokens by two groups fill the registers. Groups in the outer loop: their weights stay in the cache while the
  // tokens pass.
  int t = a.t0;
  for (int g = a.g0; g < a.g1; g += 2)
    t = tiles<W, 6>({a.w, a.act, a.t0, a.t1, g, std::min(g + 2, a.g1), a.y, a.ldy, a.epilogue, a.scratch}, a.t0);
  t = tiles<W, 4>(a, t);
  t = tiles<W, 2>(a, t);
  tiles<W, 1>(a, t);
}

}  // namespace

void run_float(const RunArgs& a) {
  if (a.w.type == Storage::F32) return run<float>(a);
  if (a.w.type == Storage::F16) return run<f16>(a);
  run<bf16>(a);
}

}  // namespace mr
