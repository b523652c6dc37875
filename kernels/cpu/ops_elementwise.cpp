// Owns: what is done to each value or row by itself: embed, gather, add, activations, and preparing a row for the matrix
// kernels.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "program.h"
#include "simd.h"

namespace mr {

namespace {

enum Kind { silu, gelu, gelu_tanh, relu, relu2 };

// Abramowitz and Stegun 7.1.26; absolute error below 2e-7.
vf verf(vf x) {
  const vf a = vabs(x), t = vdiv(vset(1.0f), vfma(a, vset(0.3275911f), vset(1.0f)));
  vf p = vset(1.061405429f);
  p = vfma(p, t, vset(-1.453152027f));
  p = vfma(p, t, vset(1.421413741f));
  p = vfma(p, t, vset(-0.284496736f));
  p = vfma(p, t, vset(0.254829592f));
  const vf e = vexp(vsub(vzero(), vmul(a, a)));
  return vcopysign(vsub(vset(1.0f), vmul(vmul(p, t), e)), x);
}

template <int kind>
vf activate(vf x) {
  if constexpr (kind == silu) return vmul(x, vsigmoid(x));
  if constexpr (kind == gelu) return vmul(vmul(vset(0.5f), x), vadd(vset(1.0f), verf(vmul(x, vset(0.70710678118654752f)))));
  if constexpr (kind == gelu_tanh) {
    const vf inner = vmul(vset(0.79788456080286536f), vfma(vmul(vset(0.044715f), vmul(x, x)), x, x));
    return vmul(vmul(vset(0.5f), x), vadd(vset(1.0f), vtanh(inner)));
  }
  if constexpr (kind == relu) return vmax(x, vzero());
  const vf r = vmax(x, vzero());
  return vmul(r, r);
}

// y = f(x) · up, or f(x) where up is null.
template <int kind>
void activate_row(const float* x, const float* up, float* y, int d) {
  int i = 0;
  for (; i + VL <= d; i += VL) {
    const vf a = activate<kind>(vload(x + i));
    vstore(y + i, up ? vmul(a, vload(up + i)) : a);
  }
  if (const int n = d - i) {
    const vf a = activate<kind>(vload_n(x + i, n));
    vstore_n(y + i, up ? vmul(a, vload_n(up + i, n)) : a, n);
  }
}

}  // namespace

ActivateRow activate_row_of(int kind) {
  static constexpr ActivateRow rows[] = {activate_row<silu>, activate_row<gelu>, activate_row<gelu_tanh>,
                                         activate_row<relu>, activate_row<relu2>};
  if (kind < 0 || kind >= 5) throw std::runtime_error("unknown activation");
  return rows[kind];
}

namespace {

struct Embed : TokenOp {
  bool by_position;
  float* y;
  int width;
  float scale;
  std::vector<Weight> pieces;

  void run(const Step& s, int t0, int t1, Thread&) override {
    for (int t = t0; t < t1; t++) {
      int row = by_position ? s.positions[t] : s.ids[t];
      float* out = y + int64_t(t) * width;
      for (const Weight& w : pieces) {
        if (row < w.rows) {
          linear_unpack_row(w, row, out);
          break;
        }
        row -= w.rows;
      }
      if (scale != 1)
        for (int i = 0; i < width; i++) out[i] *= scale;
    }
  }
};

struct Prepare : TokenOp {
  Act kind;
  const float* x;
  int64_t ldx;
  int cols;
  void* act;
  bool rows;

  void run(const Step& s, int t0, int t1, Thread&) override {
    linear_prepare(kind, x, ldx, rows ? s.rows : s.tokens, cols, t0, t1, act);
  }
};

struct Add : TokenOp {
  const float *a, *b;
  float* y;
  int64_t lda, ldb, ldy;
  int width;
  float alpha, beta;

  void run(const Step&, int t0, int t1, Thread&) override {
    const vf va = vset(alpha), vb = vset(beta);
    for (int64_t t = t0; t < t1; t++) {
      const float *pa = a + t * lda, *pb = b + t * ldb;
      float* py = y + t * ldy;
      int i = 0;
      for (; i + VL <= width; i += VL) vstore(py + i, vfma(va, vload(pa + i), vmul(vb, vload(pb + i))));
      if (const int n = width - i) vstore_n(py + i, vfma(va, vload_n(pa + i, n), vmul(vb, vload_n(pb + i, n))), n);
    }
  }
};

// y = f(gate) · up; without up, f(gate).
struct Activate : TokenOp {
  const float *gate, *up;
  float* y;
  int64_t ld_gate, ld_up, ldy;
  int width;
  ActivateRow row;

  void run(const Step&, int t0, int t1, Thread&) override {
    for (int64_t t = t0; t < t1; t++) row(gate + t * ld_gate, up ? up + t * ld_up : nullptr, y + t * ldy, width);
  }
};

struct Gather : TokenOp {
  const float* x;
  int64_t ldx;
  float* y;
  int width;

  void run(const Step& s, int t0, int t1, Thread&) override {
    for (int64_t t = t0; t < t1; t++)
      std::copy_n(x + int64_t(s.row_tokens[t]) * ldx, width, y + t * width);
  }
};

}  // namespace

std::unique_ptr<TokenOp> decode_elementwise(int code, Reader& r, Program& p) {
  switch (code) {
    case code_embed: {
      auto op = std::make_unique<Embed>();
      op->by_position = r.integer() != 0;
      op->y = p.floats(r.offset());
      op->width = r.integer();
      op->scale = r.real();
      for (int n = r.integer(); n > 0; n--) op->pieces.push_back(p.weights.at(size_t(r.integer())));
      return op;
    }
    case code_prepare: {
      auto op = std::make_unique<Prepare>();
      op->kind = Act(r.integer());
      op->x = p.floats(r.offset());
      op->ldx = r.offset();
      op->cols = r.integer();
      op->act = p.workspace.data() + r.offset();
      op->rows = r.integer() != 0;
      return op;
    }
    case code_add: {
      auto op = std::make_unique<Add>();
      op->a = p.floats(r.offset()), op->lda = r.offset();
      op->b = p.floats(r.offset()), op->ldb = r.offset();
      op->y = p.floats(r.offset()), op->ldy = r.offset();
      op->width = r.integer();
      op->alpha = r.real(), op->beta = r.real();
      return op;
    }
    case code_activation:
    case code_gated: {
      auto op = std::make_unique<Activate>();
      op->gate = p.floats(r.offset()), op->ld_gate = r.offset();
      op->up = nullptr, op->ld_up = 0;
      if (code == code_gated) op->up = p.floats(r.offset()), op->ld_up = r.offset();
      op->y = p.floats(r.offset()), op->ldy = r.offset();
      op->width = r.integer();
      op->row = activate_row_of(r.integer());
      return op;
    }
    case code_gather: {
      auto op = std::make_unique<Gather>();
      op->x = p.floats(r.offset()), op->ldx = r.offset();
      op->y = p.floats(r.offset());
      op->width = r.integer();
      return op;
    }
    default:
      return nullptr;
  }
}

}  // namespace mr
