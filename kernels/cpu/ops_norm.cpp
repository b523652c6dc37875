// Owns: norms of rows, each row by one thread in one fixed order.
#include <cmath>

#include "program.h"
#include "simd.h"

namespace mr {

namespace {

// Sum of f over the row: four running vectors, then the rest, then the lanes.
template <class F>
float sum_over(int d, F&& at) {
  vf a = vzero(), b = vzero(), c = vzero(), e = vzero();
  int i = 0;
  for (; i + 4 * VL <= d; i += 4 * VL) {
    a = vadd(a, at(i, VL)), b = vadd(b, at(i + VL, VL));
    c = vadd(c, at(i + 2 * VL, VL)), e = vadd(e, at(i + 3 * VL, VL));
  }
  for (; i + VL <= d; i += VL) a = vadd(a, at(i, VL));
  if (i < d) b = vadd(b, at(i, d - i));
  return vsum(vadd(vadd(a, b), vadd(c, e)));
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
    const float sum = sum_over(d, [&](int i, int n) {
      const vf v = load_some(in + i, n);
      return vmul(v, v);
    });
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
    const float mean = sum_over(d, [&](int i, int n) { return load_some(in + i, n); }) / float(d);
    const float sum = sum_over(d, [&](int i, int n) {
      const vf v = n == VL ? vsub(vload(in + i), vset(mean)) : vsub(vload_n(in + i, n, mean), vset(mean));
      return vmul(v, v);
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
