// Owns: what adapters add to products: z = y + scale · B (A x) for the tokens of sequences that have one.
#include <algorithm>

#include "program.h"
#include "simd.h"

namespace mr {

namespace {

struct Lora : TokenOp {
  Program* program;
  const float *x, *y;
  float* z;
  int64_t ldx, ldy, ldz;
  int k, m, site, row_start, col_start;

  void run(const Step& s, int t0, int t1, Thread&) override {
    for (int t = t0; t < t1; t++) {
      float* out = z + t * ldz;
      if (z != y) std::copy_n(y + t * ldy, m, out);
      const int adapter = program->slots[s.slots[s.sequence[t]]].adapter;
      if (adapter < 0) continue;
      const auto& sites = program->adapters[adapter];
      if (site < int(sites.size())) add(sites[site], x + t * ldx, out);
    }
  }

  // One factor of the rank after another, each a dot product and a multiple of a row: the order is always the same.
  void add(const Factors& f, const float* in, float* out) const {
    for (int j = 0; j < f.rank; j++) {
      const float* a = f.a.data() + int64_t(j) * f.a_cols + col_start;
      EightLanes dot;
      int i = 0;
      for (; i + VL <= k; i += VL) dot.add(vmul(vload(a + i), vload(in + i)));
      if (i < k) dot.add(vmul(vload_n(a + i, k - i), vload_n(in + i, k - i)));
      const float* b = f.b.data() + int64_t(j) * f.b_rows + row_start;
      const vf low = vset(f.scale * dot.sum());
      int r = 0;
      for (; r + VL <= m; r += VL) vstore(out + r, vfma(low, vload(b + r), vload(out + r)));
      if (r < m) vstore_n(out + r, vfma(low, vload_n(b + r, m - r), vload_n(out + r, m - r)), m - r);
    }
  }
};

}  // namespace

std::unique_ptr<TokenOp> decode_lora(int code, Reader& r, Program& p) {
  if (code != code_lora) return nullptr;
  auto op = std::make_unique<Lora>();
  op->program = &p;
  op->x = p.floats(r.offset()), op->ldx = r.offset(), op->k = r.integer();
  op->y = p.floats(r.offset()), op->ldy = r.offset();
  op->z = p.floats(r.offset()), op->ldz = r.offset(), op->m = r.integer();
  op->site = r.integer(), op->row_start = r.integer(), op->col_start = r.integer();
  return op;
}

}  // namespace mr
