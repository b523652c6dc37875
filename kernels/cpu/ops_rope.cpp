// Owns: rotary embedding and putting keys and values into their pages.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "program.h"
#include "simd.h"

namespace mr {

namespace {

// cos and sin of a token's angles: [tokens, cos(half) | sin(half)], computed once a step for all layers that share them.
struct RopeTable : TokenOp {
  float* table;
  int half;
  double magnitude;
  std::vector<double> inv_freq;

  void run(const Step& s, int t0, int t1, Thread&) override {
    for (int t = t0; t < t1; t++) {
      float* row = table + int64_t(t) * 2 * half;
      for (int i = 0; i < half; i++) {
        const double angle = s.positions[t] * inv_freq[i];
        row[i] = float(std::cos(angle) * magnitude);
        row[half + i] = float(std::sin(angle) * magnitude);
      }
    }
  }
};

struct Rope : TokenOp {
  const float* x;
  float* y;
  int64_t ldx, ldy;
  int heads, dim, rotary;
  const float* table;
  bool interleaved;

  void run(const Step&, int t0, int t1, Thread&) override {
    const int half = rotary / 2;
    for (int64_t t = t0; t < t1; t++) {
      const float *cos = table + t * rotary, *sin = cos + half;
      for (int h = 0; h < heads; h++) {
        const float* in = x + t * ldx + int64_t(h) * dim;
        float* out = y + t * ldy + int64_t(h) * dim;
        if (interleaved)
          turn_pairs(in, out, cos, sin, half);
        else
          turn_halves(in, out, cos, sin, half);
        if (in != out)
          for (int i = rotary; i < dim; i++) out[i] = in[i];
      }
    }
  }
  static void turn_pairs(const float* in, float* out, const float* cos, const float* sin, int half) {
    for (int i = 0; i < half; i++) {
      const float a = in[2 * i], b = in[2 * i + 1];
      out[2 * i] = std::fma(a, cos[i], -(b * sin[i]));
      out[2 * i + 1] = std::fma(b, cos[i], a * sin[i]);
    }
  }
  static void turn_halves(const float* in, float* out, const float* cos, const float* sin, int half) {
    int i = 0;
    for (; i + VL <= half; i += VL) {
      const vf a = vload(in + i), b = vload(in + half + i), c = vload(cos + i), s = vload(sin + i);
      vstore(out + i, vsub(vmul(a, c), vmul(b, s)));
      vstore(out + half + i, vfma(b, c, vmul(a, s)));
    }
    if (const int n = half - i) {
      const vf a = vload_n(in + i, n), b = vload_n(in + half + i, n), c = vload_n(cos + i, n), s = vload_n(sin + i, n);
      vstore_n(out + i, vsub(vmul(a, c), vmul(b, s)), n);
      vstore_n(out + half + i, vfma(b, c, vmul(a, s)), n);
    }
  }
};

// Codes of x's n numbers, `stride` apart: whole multiples of the scale, the largest magnitude being 127 of it. A row with a
// number that is not finite is not a number anywhere. The scale.
float quantize_row(const float* x, int n, int8_t* codes, int stride) {
  float most = 0;
  bool finite = true;
  for (int i = 0; i < n; i++) {
    most = std::max(most, std::fabs(x[i]));
    finite = finite && std::isfinite(x[i]);
  }
  for (int i = 0; i < n; i++)
    codes[int64_t(i) * stride] = finite && most > 0 ? int8_t(std::nearbyint(x[i] / most * 127)) : 0;
  return finite ? most / 127 : __builtin_nanf("");
}

template <class T>
struct CacheWrite : TokenOp {
  Cache cache;
  const float *k, *v;
  int64_t ldk, ldv;

  void run(const Step& s, int t0, int t1, Thread&) override {
    const PageTable& table = s.pages[cache.group];
    for (int64_t t = t0; t < t1; t++) {
      const int seq = s.sequence[t], position = s.positions[t], at = position % page_tokens;
      const int page = table.ids[table.start[seq] + position / page_tokens - table.first[seq]];
      for (int h = 0; h < cache.heads; h++) {
        T* tile = reinterpret_cast<T*>(cache.tile(page, h));
        const float *kh = k + t * ldk + int64_t(h) * cache.dim, *vh = v + t * ldv + int64_t(h) * cache.v_dim;
        T* row = tile + cache.dim * page_tokens + at * cache.v_padded;
        if constexpr (std::is_same_v<T, int8_t>) {
          uint8_t* bytes = reinterpret_cast<uint8_t*>(tile);
          cache.key_scales(bytes)[at] = quantize_row(kh, cache.dim, tile + at, page_tokens);
          cache.value_scales(bytes)[at] = quantize_row(vh, cache.v_dim, row, 1);
          std::fill(row + cache.v_dim, row + cache.v_padded, 0);
        } else {
          for (int i = 0; i < cache.dim; i++) tile[i * page_tokens + at] = from_float<T>(kh[i]);
          for (int i = 0; i < cache.v_dim; i++) row[i] = from_float<T>(vh[i]);
          for (int i = cache.v_dim; i < cache.v_padded; i++) row[i] = from_float<T>(0);
        }
      }
    }
  }
};

template <class T>
std::unique_ptr<TokenOp> cache_write(Reader& r, Program& p) {
  auto op = std::make_unique<CacheWrite<T>>();
  op->cache = p.caches.at(size_t(r.integer()));
  op->k = p.floats(r.offset()), op->ldk = r.offset();
  op->v = p.floats(r.offset()), op->ldv = r.offset();
  return op;
}

}  // namespace

std::unique_ptr<TokenOp> decode_rope(int code, Reader& r, Program& p) {
  if (code == code_rope_table) {
    auto op = std::make_unique<RopeTable>();
    op->table = p.floats(r.offset());
    op->half = r.integer();
    op->magnitude = r.number();
    for (int i = 0; i < op->half; i++) op->inv_freq.push_back(r.number());
    return op;
  }
  if (code == code_rope) {
    auto op = std::make_unique<Rope>();
    op->x = p.floats(r.offset()), op->ldx = r.offset();
    op->y = p.floats(r.offset()), op->ldy = r.offset();
    op->heads = r.integer(), op->dim = r.integer(), op->rotary = r.integer();
    op->table = p.floats(r.offset());
    op->interleaved = r.integer() != 0;
    return op;
  }
  if (code == code_cache_write) {
    if (p.kv_type == KvType::f32) return cache_write<float>(r, p);
    if (p.kv_type == KvType::f16) return cache_write<f16>(r, p);
    if (p.kv_type == KvType::q8) return cache_write<int8_t>(r, p);
    return cache_write<bf16>(r, p);
  }
  return nullptr;
}

}  // namespace mr
