// Owns: quantising: for each block the scales (and mins) whose rounded codes come nearest to the values, and the block's
// bytes. Every fit tries scales around the obvious one; for each it rounds, solves for the scale (and min) that suit those
// codes best by weighted least squares, and keeps the best. Source of the layouts: ggml-common.h.
#include "quantize.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "simd.h"

namespace mr {

namespace {

// Eight lanes in whatever the processor has; sums over lanes in one order.
using v8 = float __attribute__((vector_size(32)));

float sum(v8 v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }
v8 clamp(v8 v, float lo, float hi) {
  v = v < lo ? v8{} + lo : v;
  return v > hi ? v8{} + hi : v;
}
// To the nearest whole number, half to even; |v| below 2^22.
v8 nearest(v8 v) {
  const v8 big = v8{} + 12582912.0f;
  return (v + big) - big;
}

float through_f16(float x, uint8_t* at) {
  const f16 half = from_float<f16>(x);
  std::memcpy(at, &half, 2);
  return to_float(half);
}

template <int N>
struct Values {
  v8 v[N];
  static constexpr int count = 8 * N;
  float operator[](int i) const { return v[i / 8][i % 8]; }
};

template <int N>
Values<N> load(const float* x) {
  Values<N> out;
  std::memcpy(&out, x, sizeof out);
  return out;
}

template <int N>
void store_codes(const Values<N>& q, uint8_t* out, float offset) {
  for (int i = 0; i < 8 * N; i++) out[i] = uint8_t(int(q[i] + offset));
}

// Codes of x under x = d q + m.
template <int N>
Values<N> codes(const Values<N>& x, float d, float m, float lo, float hi) {
  const float inverse = d == 0 ? 0 : 1 / d;
  Values<N> q;
  for (int j = 0; j < N; j++) q.v[j] = nearest(clamp((x.v[j] - m) * inverse, lo - 1, hi + 1));
  for (int j = 0; j < N; j++) q.v[j] = clamp(q.v[j], lo, hi);
  return q;
}

// The d of x ≈ d q, q in [lo, hi], |lo| > hi: the value of largest magnitude gets about lo.
template <int N>
float fit_scale(const Values<N>& x, const Values<N>& w, float lo, float hi) {
  float largest = 0;
  for (int i = 0; i < x.count; i++)
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  if (std::fabs(largest) < 1e-30f) return 0;
  float best = -1, d = 0;
  for (int step = -9; step <= 9; step++) {
    const float inverse = (lo + 0.1f * float(step)) / largest;
    v8 xq{}, qq{};
    for (int j = 0; j < N; j++) {
      const v8 q = clamp(nearest(x.v[j] * inverse), lo, hi);
      xq += w.v[j] * x.v[j] * q;
      qq += w.v[j] * q * q;
    }
    const float a = sum(xq), b = sum(qq);
    // The error that is left is Σ w x² − a² / b.
    if (b > 0 && a * a > best * b) best = a * a / b, d = a / b;
  }
  return d;
}

struct Affine {
  float d, m;
};

// The d and m of x ≈ d q + m, q in [0, hi]; m at most 0 where the format says so. steps: how many scales are tried above
// and below the one that spans the values.
template <int N>
Affine fit_affine(const Values<N>& x, const Values<N>& w, float hi, bool below_zero, int steps) {
  float least = x[0], most = x[0];
  v8 sw{}, sx{};
  for (int i = 1; i < x.count; i++) least = std::min(least, x[i]), most = std::max(most, x[i]);
  for (int j = 0; j < N; j++) sw += w.v[j], sx += w.v[j] * x.v[j];
  const float sum_w = sum(sw), sum_x = sum(sx);
  if (below_zero) least = std::min(least, 0.0f);
  if (most - least < 1e-30f) return {0, below_zero ? least : sum_w > 0 ? sum_x / sum_w : least};
  Affine best{(most - least) / hi, least};
  float best_error = INFINITY;
  for (int step = -steps; step <= steps; step++) {
    const float inverse = (hi + 0.1f * float(step)) / (most - least);
    Values<N> q;
    v8 q1{}, q2{}, xq{};
    for (int j = 0; j < N; j++) {
      q.v[j] = clamp(nearest((x.v[j] - least) * inverse), 0, hi);
      q1 += w.v[j] * q.v[j];
      q2 += w.v[j] * q.v[j] * q.v[j];
      xq += w.v[j] * x.v[j] * q.v[j];
    }
    const float sum_q = sum(q1), sum_qq = sum(q2), sum_xq = sum(xq);
    const float det = sum_w * sum_qq - sum_q * sum_q;
    // Codes that are all alike say nothing of d and m apart.
    const bool apart = det > 1e-5f * sum_w * sum_qq;
    if (!apart && !below_zero) continue;
    Affine one{(sum_w * sum_xq - sum_x * sum_q) / det, (sum_qq * sum_x - sum_q * sum_xq) / det};
    if (below_zero && (!apart || one.m > 0)) one = {sum_qq > 0 ? sum_xq / sum_qq : 0, 0};
    v8 e{};
    for (int j = 0; j < N; j++) {
      const v8 off = x.v[j] - (one.d * q.v[j] + one.m);
      e += w.v[j] * off * off;
    }
    const float error = sum(e);
    if (error < best_error && one.d >= 0) best_error = error, best = one;
  }
  return best;
}

template <int N>
Values<N> ones() {
  Values<N> w;
  for (v8& v : w.v) v = v8{} + 1;
  return w;
}

template <int N>
Values<N> squares(const Values<N>& x) {
  Values<N> w;
  for (int j = 0; j < N; j++) w.v[j] = x.v[j] * x.v[j];
  return w;
}

void write_nibbles(const uint8_t* q, uint8_t* out) {
  for (int j = 0; j < 16; j++) out[j] = uint8_t((q[j] & 15) | (q[j + 16] << 4));
}

void write_fifth_bits(const uint8_t* q, uint8_t* out) {
  uint32_t high = 0;
  for (int j = 0; j < 32; j++) high |= uint32_t(q[j] >> 4) << j;
  std::memcpy(out, &high, 4);
}

template <int bits>
void block_symmetric(const float* x, uint8_t* out) {
  constexpr float half = 1 << (bits - 1);
  const auto values = load<4>(x);
  const float d = through_f16(fit_scale(values, ones<4>(), -half, half - 1), out);
  uint8_t q[32];
  store_codes(codes(values, d, 0, -half, half - 1), q, half);
  if (bits == 5) write_fifth_bits(q, out + 2);
  write_nibbles(q, out + (bits == 5 ? 6 : 2));
}

template <int bits>
void block_affine(const float* x, uint8_t* out) {
  constexpr float hi = (1 << bits) - 1;
  const auto values = load<4>(x);
  const Affine fit = fit_affine(values, ones<4>(), hi, false, 8);
  const float d = through_f16(fit.d, out), m = through_f16(fit.m, out + 2);
  uint8_t q[32];
  store_codes(codes(values, d, m, 0, hi), q, 0);
  if (bits == 5) write_fifth_bits(q, out + 4);
  write_nibbles(q, out + (bits == 5 ? 8 : 4));
}

void block_q8_0(const float* x, uint8_t* out) {
  float largest = 0;
  for (int i = 0; i < 32; i++) largest = std::max(largest, std::fabs(x[i]));
  const float d = through_f16(largest / 127, out);
  const auto q = codes(load<4>(x), d, 0, -127, 127);
  for (int i = 0; i < 32; i++) out[2 + i] = uint8_t(int8_t(q[i]));
}

// Eight 6-bit scales and eight mins in 12 bytes; formats/quant/dequantize.ts draws the layout.
void write_scales(const uint8_t* scale, const uint8_t* min, uint8_t* out) {
  for (int s = 0; s < 4; s++) {
    out[s] = uint8_t(scale[s] | (scale[s + 4] >> 4) << 6);
    out[s + 4] = uint8_t(min[s] | (min[s + 4] >> 4) << 6);
    out[s + 8] = uint8_t((scale[s + 4] & 15) | (min[s + 4] & 15) << 4);
  }
}

template <int bits>
void block_k_affine(const float* x, uint8_t* out) {
  constexpr float hi = (1 << bits) - 1;
  Values<4> values[8];
  Affine fit[8];
  float largest_d = 0, largest_m = 0;
  for (int s = 0; s < 8; s++) {
    values[s] = load<4>(x + 32 * s);
    v8 squares{};
    for (const v8& v : values[s].v) squares += v * v;
    // Large values matter more, small ones still do.
    const float rms = std::sqrt(sum(squares) / 32);
    Values<4> w;
    for (int j = 0; j < 4; j++) w.v[j] = rms + (values[s].v[j] < 0 ? -values[s].v[j] : values[s].v[j]);
    fit[s] = fit_affine(values[s], w, hi, true, bits == 4 ? 10 : 7);
    largest_d = std::max(largest_d, fit[s].d);
    largest_m = std::max(largest_m, -fit[s].m);
  }
  const float d = through_f16(largest_d / 63, out), m = through_f16(largest_m / 63, out + 2);
  uint8_t scale[8], min[8], q[256];
  for (int s = 0; s < 8; s++) {
    scale[s] = uint8_t(d > 0 ? std::clamp(std::nearbyint(fit[s].d / d), 0.0f, 63.0f) : 0);
    min[s] = uint8_t(m > 0 ? std::clamp(std::nearbyint(-fit[s].m / m), 0.0f, 63.0f) : 0);
    store_codes(codes(values[s], d * scale[s], -m * min[s], 0, hi), q + 32 * s, 0);
  }
  write_scales(scale, min, out + 4);
  uint8_t* nibbles = out + (bits == 5 ? 48 : 16);
  for (int run = 0; run < 4; run++)
    for (int j = 0; j < 32; j++)
      nibbles[32 * run + j] = uint8_t((q[64 * run + j] & 15) | (q[64 * run + 32 + j] << 4));
  if (bits != 5) return;
  for (int j = 0; j < 32; j++) {
    uint8_t high = 0;
    for (int s = 0; s < 8; s++) high |= uint8_t((q[32 * s + j] >> 4) << s);
    out[16 + j] = high;
  }
}

void block_q6_k(const float* x, uint8_t* out) {
  Values<2> values[16];
  float fit[16], largest = 0;
  for (int s = 0; s < 16; s++) {
    values[s] = load<2>(x + 16 * s);
    fit[s] = fit_scale(values[s], squares(values[s]), -32, 31);
    if (std::fabs(fit[s]) > std::fabs(largest)) largest = fit[s];
  }
  const float d = through_f16(-largest / 128, out + 208);
  uint8_t q[256];
  for (int s = 0; s < 16; s++) {
    const float scale = d == 0 ? 0 : std::clamp(std::nearbyint(fit[s] / d), -128.0f, 127.0f);
    out[192 + s] = uint8_t(int8_t(scale));
    store_codes(codes(values[s], d * scale, 0, -32, 31), q + 16 * s, 32);
  }
  for (int half = 0; half < 2; half++) {
    const uint8_t* from = q + 128 * half;
    for (int j = 0; j < 32; j++) {
      out[64 * half + j] = uint8_t((from[j] & 15) | (from[j + 64] << 4));
      out[64 * half + 32 + j] = uint8_t((from[j + 32] & 15) | (from[j + 96] << 4));
      out[128 + 32 * half + j] = uint8_t((from[j] >> 4) | (from[j + 32] >> 4) << 2 | (from[j + 64] >> 4) << 4 |
                                         (from[j + 96] >> 4) << 6);
    }
  }
}

template <class T>
void block_float(const float* x, uint8_t* out) {
  for (int i = 0; i < 256; i++) {
    const T value = from_float<T>(x[i]);
    std::memcpy(out + i * sizeof(T), &value, sizeof(T));
  }
}

struct Format {
  int values, bytes;
  void (*write)(const float*, uint8_t*);
};

Format format(Storage type) {
  switch (type) {
    case Storage::F32: return {256, 1024, block_float<float>};
    case Storage::F16: return {256, 512, block_float<f16>};
    case Storage::BF16: return {256, 512, block_float<bf16>};
    case Storage::Q4_0: return {32, 18, block_symmetric<4>};
    case Storage::Q4_1: return {32, 20, block_affine<4>};
    case Storage::Q5_0: return {32, 22, block_symmetric<5>};
    case Storage::Q5_1: return {32, 24, block_affine<5>};
    case Storage::Q8_0: return {32, 34, block_q8_0};
    case Storage::Q4_K: return {256, 144, block_k_affine<4>};
    case Storage::Q5_K: return {256, 176, block_k_affine<5>};
    case Storage::Q6_K: return {256, 210, block_q6_k};
    default: return {0, 0, nullptr};
  }
}

template <class T>
bool widen(const uint8_t* source, int64_t at, int count, float* out) {
  bool finite = true;
  for (int i = 0; i < count; i++) {
    T value;
    std::memcpy(&value, source + (at + i) * int64_t(sizeof(T)), sizeof(T));
    out[i] = to_float(value);
    finite &= std::isfinite(out[i]);
  }
  return finite;
}

bool widen(Storage from, const uint8_t* source, int64_t at, int count, float* out) {
  if (from == Storage::F32) return widen<float>(source, at, count, out);
  if (from == Storage::F16) return widen<f16>(source, at, count, out);
  return widen<bf16>(source, at, count, out);
}

}  // namespace

bool quantize(Storage from, const uint8_t* source, int64_t count, Storage to, uint8_t* out, int threads) {
  const Format f = format(to);
  const int64_t blocks = (count + f.values - 1) / f.values, run = 256;
  std::atomic<int64_t> next{0};
  std::atomic<bool> finite{true};
  auto work = [&] {
    float x[256];
    uint8_t tail[1024];
    for (int64_t b0; (b0 = next.fetch_add(run)) < blocks && finite;) {
      for (int64_t b = b0; b < std::min(b0 + run, blocks); b++) {
        // Only plain numbers, whose block here is a run of them, may end in a shorter one.
        const int n = int(std::min<int64_t>(f.values, count - b * f.values));
        if (!widen(from, source, b * f.values, n, x)) finite = false;
        if (n == f.values) {
          f.write(x, out + b * f.bytes);
          continue;
        }
        std::fill(x + n, x + f.values, 0.0f);
        f.write(x, tail);
        std::memcpy(out + b * f.bytes, tail, size_t(f.bytes / f.values * n));
      }
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; i++) others.emplace_back(work);
  work();
  for (std::thread& t : others) t.join();
  return finite;
}

}  // namespace mr
