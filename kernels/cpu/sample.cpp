// Owns: the arithmetic of sample.h.
#include "sample.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "simd.h"

namespace mr {

namespace {

constexpr float minus_infinity = -__builtin_inff();

// Σ of lanes in f64, by lane; lanes are added at the end.
struct DoubleSum {
#if defined(__ARM_NEON)
  float64x2_t quarters[4] = {vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0)};
  void add(vf v) {
    quarters[0] = vaddq_f64(quarters[0], vcvt_f64_f32(vget_low_f32(v.a)));
    quarters[1] = vaddq_f64(quarters[1], vcvt_high_f64_f32(v.a));
    quarters[2] = vaddq_f64(quarters[2], vcvt_f64_f32(vget_low_f32(v.b)));
    quarters[3] = vaddq_f64(quarters[3], vcvt_high_f64_f32(v.b));
  }
  void store(double* to) const {
    for (int i = 0; i < 4; i++) vst1q_f64(to + 2 * i, quarters[i]);
  }
#else
  __m256d a = _mm256_setzero_pd(), b = _mm256_setzero_pd();
  void add8(__m256 v) {
    a = _mm256_add_pd(a, _mm256_cvtps_pd(_mm256_castps256_ps128(v)));
    b = _mm256_add_pd(b, _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
  }
  void add(vf v) {
#if defined(__AVX512F__)
    __m256 lo, hi;
    vsplit(v, lo, hi);
    add8(lo), add8(hi);
#else
    add8(v);
#endif
  }
  void store(double* to) const { _mm256_storeu_pd(to, a), _mm256_storeu_pd(to + 4, b); }
#endif
  double sum() const {
    double lanes[8];
    store(lanes);
    double s = 0;
    for (double x : lanes) s += x;
    return s;
  }
};

vf load_some(const float* p, int n, float fill) { return n >= VL ? vload(p) : vload_n(p, n, fill); }
void store_some(float* p, vf v, int n) { n >= VL ? vstore(p, v) : vstore_n(p, v, n); }

// Smallest index of the largest of n values; values are no NaN.
int32_t argmax(const float* p, int n) {
  vf best = vset(minus_infinity);
  for (int i = 0; i < n; i += VL) best = vmax(best, load_some(p + i, n - i, minus_infinity));
  const float m = vmaximum(best);
  for (int i = 0; i < n; i += VL)
    if (const uint32_t at = vgreater_equal(load_some(p + i, n - i, minus_infinity), vset(m)))
      return i + __builtin_ctz(at);
  return 0;
}

int32_t rank_of(const float* l, int n, int32_t id) {
  const vf x = vset(l[id]);
  int32_t rank = 0;
  for (int i = 0; i < n; i += VL) {
    const vf v = load_some(l + i, n - i, minus_infinity);
    if (i + VL <= id) {
      rank += __builtin_popcount(vgreater_equal(v, x));
    } else if (i > id) {
      rank += __builtin_popcount(vgreater(v, x));
    } else {
      const uint32_t before = (1u << (id - i)) - 1;
      rank += __builtin_popcount((vgreater_equal(v, x) & before) | (vgreater(v, x) & ~before));
    }
  }
  return rank;  // lanes past the end are −Infinity: not greater, and never before id
}

// The first k ids by value descending, then id ascending, of those over −Infinity.
void select(const float* a, int n, int k, std::vector<int32_t>& ids) {
  ids.clear();
  const auto before = [a](int32_t x, int32_t y) { return a[x] > a[y] || (a[x] == a[y] && x < y); };
  if (k <= 0) return;
  if (k > 256) {
    for (int i = 0; i < n; i++)
      if (a[i] > minus_infinity) ids.push_back(i);
    if (k < int(ids.size())) {
      std::nth_element(ids.begin(), ids.begin() + k, ids.end(), before);
      ids.resize(size_t(k));
    }
    std::sort(ids.begin(), ids.end(), before);
    return;
  }
  // A list of twice the length is filled with whatever beats the bar, then cut in half, which raises the bar.
  float bar = minus_infinity;
  const auto cut = [&] {
    std::nth_element(ids.begin(), ids.begin() + (k - 1), ids.end(), before);
    ids.resize(size_t(k));
    bar = a[ids[size_t(k - 1)]];
  };
  for (int i = 0; i < n; i += VL) {
    for (uint32_t at = vgreater(load_some(a + i, n - i, minus_infinity), vset(bar)); at; at &= at - 1) {
      ids.push_back(i + __builtin_ctz(at));
      if (int(ids.size()) == 2 * k) cut();
    }
  }
  if (int(ids.size()) > k) cut();
  std::sort(ids.begin(), ids.end(), before);
}

// Philox4x32-10; src/base/philox.ts is the specification.
double draw_uniform(uint32_t seed_low, uint32_t seed_high, uint32_t position) {
  uint32_t c[4] = {position, 0, 0, 0}, k[2] = {seed_low, seed_high};
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t(0xd2511f53) * c[0], b = uint64_t(0xcd9e8d57) * c[2];
    const uint32_t next[4] = {uint32_t(b >> 32) ^ c[1] ^ k[0], uint32_t(b), uint32_t(a >> 32) ^ c[3] ^ k[1], uint32_t(a)};
    std::copy_n(next, 4, c);
    k[0] += 0x9e3779b9, k[1] += 0xbb67ae85;
  }
  return (double(c[0]) * 2097152.0 + double(c[1] >> 11)) / 9007199254740992.0;
}

// To f32, within what f32 holds; NaN counts as −Infinity.
float bounded(double x) { return x != x ? minus_infinity : x > FLT_MAX ? FLT_MAX : float(x); }

// Steps 1 to 3 of the specification.
void adjust(const float* l, int n, const RowRequest& q, std::vector<float>& a) {
  a.assign(l, l + n);
  for (int j = 0; j < q.bias_count; j++) a[q.bias_ids[j]] = bounded(double(a[q.bias_ids[j]]) + q.bias_values[j]);
  if (q.mask) {
    for (int i = 0; i < n; i += 32) {
      uint32_t out = ~q.mask[i / 32];
      if (n - i < 32) out &= (1u << (n - i)) - 1;
      for (; out; out &= out - 1) a[i + __builtin_ctz(out)] = minus_infinity;
    }
  }
  const Slot& s = *q.slot;
  if (!s.counted) return;
  for (const auto& [id, count] : s.counts) {
    if (uint32_t(id) >= uint32_t(n)) continue;
    const double x = a[id], r = x > 0 ? x / s.repetition : x * s.repetition;
    a[id] = bounded(r - double(s.frequency) * count.output - (count.output > 0 ? double(s.presence) : 0.0));
  }
}

// The draw among all ids whose weight is at least min_p: running sums by stretches, then inside one.
int32_t draw_from_all(const float* a, int n, float best, double u, const Slot& s, std::vector<float>& w) {
  w.resize(size_t(n));
  const vf temperature = vset(s.temperature), top = vset(best), least = vset(s.min_p);
  std::vector<double> sums;
  double total = 0;
  for (int from = 0; from < n; from += stats_tokens) {
    const int end = std::min(from + stats_tokens, n);
    DoubleSum sum;
    for (int i = from; i < end; i += VL) {
      vf x = vexp(vdiv(vsub(load_some(a + i, end - i, minus_infinity), top), temperature));
      x = vselect_greater(least, x, vzero(), x);
      store_some(w.data() + i, x, end - i);
      sum.add(x);
    }
    sums.push_back(sum.sum());
    total += sums.back();
  }
  const double bar = u * total;
  double running = 0;
  int from = 0;
  for (size_t j = 0; j + 1 < sums.size() && running + sums[j] <= bar; j++, from += stats_tokens) running += sums[j];
  for (int i = from; i < n; i++) {
    running += w[i];
    if (running > bar && w[i] > 0) return i;
  }
  int32_t last = n - 1;
  while (last > 0 && !(w[last] > 0)) last--;
  return last;
}

double sum_of_weights(const float* a, int n, float best, float temperature) {
  DoubleSum sum;
  for (int i = 0; i < n; i += VL)
    sum.add(vexp(vdiv(vsub(load_some(a + i, n - i, minus_infinity), vset(best)), vset(temperature))));
  return sum.sum();
}

// Steps 5 to 7.
int32_t draw(const float* l, int n, const Stats& stats, const RowRequest& q, SampleScratch& scratch) {
  const Slot& s = *q.slot;
  const float* a = l;
  int32_t first = stats.best;
  if (q.bias_count > 0 || q.mask || s.counted) {
    adjust(l, n, q, scratch.adjusted);
    a = scratch.adjusted.data();
    first = argmax(a, n);
  }
  const float best = a[first];
  if (best == minus_infinity) return stats.best;
  if (s.temperature == 0) return first;
  const double u = draw_uniform(s.seed_low, s.seed_high, uint32_t(q.position));
  if (s.top_k <= 0 && s.top_p >= 1) return draw_from_all(a, n, best, u, s, scratch.weights);

  const auto weight = [&](int32_t id) { return std::exp((double(a[id]) - best) / s.temperature); };
  auto& ids = scratch.ids;
  if (s.top_k > 0) select(a, n, s.top_k, ids);
  if (s.top_p < 1) {
    double total = 0;
    if (s.top_k > 0)
      for (int32_t id : ids) total += weight(id);
    else
      total = sum_of_weights(a, n, best, s.temperature);
    // Without top_k: as many of the best as it takes, eightfold more each time.
    for (int k = 64;; k *= 8) {
      if (s.top_k <= 0) select(a, n, std::min(k, n), ids);
      double running = 0;
      size_t length = 0;
      while (length < ids.size() && (length == 0 || running < double(s.top_p) * total)) running += weight(ids[length++]);
      const bool reached = running >= double(s.top_p) * total;
      if (reached || s.top_k > 0 || k >= n) {
        ids.resize(length);
        break;
      }
    }
  }
  std::erase_if(ids, [&](int32_t id) { return weight(id) < s.min_p; });
  std::sort(ids.begin(), ids.end());
  double sum = 0, running = 0;
  for (int32_t id : ids) sum += weight(id);
  for (int32_t id : ids) {
    running += weight(id);
    if (running > u * sum) return id;
  }
  return ids.empty() ? first : ids.back();
}

}  // namespace

Stats finish_logits(float* l, int n, int32_t first, float scale, float softcap, const float* bias) {
  vf best = vset(minus_infinity);
  const bool plain = scale == 1 && !bias;
  for (int i = 0; i < n; i += VL) {
    vf v = load_some(l + i, n - i, minus_infinity);
    if (!plain) v = vfma(vset(scale), v, bias ? load_some(bias + i, n - i, 0) : vzero());
    if (softcap > 0) v = vmul(vset(softcap), vtanh(vdiv(v, vset(softcap))));
    // min and max give their second operand where the first is NaN.
    v = vmin(vmax(v, vset(minus_infinity)), vset(FLT_MAX));
    store_some(l + i, v, n - i);
    best = vmax(best, n - i >= VL ? v : load_some(l + i, n - i, minus_infinity));
  }
  Stats s{vmaximum(best), 0, 0};
  s.best = first + argmax(l, n);
  if (s.max == minus_infinity) return s;
  DoubleSum sum;
  for (int i = 0; i < n; i += VL) sum.add(vexp(vsub(load_some(l + i, n - i, minus_infinity), vset(s.max))));
  s.sum = sum.sum();
  return s;
}

Stats merge(const Stats* stretches, int count) {
  Stats all = stretches[0];
  for (int i = 1; i < count; i++)
    if (stretches[i].max > all.max) all.max = stretches[i].max, all.best = stretches[i].best;
  all.sum = 0;
  if (all.max == minus_infinity) return all;
  for (int i = 0; i < count; i++)
    if (stretches[i].max > minus_infinity) all.sum += stretches[i].sum * std::exp(double(stretches[i].max) - all.max);
  return all;
}

void sample_row(const float* l, int vocab, const Stats& stats, const RowRequest& q, RowResult& out,
                SampleScratch& scratch) {
  const double log_z = stats.sum > 0 ? std::log(stats.sum) : 0;
  const auto logprob = [&](int32_t id) {
    return l[id] == minus_infinity ? minus_infinity : float(double(l[id]) - stats.max - log_z);
  };
  out.token = q.target >= 0 ? q.target : draw(l, vocab, stats, q, scratch);
  out.logprob = logprob(out.token);
  out.rank = out.token == stats.best ? 0 : rank_of(l, vocab, out.token);
  if (q.top == 0) return;
  select(l, vocab, q.top, scratch.ids);
  for (int i = 0; i < q.top; i++) {
    const bool there = i < int(scratch.ids.size());
    out.top_ids[i] = there ? scratch.ids[i] : -1;
    out.top_logprobs[i] = there ? logprob(scratch.ids[i]) : minus_infinity;
  }
}

}  // namespace mr
