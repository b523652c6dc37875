// Owns: mixtures of experts: which experts a token goes to (route), and their MLPs. A token and one of its experts are an
// assignment; assignments stand sorted by expert, so that an expert's weights pass once for all its tokens:
//
//   sort and prepare the inputs | gate and up products, by expert | f(gate) · up, prepared | down products, by expert |
//   and in the region that follows (moeSum): each token's weighted sum, in the order in which its experts were chosen
//
// The products round inputs as `exact` ones do, whatever the processor: a row's bits depend on that row alone.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "program.h"
#include "simd.h"

namespace mr {

struct Moe {
  const float* x;
  int64_t ldx;
  const int32_t* experts;  // [n, used]
  const float* weights;    // [n, used]
  int used, cols, hidden, num_experts;
  bool rows;
  ActivateRow activate;
  float *middle, *out;  // by assignment: [gate | up], and what down gives
  struct Input {
    Act kind;
    void* at;
  };
  std::vector<Input> inputs;  // of gate and up, by kind
  Input down_input;
  struct Expert {
    Weight gate, up, down;
  };
  std::vector<Expert> list;

  // Of the step: assignment t · used + j stands at place[t · used + j], the token at token[place]; expert e has the places
  // start[e] … start[e + 1].
  std::vector<int32_t> place, token, start;

  int count(const Step& s) const { return (rows ? s.rows : s.tokens) * used; }
  void sort(const Step& s) {
    const int n = count(s);
    place.resize(size_t(n)), token.resize(size_t(n));
    start.assign(size_t(num_experts) + 1, 0);
    for (int a = 0; a < n; a++) start[size_t(experts[a]) + 1]++;
    for (int e = 0; e < num_experts; e++) start[size_t(e) + 1] += start[e];
    std::vector<int32_t> next(start.begin(), start.end() - 1);
    for (int a = 0; a < n; a++) {
      place[a] = next[experts[a]]++;
      token[place[a]] = a / used;
    }
  }
  const void* input_of(const Weight& w) const {
    for (const Input& i : inputs)
      if (i.kind == w.act) return i.at;
    return nullptr;
  }
};

namespace {

struct Route : TokenOp {
  const float* logits;
  int64_t ld;
  int count, used;
  const float* bias;
  int32_t* experts;
  float* weights;
  bool softmax, normalize;
  double scale;

  void run(const Step&, int t0, int t1, Thread&) override {
    std::vector<double> score(static_cast<size_t>(count));
    std::vector<char> taken(static_cast<size_t>(count));
    for (int64_t t = t0; t < t1; t++) {
      scores(logits + t * ld, score);
      std::fill(taken.begin(), taken.end(), 0);
      int32_t* chosen = experts + t * used;
      double sum = 0;
      for (int j = 0; j < used; j++) {
        const auto rank = [&](int i) { return score[i] + (bias ? double(bias[i]) : 0); };
        int best = -1;
        for (int i = 0; i < count; i++)
          if (!taken[i] && (best < 0 || rank(i) > rank(best))) best = i;
        taken[best] = 1;
        chosen[j] = best;
        sum += score[best];
      }
      for (int j = 0; j < used; j++) weights[t * used + j] = float(scale * score[chosen[j]] / (normalize ? sum : 1));
    }
  }
  void scores(const float* row, std::vector<double>& score) const {
    if (!softmax) {
      for (int i = 0; i < count; i++) score[i] = 1 / (1 + std::exp(-double(row[i])));
      return;
    }
    const double most = *std::max_element(row, row + count);
    double sum = 0;
    for (int i = 0; i < count; i++) sum += score[i] = std::exp(double(row[i]) - most);
    for (double& s : score) s /= sum;
  }
};

// Assignments [a0, a1) of a chunk.
struct ByAssignment : WideOp {
  std::shared_ptr<Moe> moe;
  int unit = 1;
  int cut(int n, int threads) {
    unit = std::max(1, (n + threads * 4 - 1) / (threads * 4));
    return (n + unit - 1) / unit;
  }
  int chunks(const Step& s, int threads) override { return cut(moe->count(s), threads); }
  void run(const Step& s, int chunk, Thread&) override {
    const int end = std::min((chunk + 1) * unit, moe->count(s));
    for (int a = chunk * unit; a < end; a++) one(a, moe->count(s));
  }
  virtual void one(int a, int n) = 0;
};

struct SortAndPrepare : ByAssignment {
  int chunks(const Step& s, int threads) override {
    moe->sort(s);
    return ByAssignment::chunks(s, threads);
  }
  void one(int a, int n) override {
    const float* row = moe->x + moe->token[a] * moe->ldx;
    for (const Moe::Input& in : moe->inputs) linear_prepare(in.kind, row - int64_t(a) * moe->cols, moe->cols, n, moe->cols, a, a + 1, in.at);
  }
};

struct ActivateAndPrepare : ByAssignment {
  void one(int a, int n) override {
    float* gate = moe->middle + int64_t(a) * 2 * moe->hidden;
    moe->activate(gate, gate + moe->hidden, gate, moe->hidden);
    linear_prepare(moe->down_input.kind, moe->middle, 2 * moe->hidden, n, moe->hidden, a, a + 1, moe->down_input.at);
  }
};

// Gate and up, or down, of all experts that have tokens.
struct Products : WideOp {
  std::shared_ptr<Moe> moe;
  bool down;
  struct Task {
    const Weight* weight;
    const void* act;
    float* y;
    int t0, t1, g0, g1;
  };
  std::vector<Task> tasks;

  int chunks(const Step&, int threads) override {
    tasks.clear();
    int64_t all = 0;
    each([&](const Weight& w, const void*, float*, int t0, int t1) { all += work(w, t1 - t0) * weight_groups(w); });
    const int64_t part = std::max<int64_t>(all / (threads * 8), 32 << 10);
    each([&](const Weight& w, const void* act, float* y, int t0, int t1) {
      const int64_t groups = weight_groups(w), cuts = std::clamp<int64_t>(work(w, t1 - t0) * groups / part, 1, groups);
      for (int64_t i = 0; i < cuts; i++) tasks.push_back({&w, act, y, t0, t1, int(groups * i / cuts), int(groups * (i + 1) / cuts)});
    });
    return int(tasks.size());
  }
  void run(const Step& s, int chunk, Thread& thread) override {
    const Task& k = tasks[chunk];
    linear_run(*k.weight, k.act, moe->count(s), k.t0, k.t1, k.g0, k.g1, k.y, down ? moe->cols : 2 * moe->hidden, {nullptr, false},
               thread.scratch);
  }
  template <class F>
  void each(F&& f) {
    for (int e = 0; e < moe->num_experts; e++) {
      const int t0 = moe->start[e], t1 = moe->start[size_t(e) + 1];
      if (t0 == t1) continue;
      const Moe::Expert& x = moe->list[e];
      if (down) {
        f(x.down, moe->down_input.at, moe->out, t0, t1);
      } else {
        f(x.gate, moe->input_of(x.gate), moe->middle, t0, t1);
        f(x.up, moe->input_of(x.up), moe->middle + moe->hidden, t0, t1);
      }
    }
  }
  static int64_t work(const Weight& w, int tokens) { return linear_group_bytes(w.type, w.cols) * tokens; }
};

struct Sum : TokenOp {
  std::shared_ptr<Moe> moe;
  float* y;
  int64_t ldy;

  void run(const Step&, int t0, int t1, Thread&) override {
    for (int t = t0; t < t1; t++) {
      float* to = y + t * ldy;
      for (int j = 0; j < moe->used; j++) {
        const int64_t a = int64_t(t) * moe->used + j;
        const float* from = moe->out + int64_t(moe->place[a]) * moe->cols;
        const vf w = vset(moe->weights[a]);
        int i = 0;
        for (; i + VL <= moe->cols; i += VL) vstore(to + i, j ? vfma(w, vload(from + i), vload(to + i)) : vmul(w, vload(from + i)));
        if (const int n = moe->cols - i)
          vstore_n(to + i, j ? vfma(w, vload_n(from + i, n), vload_n(to + i, n)) : vmul(w, vload_n(from + i, n)), n);
      }
    }
  }
};

Weight exact_weight(Program& p, Reader& r) {
  Weight w = p.weights.at(size_t(r.integer()));
  w.act = linear_act(w.type, true);
  p.need_scratch(linear_scratch_bytes(w.cols));
  return w;
}

}  // namespace

bool decode_moe(int code, bool rows, Reader& r, Program& p) {
  if (code != code_moe) return false;
  auto moe = std::make_shared<Moe>();
  moe->rows = rows;
  moe->x = p.floats(r.offset()), moe->ldx = r.offset();
  moe->experts = reinterpret_cast<const int32_t*>(p.floats(r.offset()));
  moe->weights = p.floats(r.offset());
  moe->used = r.integer(), moe->cols = r.integer(), moe->hidden = r.integer();
  moe->activate = activate_row_of(r.integer());
  moe->middle = p.floats(r.offset()), moe->out = p.floats(r.offset());
  const auto input = [&] {
    const Act kind = Act(r.integer());
    return Moe::Input{kind, p.workspace.data() + r.offset()};
  };
  moe->down_input = input();
  for (int n = r.integer(); n > 0; n--) moe->inputs.push_back(input());
  moe->num_experts = r.integer();
  for (int e = 0; e < moe->num_experts; e++) {
    Moe::Expert x;
    x.gate = exact_weight(p, r), x.up = exact_weight(p, r), x.down = exact_weight(p, r);
    if (!moe->input_of(x.gate) || !moe->input_of(x.up) || x.down.act != moe->down_input.kind)
      throw std::runtime_error("an expert's weights have no input");
    moe->list.push_back(x);
  }
  const auto add = [&](auto op) {
    op->moe = moe;
    p.ops.push_back(std::move(op));
  };
  add(std::make_unique<SortAndPrepare>());
  auto first = std::make_unique<Products>();
  first->down = false;
  add(std::move(first));
  add(std::make_unique<ActivateAndPrepare>());
  auto second = std::make_unique<Products>();
  second->down = true;
  add(std::move(second));
  p.last_moe = moe;
  return true;
}

std::unique_ptr<TokenOp> decode_route(int code, Reader& r, Program& p) {
  if (code == code_moe_sum) {
    auto op = std::make_unique<Sum>();
    op->moe = p.last_moe;
    op->y = p.floats(r.offset()), op->ldy = r.offset();
    return op;
  }
  if (code != code_route) return nullptr;
  auto op = std::make_unique<Route>();
  op->logits = p.floats(r.offset()), op->ld = r.offset();
  op->count = r.integer(), op->used = r.integer();
  op->bias = p.vector(r.offset());
  op->experts = reinterpret_cast<int32_t*>(p.floats(r.offset()));
  op->weights = p.floats(r.offset());
  op->softmax = r.integer() != 0, op->normalize = r.integer() != 0;
  op->scale = r.number();
  return op;
}

}  // namespace mr
