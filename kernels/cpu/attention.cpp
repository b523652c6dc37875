// Owns: flash attention over pages: prefill and decode, any mixture. A task is some tokens of one sequence and one
// key/value head; its rows (tokens × the heads that share the key/value head) go through each block of 64 positions six
// at a time, so that they share its loads. Nothing of size n² is kept.
#include "attention.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <type_traits>

#include "simd.h"

namespace mr {

namespace {

constexpr int max_rows_at_once = 6;
constexpr int tiles_a_block = block_tokens / page_tokens;
constexpr int vectors_a_tile = page_tokens / VL;
constexpr float minus_infinity = -__builtin_inff();

// One row's running softmax: value = acc / l, scores relative to m.
struct Rows {
  float *q, *m, *l, *acc, *total_m, *total_l, *total;
  int32_t *lo, *hi;
  int count, dim, v_padded;
};

int64_t rows_bytes(int count, int dim, int v_padded) {
  return int64_t(count) * (dim + 2 * v_padded + 6) * 4 + 64 * 9;
}

Rows carve(uint8_t* at, int count, int dim, int v_padded) {
  auto take = [&](int64_t n) {
    auto* p = at;
    at += (n * 4 + 63) & ~int64_t(63);
    return reinterpret_cast<float*>(p);
  };
  Rows r;
  r.count = count, r.dim = dim, r.v_padded = v_padded;
  r.q = take(int64_t(count) * dim);
  r.acc = take(int64_t(count) * v_padded), r.total = take(int64_t(count) * v_padded);
  r.m = take(count), r.l = take(count), r.total_m = take(count), r.total_l = take(count);
  r.lo = reinterpret_cast<int32_t*>(take(count)), r.hi = reinterpret_cast<int32_t*>(take(count));
  return r;
}

// sum[r][v] += a(r) · b(v). The fewer of the two stay in registers: with 12 sums, 16 registers hold no more.
template <int R, int V, class A, class B>
inline void multiply_add(vf (&sum)[R][V], A&& a, B&& b) {
  if constexpr (R < V) {
    vf x[R];
    for (int r = 0; r < R; r++) x[r] = a(r);
    for (int v = 0; v < V; v++) {
      const vf y = b(v);
      for (int r = 0; r < R; r++) sum[r][v] = vfma(x[r], y, sum[r][v]);
    }
  } else {
    vf y[V];
    for (int v = 0; v < V; v++) y[v] = b(v);
    for (int r = 0; r < R; r++) {
      const vf x = a(r);
      for (int v = 0; v < V; v++) sum[r][v] = vfma(x, y[v], sum[r][v]);
    }
  }
}

// s[r][64·] of tiles [first, first + NT) for R rows: one chain of multiply-adds a score, over ascending dimensions.
template <class T, int R, int NT>
void score_tiles(const float* q, int dim, const T* const* tiles, float* s) {
  vf sum[R][NT * vectors_a_tile];
  for (auto& row : sum)
    for (vf& v : row) v = vzero();
  constexpr int V = NT * vectors_a_tile;
  for (int i = 0; i < dim; i++) {
    const auto key = [&](int v) { return vload(tiles[v / vectors_a_tile] + i * page_tokens + v % vectors_a_tile * VL); };
    const auto query = [&](int r) { return vset(q[int64_t(r) * dim + i]); };
    multiply_add<R, V>(sum, query, key);
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) vstore(s + r * block_tokens + v * VL, sum[r][v]);
}

// acc[r][c …] += Σ p[r][t] · v[t][c …] over ascending t in [t0, t1), for NV vectors of columns.
template <class T, int R, int NV>
void add_values(const float* p, const T* const* values, int v_padded, int t0, int t1, int c, float* acc) {
  vf sum[R][NV];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < NV; v++) sum[r][v] = vload(acc + int64_t(r) * v_padded + c + v * VL);
  for (int t = t0; t < t1; t++) {
    const T* row = values[t / page_tokens] + (t % page_tokens) * v_padded + c;
    const auto value = [&](int v) { return vload(row + v * VL); };
    const auto weight = [&](int r) { return vset(p[r * block_tokens + t]); };
    multiply_add<R, NV>(sum, weight, value);
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < NV; v++) vstore(acc + int64_t(r) * v_padded + c + v * VL, sum[r][v]);
}

// Scores to weights, in place; updates m and l; returns what the row's earlier sum has to be multiplied by. A score that is
// NaN counts as −Infinity, +Infinity as the largest finite number: a broken weight breaks what it touches, the same way
// everywhere.
float soften(float* s, float& m, float& l) {
  constexpr int n = block_tokens / VL;
  vf best = vset(minus_infinity);
  for (int v = 0; v < n; v++) {
    // min and max give their second operand where the first is NaN.
    const vf x = vmin(vmax(vload(s + v * VL), vset(minus_infinity)), vset(FLT_MAX));
    vstore(s + v * VL, x);
    best = vmax(best, x);
  }
  const float old = m, now = std::max(old, vmaximum(best));
  if (now == minus_infinity) {
    for (int v = 0; v < n; v++) vstore(s + v * VL, vzero());
    return 1;
  }
  EightLanes sum;
  for (int v = 0; v < n; v++) {
    const vf e = vexp(vsub(vload(s + v * VL), vset(now)));
    vstore(s + v * VL, e);
    sum.add(e);
  }
  const float keep = old == now ? 1.0f : std::exp(old - now);
  m = now;
  l = l * keep + sum.sum();
  return keep;
}

template <class T, int R>
void attend_block(const Rows& rows, int r0, const T* const* tiles, int b0, float softcap, float* s) {
  const int dim = rows.dim, v_padded = rows.v_padded;
  const int lo = *std::min_element(rows.lo + r0, rows.lo + r0 + R), hi = *std::max_element(rows.hi + r0, rows.hi + r0 + R);
  const int j0 = std::max(lo - b0, 0), j1 = std::min(hi - b0 + 1, block_tokens);
  if (j0 >= j1) return;
  const int first = j0 / page_tokens, last = (j1 - 1) / page_tokens;

  // About twelve sums in flight, fewer where there are too few rows.
  constexpr int NT = VL == 16 ? (R <= 3 ? 4 : 2) : (R == 1 ? 4 : R <= 3 ? 2 : 1);
  for (int tile = first / NT * NT; tile <= last; tile += NT) {
    // A tile that no row sees may have no page: any other stands in, and is masked.
    const T* some[NT];
    for (int j = 0; j < NT; j++) some[j] = tiles[std::clamp(tile + j, first, last)];
    score_tiles<T, R, NT>(rows.q + int64_t(r0) * dim, dim, some, s + tile * page_tokens);
  }
  constexpr bool scaled = std::is_same_v<T, int8_t>;
  const auto scale_by = [&](float* row, int which) {
    for (int j = first; j <= last; j++) {
      const float* scales = reinterpret_cast<const float*>(tiles[j] + (dim + v_padded) * page_tokens) + which * page_tokens;
      for (int v = 0; v < page_tokens; v += VL)
        vstore(row + j * page_tokens + v, vmul(vload(row + j * page_tokens + v), vload(scales + v)));
    }
  };
  for (int r = 0; r < R; r++) {
    float* row = s + r * block_tokens;
    if constexpr (scaled) scale_by(row, 0);
    if (softcap > 0)
      for (int v = 0; v < block_tokens; v += VL)
        vstore(row + v, vmul(vset(softcap), vtanh(vdiv(vload(row + v), vset(softcap)))));
    const int from = std::clamp(rows.lo[r0 + r] - b0, 0, block_tokens);
    const int to = std::clamp(rows.hi[r0 + r] - b0 + 1, from, block_tokens);
    std::fill(row, row + from, minus_infinity);
    std::fill(row + to, row + block_tokens, minus_infinity);
    const float keep = soften(row, rows.m[r0 + r], rows.l[r0 + r]);
    if (keep != 1) {
      float* acc = rows.acc + int64_t(r0 + r) * v_padded;
      for (int c = 0; c < v_padded; c += VL) vstore(acc + c, vmul(vload(acc + c), vset(keep)));
    }
    if constexpr (scaled) scale_by(row, 1);
  }
  const T* values[tiles_a_block];
  for (int j = first; j <= last; j++) values[j] = tiles[j] + dim * page_tokens;
  float* acc = rows.acc + int64_t(r0) * v_padded;
  constexpr int NV = R == 1 ? 8 : VL == 16 || R <= 3 ? 4 : 2;
  int c = 0;
  for (; c + NV * VL <= v_padded; c += NV * VL) add_values<T, R, NV>(s, values, v_padded, j0, j1, c, acc);
  for (; c < v_padded; c += page_tokens) add_values<T, R, vectors_a_tile>(s, values, v_padded, j0, j1, c, acc);
}

template <class T>
using AttendBlock = void (*)(const Rows&, int, const T* const*, int, float, float*);

// Folds a part's (m, l, acc) into the total; the first part that has anything is copied.
void fold(float m, float l, const float* acc, float& total_m, float& total_l, float* total, int v_padded) {
  if (m == minus_infinity) return;
  if (total_m == minus_infinity) {
    total_m = m, total_l = l;
    std::copy_n(acc, v_padded, total);
    return;
  }
  const float now = std::max(m, total_m), a = std::exp(total_m - now), b = std::exp(m - now);
  total_m = now;
  total_l = total_l * a + l * b;
  for (int c = 0; c < v_padded; c += VL)
    vstore(total + c, vfma(vload(acc + c), vset(b), vmul(vload(total + c), vset(a))));
}

// A row that sees nothing (every score −Infinity) gives zeros.
void finish(float m, float l, const float* acc, const float* sink, float* out, int v_dim) {
  if (m == minus_infinity) {
    std::fill_n(out, v_dim, 0.0f);
    return;
  }
  float scale = 1;
  if (sink) {
    const float now = std::max(m, *sink);
    scale = std::exp(m - now);
    l = l * scale + std::exp(*sink - now);
  }
  const vf factor = vset(scale / l);
  int c = 0;
  for (; c + VL <= v_dim; c += VL) vstore(out + c, vmul(vload(acc + c), factor));
  if (c < v_dim) vstore_n(out + c, vmul(vload(acc + c), factor), v_dim - c);
}

}  // namespace

int64_t Attention::scratch_bytes() const {
  return rows_bytes(query_tokens * group, cache.dim, cache.v_padded) + max_rows_at_once * block_tokens * 4 + 64;
}

bool Attention::same_geometry(const Attention& o) const {
  return cache.group == o.cache.group && cache.heads == o.cache.heads && cache.v_padded == o.cache.v_padded &&
         heads == o.heads && window == o.window && causal == o.causal && query_tokens == o.query_tokens &&
         partial_floats == o.partial_floats;
}

int Attention::last_position(const Step& s, int sequence, int token) const {
  return causal ? s.positions[token] : s.positions[s.token_start[sequence + 1] - 1];
}

int Attention::chunks(const Step& step, int threads) {
  if (work->made_for != *step_serial) make_tasks(step, threads);
  return int(work->tasks.size());
}

void Attention::make_tasks(const Step& s, int threads) {
  work->made_for = *step_serial;
  work->tasks.clear();
  work->splits.assign(size_t(s.sequences), {-1, 0, 0});
  auto reach = [&](int seq) {
    const int t0 = s.token_start[seq], t1 = s.token_start[seq + 1];
    const int first = first_position(s.positions[t0]), last = last_position(s, seq, t1 - 1);
    return std::pair(first, last);
  };
  int64_t all = 0;
  for (int seq = 0; seq < s.sequences; seq++) {
    const int n = s.token_start[seq + 1] - s.token_start[seq];
    if (n == 0) continue;
    const auto [first, last] = reach(seq);
    all += int64_t(n) * (last - first + 1) * cache.heads;
  }
  int64_t used = 0;
  for (int seq = 0; seq < s.sequences; seq++) {
    const int t0 = s.token_start[seq], t1 = s.token_start[seq + 1], n = t1 - t0;
    if (n == 0) continue;
    const auto [first, last] = reach(seq);
    const int first_part = first / part_tokens, parts = last / part_tokens - first_part + 1;
    const int64_t room = int64_t(n) * heads * parts * partial_size();
    const bool split = threads > 1 && parts > 1 && n <= query_tokens && used + room <= partial_floats &&
                       int64_t(n) * (last - first + 1) > all / (4 * threads);
    if (split) {
      work->splits[seq] = {used, first_part, parts};
      used += room;
    }
    for (int t = t0; t < t1; t += query_tokens)
      for (int h = 0; h < cache.heads; h++)
        for (int part = split ? 0 : -1; part < (split ? parts : 0); part++)
          work->tasks.push_back({seq, h, t, std::min(t + query_tokens, t1), split ? first_part + part : -1});
  }
}

void Attention::run(const Step& step, int chunk, Thread& thread) {
  const AttentionTask& task = work->tasks[chunk];
  if (kv_type == KvType::f32) run_task<float>(step, task, thread);
  if (kv_type == KvType::f16) run_task<f16>(step, task, thread);
  if (kv_type == KvType::bf16) run_task<bf16>(step, task, thread);
  if (kv_type == KvType::q8) run_task<int8_t>(step, task, thread);
}

template <class T>
void Attention::run_task(const Step& s, const AttentionTask& task, Thread& thread) const {
  static constexpr AttendBlock<T> attend[] = {nullptr,           attend_block<T, 1>, attend_block<T, 2>, attend_block<T, 3>,
                                              attend_block<T, 4>, attend_block<T, 5>, attend_block<T, 6>};
  const int dim = cache.dim, v_padded = cache.v_padded, seq = task.sequence;
  float* scores = reinterpret_cast<float*>(thread.scratch);
  Rows rows = carve(thread.scratch + max_rows_at_once * block_tokens * 4, (task.t1 - task.t0) * group, dim, v_padded);
  for (int t = task.t0, r = 0; t < task.t1; t++) {
    for (int g = 0; g < group; g++, r++) {
      const float* from = q + t * ldq + int64_t(task.kv_head * group + g) * dim;
      for (int i = 0; i < dim; i++) rows.q[int64_t(r) * dim + i] = from[i] * scale;
      rows.lo[r] = first_position(s.positions[t]);
      rows.hi[r] = last_position(s, seq, t);
      rows.total_m[r] = minus_infinity, rows.total_l[r] = 0;
    }
  }
  const int lo = rows.lo[0], hi = rows.hi[rows.count - 1];  // ascending, both
  int part = lo / part_tokens, last_part = hi / part_tokens;
  if (task.part >= 0) part = last_part = task.part;
  const bool single = part == last_part;
  const PageTable& table = s.pages[cache.group];
  const int32_t* pages = table.ids + table.start[seq] - table.first[seq];

  for (; part <= last_part; part++) {
    std::fill_n(rows.m, rows.count, minus_infinity);
    std::fill_n(rows.l, rows.count, 0.0f);
    std::fill_n(rows.acc, int64_t(rows.count) * v_padded, 0.0f);
    const int from = std::max(lo, part * part_tokens), to = std::min(hi, part * part_tokens + part_tokens - 1);
    for (int b0 = from / block_tokens * block_tokens; b0 <= to; b0 += block_tokens) {
      const T* tiles[tiles_a_block] = {};
      for (int j = 0; j < tiles_a_block; j++) {
        const int p = b0 / page_tokens + j;
        if (p >= from / page_tokens && p <= to / page_tokens)
          tiles[j] = reinterpret_cast<const T*>(cache.tile(pages[p], task.kv_head));
      }
      for (int r0 = 0; r0 < rows.count; r0 += max_rows_at_once)
        attend[std::min(max_rows_at_once, rows.count - r0)](rows, r0, tiles, b0, softcap, scores);
    }
    for (int r = 0; r < rows.count; r++) {
      const float* acc = rows.acc + int64_t(r) * v_padded;
      const int t = task.t0 + r / group, h = task.kv_head * group + r % group;
      if (task.part >= 0) {
        const auto& split = work->splits[seq];
        float* out = partial + split.at + ((int64_t(t - s.token_start[seq]) * heads + h) * split.count + part - split.first) *
                                              partial_size();
        out[0] = rows.m[r], out[1] = rows.l[r];
        std::copy_n(acc, v_padded, out + 2);
      } else if (single) {
        finish(rows.m[r], rows.l[r], acc, sinks ? sinks + h : nullptr, y + t * ldy + int64_t(h) * cache.v_dim, cache.v_dim);
      } else {
        float* total = rows.total + int64_t(r) * v_padded;
        fold(rows.m[r], rows.l[r], acc, rows.total_m[r], rows.total_l[r], total, v_padded);
        if (part == last_part)
          finish(rows.total_m[r], rows.total_l[r], total, sinks ? sinks + h : nullptr,
                 y + t * ldy + int64_t(h) * cache.v_dim, cache.v_dim);
      }
    }
  }
}

void Attention::join(const Step& s, int t) const {
  const int seq = s.sequence[t];
  const auto& split = work->splits[seq];
  if (split.at < 0) return;
  float* base = partial + split.at + int64_t(t - s.token_start[seq]) * heads * split.count * partial_size();
  for (int h = 0; h < heads; h++) {
    float* first = base + int64_t(h) * split.count * partial_size();
    float *m = first, *l = first + 1, *total = first + 2;
    for (int part = 1; part < split.count; part++) {
      const float* next = first + part * partial_size();
      fold(next[0], next[1], next + 2, *m, *l, total, cache.v_padded);
    }
    finish(*m, *l, total, sinks ? sinks + h : nullptr, y + t * ldy + int64_t(h) * cache.v_dim, cache.v_dim);
  }
}

namespace {

struct Join : TokenOp {
  const Attention* attention;
  void run(const Step& s, int t0, int t1, Thread&) override {
    for (int t = t0; t < t1; t++) attention->join(s, t);
  }
};

}  // namespace

std::unique_ptr<WideOp> decode_attention(int code, Reader& r, Program& p) {
  if (code != code_attention) return nullptr;
  auto op = std::make_unique<Attention>();
  op->cache = p.caches.at(size_t(r.integer()));
  op->kv_type = p.kv_type;
  op->q = p.floats(r.offset()), op->ldq = r.offset();
  op->y = p.floats(r.offset()), op->ldy = r.offset();
  op->heads = r.integer();
  op->group = op->heads / op->cache.heads;
  op->scale = r.real(), op->softcap = r.real();
  op->window = r.integer();
  op->causal = r.integer() != 0;
  op->sinks = p.vector(r.offset());
  op->partial = p.floats(r.offset()), op->partial_floats = r.offset();
  op->query_tokens = std::max(1, 64 / op->group);
  op->step_serial = &p.step_serial;
  for (const Attention* other : p.attentions)
    if (op->same_geometry(*other)) op->work = other->work;
  if (!op->work) op->work = std::make_shared<AttentionTasks>();
  p.need_scratch(op->scratch_bytes());
  p.attentions.push_back(op.get());
  return op;
}

std::unique_ptr<TokenOp> decode_attention_join(int code, Reader&, Program& p) {
  if (code != code_attention_join) return nullptr;
  auto op = std::make_unique<Join>();
  op->attention = p.attentions.back();
  return op;
}

}  // namespace mr
