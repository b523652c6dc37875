// Owns: norms of rows, each row by one thread in one fixed order.
#include <algorithm>
#include <cmath>

#include "program.h"
#include "simd.h"

namespace mr {

namespace {

// Sum of f over the row, in eight lanes on every instruction set: four running vectors, then the rest, then the lanes.
// What the row lacks in its last vector is `fill`, of which f must make zero.
template <class F>
float sum_over(const float* row, int d, float fill, F&& f) {
  v8f s[4] = {set8(0), set8(0), set8(0), set8(0)};
  int i = 0;
  for (; i + 32 <= d; i += 32)
    for (int j = 0; j < 4; j++) s[j] = add8(s[j], f(load8(row + i + 8 * j)));
  for (; i + 8 <= d; i += 8) s[0] = add8(s[0], f(load8(row + i)));
  if (i < d) {
    float rest[8];
    std::fill(std::copy(row + i, row + d, rest), rest + 8, fill);
    s[1] = add8(s[1], f(load8(rest)));
  }
  return vsum(add8(add8(s[0], s[1]), add8(s[2], s[3])));
}

vf load_some(const float* p, int n) { return n == VL ? vload(p) : vload_n(p, n); }

void store_some(float* p, vf v, int n) {
  if (n == VL)
    vstore(p, v);
  else
    vstore_n(p, v, n);
}

struct RmsNorm : TokenOp {
  const float* x;
  float* y;
  int64_t ldx, ldy;
  int d, groups;
  const float* weight;
  float eps;

  void run(const Step&, int t0, int t1, Thread&) override {
    for (int64_t t = t0; t < t1; t++)
      for (int g = 0; g < groups; g++) row(x + t * ldx + int64_t(g) * d, y + t * ldy + int64_t(g) * d);
  }
  void row(const float* in, float* out) const {
    const float sum = sum_over(in, d, 0, [](v8f v) { return mul8(v, v); });
    const vf scale = vset(1.0f / std::sqrt(sum / float(d) + eps));
    for (int i = 0; i < d; i += VL) {
      const int n = d - i < VL ? d - i : VL;
      store_some(out + i, vmul(vmul(load_some(in + i, n), scale), load_some(weight + i, n)), n);
    }
  }
};

struct LayerNorm : TokenOp {
  const float* x;
  float* y;
  int64_t ldx, ldy;
  int d;
  const float *weight, *bias;
  float eps;

  void run(const Step&, int t0, int t1, Thread&) override {
    for (int64_t t = t0; t < t1; t++) row(x + t * ldx, y + t * ldy);
  }
  void row(const float* in, float* out) const {
    const float mean = sum_over(in, d, 0, [](v8f v) { return v; }) / float(d);
    const float sum = sum_over(in, d, mean, [mean](v8f v) {
      v = sub8(v, set8(mean));
      return mul8(v, v);
    });
    const vf scale = vset(1.0f / std::sqrt(sum / float(d) + eps));
    for (int i = 0; i < d; i += VL) {
      const int n = d - i < VL ? d - i : VL;
      const vf v = vmul(vmul(vsub(load_some(in + i, n), vset(mean)), scale), load_some(weight + i, n));
      store_some(out + i, bias ? vadd(v, load_some(bias + i, n)) : v, n);
    }
  }
};

}  // namespace

std::unique_ptr<TokenOp> decode_norm(int code, Reader& r, Program& p) {
  if (code == code_rms_norm) {
    auto op = std::make_unique<RmsNorm>();
    op->x = p.floats(r.offset()), op->ldx = r.offset();
    op->y = p.floats(r.offset()), op->ldy = r.offset();
    op->d = r.integer(), op->groups = r.integer();
    op->weight = p.vector(r.offset());
    op->eps = r.real();
    return op;
  }
  if (code == code_layer_norm) {
    auto op = std::make_unique<LayerNorm>();
    op->x = p.floats(r.offset()), op->ldx = r.offset();
    op->y = p.floats(r.offset()), op->ldy = r.offset();
    op->d = r.integer();
    op->weight = p.vector(r.offset()), op->bias = p.vector(r.offset());
    op->eps = r.real();
    return op;
  }
  return nullptr;
}

}  // namespace mr
