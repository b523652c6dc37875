// Owns: attention as textbooks write it, every score of a head in memory at once: what `millrace bench techniques` holds
// flash attention against. No program runs it.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>
#include <vector>

#include "api.h"
#include "simd.h"

namespace {

using namespace mr;

// out[i] += Σ_k a[i][k] · b[k], rows of `width` floats, a multiple of VL; row i sums its first `reach(i)` terms.
template <class Reach>
void multiply(const float* a, int64_t lda, const float* b, int rows, int width, float* out, int64_t ldo, Reach&& reach) {
  for (int i = 0; i < rows; i++) {
    float* to = out + i * ldo;
    std::fill_n(to, width, 0.0f);
    for (int k = 0, n = reach(i); k < n; k++) {
      const vf x = vset(a[i * lda + k]);
      const float* row = b + int64_t(k) * width;
      for (int c = 0; c < width; c += VL) vstore(to + c, vfma(x, vload(row + c), vload(to + c)));
    }
  }
}

void softmax(float* row, int n, int seen) {
  const float best = *std::max_element(row, row + seen);
  float sum = 0;
  for (int i = 0; i < seen; i++) sum += row[i] = std::exp(row[i] - best);
  for (int i = 0; i < seen; i++) row[i] /= sum;
  std::fill(row + seen, row + n, 0.0f);
}

}  // namespace

// q: [n, heads · dim], k, v: [n, kv_heads · dim], out as q; n and dim multiples of 16. Bytes of scores held at once.
double mr_naive_attention(const float* q, const float* k, const float* v, float* out, int n, int heads, int kv_heads,
                          int dim, int threads) noexcept {
  std::atomic<int> next{0};
  auto work = [&] {
    std::vector<float> scores(size_t(n) * n), qs(size_t(n) * dim), kt(size_t(dim) * n), vs(size_t(n) * dim);
    for (int h; (h = next.fetch_add(1)) < heads;) {
      const int g = h / (heads / kv_heads);
      for (int i = 0; i < n; i++)
        for (int c = 0; c < dim; c++) {
          qs[size_t(i) * dim + c] = q[(int64_t(i) * heads + h) * dim + c] / std::sqrt(float(dim));
          kt[size_t(c) * n + i] = k[(int64_t(i) * kv_heads + g) * dim + c];
          vs[size_t(i) * dim + c] = v[(int64_t(i) * kv_heads + g) * dim + c];
        }
      multiply(qs.data(), dim, kt.data(), n, n, scores.data(), n, [&](int) { return dim; });
      for (int i = 0; i < n; i++) softmax(scores.data() + int64_t(i) * n, n, i + 1);
      multiply(scores.data(), n, vs.data(), n, dim, out + int64_t(h) * dim, int64_t(heads) * dim,
               [](int i) { return i + 1; });
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; i++) others.emplace_back(work);
  work();
  for (std::thread& t : others) t.join();
  return 4.0 * n * n * std::min(threads, heads);
}
