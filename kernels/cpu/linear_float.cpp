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

// More tokens: a slab of k of a few groups, widened once, stays in the first-level cache while all tokens of a run pass. The
// sums go on from slab to slab in memory: the same chains.
constexpr int few_tokens = 24;  // up to which widening the weights once does not pay
constexpr int slab_groups = 4, slab_cols = 1024 / R, slab_tokens = 192;
constexpr int64_t slab_bytes = int64_t(slab_groups) * slab_cols * VB;
constexpr int64_t sums_bytes = int64_t(slab_tokens) * slab_groups * VB;

// T tokens by V groups: n columns from x (rows `stride` apart) and w (groups slab_cols apart); y[t][slab_groups][R].
template <int T, int V>
void slab_tile(const float* x, int64_t stride, const float* w, int n, float* sums, bool first, Ahead& next) {
  vf y[T][V];
#pragma GCC unroll 8
  for (int i = 0; i < T; i++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) y[i][v] = first ? vzero() : vload(sums + (i * slab_groups + v) * R);
  for (int k = 0; k < n;) {
    next.step();
    for (const int end = std::min(k + 8, n); k < end; k++, w += R) {
      vf m[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) m[v] = vload(w + v * slab_cols * R);
#pragma GCC unroll 8
      for (int i = 0; i < T; i++) {
        const vf xi = vset(x[i * stride + k]);
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) y[i][v] = vfma(m[v], xi, y[i][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < T; i++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) vstore(sums + (i * slab_groups + v) * R, y[i][v]);
}

// `groups` groups from g on, tokens [t0, t1).
template <class W>
void slab_run(const RunArgs& a, int t0, int t1, int g, int groups) {
  float* panel = static_cast<float*>(a.scratch);
  float* sums = panel + slab_bytes / 4;
  const int cols = a.w.cols;
  const W* w = reinterpret_cast<const W*>(a.w.data) + int64_t(g) * cols * R;
  const float* x = static_cast<const float*>(a.act);
  const int64_t group = int64_t(cols) * R;
  for (int k0 = 0; k0 < cols; k0 += slab_cols) {
    const int n = std::min(slab_cols, cols - k0);
    for (int v = 0; v < groups; v++)
      for (int k = 0; k < n; k++) vstore(panel + (v * slab_cols + k) * R, vload(w + v * group + (k0 + k) * R));
    // What comes next: the slab behind this one, or the first of the groups that follow.
    const auto* ahead = reinterpret_cast<const uint8_t*>(k0 + n < cols ? w + (k0 + n) * R : w + groups * group);
    Ahead next{ahead, ahead + slab_cols * R * int64_t(sizeof(W)), group * int64_t(sizeof(W)), groups};
    int t = t0;
    const auto pass = [&]<int T>() {
      for (; t + T <= t1; t += T) {
        const float* xt = x + int64_t(t) * cols + k0;
        float* at = sums + int64_t(t - t0) * slab_groups * R;
        int v = 0;
        const auto some = [&]<int V>() {
          slab_tile<T, V>(xt, cols, panel + v * slab_cols * R, n, at + v * R, k0 == 0, next);
        };
        for (; v + 2 <= groups; v += 2) some.template operator()<2>();
        if (v < groups) some.template operator()<1>();
      }
    };
    pass.template operator()<6>();
    pass.template operator()<4>();
    pass.template operator()<2>();
    pass.template operator()<1>();
  }
  for (int t = t0; t < t1; t++)
    for (int v = 0; v < groups; v++) {
      const int row = (g + v) * R;
      store_rows(vload(sums + (int64_t(t - t0) * slab_groups + v) * R), a.y + t * a.ldy, row,
                 std::min(R, a.w.rows - row), a.epilogue);
    }
}

template <class W>
void run(const RunArgs& a) {
  const int tokens = a.t1 - a.t0;
  if (tokens <= few_tokens) {
    // Groups in the outer loop: their weights stay in the cache while the tokens pass.
    const int some = tokens <= 4 ? a.g1 - a.g0 : 2;
    for (int g = a.g0; g < a.g1; g += some) {
      const RunArgs part{a.w, a.act, a.t0, a.t1, g, std::min(g + some, a.g1), a.y, a.ldy, a.epilogue, a.scratch};
      tiles<W, 1>(part, tiles<W, 2>(part, tiles<W, 4>(part, a.t0)));
    }
    return;
  }
  const int runs = (tokens + slab_tokens - 1) / slab_tokens, each = (tokens + runs - 1) / runs;
  for (int g = a.g0; g < a.g1; g += slab_groups)
    for (int t = a.t0; t < a.t1; t += each)
      slab_run<W>(a, t, std::min(t + each, a.t1), g, std::min(slab_groups, a.g1 - g));
}

}  // namespace

const int64_t float_scratch_bytes = slab_bytes + sums_bytes;

void run_float(const RunArgs& a) {
  if (a.w.type == Storage::F32) return run<float>(a);
  if (a.w.type == Storage::F16) return run<f16>(a);
  run<bf16>(a);
}

}  // namespace mr
