// Owns: decoding the description into ops, and running a step: regions and wide ops one after another through the pool,
// ops of one chunk on whichever thread got there.
#include "program.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "tail.h"

namespace mr {

Arena::Arena(int64_t bytes) : data_(nullptr), bytes_((bytes + 4095) & ~int64_t(4095)) {
  if (bytes_ == 0) return;
  void* p = mmap(nullptr, size_t(bytes_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::runtime_error("the system has no " + std::to_string(bytes_) + " bytes of memory to give");
  data_ = static_cast<uint8_t*>(p);
}

Arena::~Arena() {
  if (data_) munmap(data_, size_t(bytes_));
}

void Arena::want_huge_pages() {
#if defined(MADV_HUGEPAGE)
  if (data_) madvise(data_, size_t(bytes_), MADV_HUGEPAGE);
#endif
}

void Arena::drop() {
  if (!data_) return;
#if defined(__linux__)
  madvise(data_, size_t(bytes_), MADV_DONTNEED);
#else
  // Elsewhere the advice does not give back: fresh pages in the same place do.
  mmap(data_, size_t(bytes_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
#endif
}

double Reader::number() {
  if (at_ == end_) throw std::runtime_error("the program's description ends early");
  return *at_++;
}

Reader Reader::part(int count) {
  if (count < 0 || count > end_ - at_) throw std::runtime_error("an instruction is longer than the description");
  Reader r(at_, at_ + count);
  at_ += count;
  return r;
}

namespace {

constexpr int64_t align64(int64_t n) { return (n + 63) & ~int64_t(63); }

struct Region : WideOp {
  std::vector<std::unique_ptr<TokenOp>> ops;
  bool rows;
  int unit = 1;

  int count(const Step& s) const { return rows ? s.rows : s.tokens; }
  int chunks(const Step& s, int threads) override {
    const int n = count(s), group = linear_token_group();
    unit = std::max((n / (threads * 4) + group - 1) / group, 1) * group;
    return (n + unit - 1) / unit;
  }
  void run(const Step& s, int chunk, Thread& thread) override {
    // A few tokens at a time, so that what one op writes the next finds in the first cache.
    const int end = std::min((chunk + 1) * unit, count(s)), group = linear_token_group();
    for (int t = chunk * unit; t < end; t += group)
      for (auto& op : ops) op->run(s, t, std::min(t + group, end), thread);
  }
};

// Products that nothing orders: their row groups in one line, cut into even runs.
struct Linear : WideOp {
  std::vector<Segment> segments;
  bool rows;
  int64_t groups = 0, bytes = 0;
  int cuts = 1;

  int chunks(const Step& s, int threads) override {
    const int n = rows ? s.rows : s.tokens;
    if (n == 0) return 0;
    cuts = int(std::clamp<int64_t>(bytes * n / (32 << 10), 1, std::min<int64_t>(groups, threads * 8)));
    return cuts;
  }
  void run(const Step& s, int chunk, Thread& thread) override {
    run_range(rows ? s.rows : s.tokens, groups * chunk / cuts, groups * (chunk + 1) / cuts, thread);
  }
  void run_range(int n, int64_t from, int64_t to, Thread& thread) const {
    run_segments(segments, n, from, to, thread.scratch);
  }
};

// Takes an instruction's op into the list, joining neighbours in regions of the same domain.
void append(Program& p, std::unique_ptr<TokenOp> op, bool rows) {
  auto* last = p.ops.empty() ? nullptr : dynamic_cast<Region*>(p.ops.back().get());
  if (!last || last->rows != rows) {
    auto region = std::make_unique<Region>();
    region->rows = rows;
    last = region.get();
    p.ops.push_back(std::move(region));
  }
  last->ops.push_back(std::move(op));
}

void decode(Program& p, int code, bool rows, Reader r) {
  if (code == code_linear) {
    auto op = std::make_unique<Linear>();
    op->rows = rows;
    for (int n = r.integer(); n > 0; n--) op->segments.push_back(p.read_segment(r));
    for (auto& s : op->segments) {
      op->groups += weight_groups(s.weight);
      op->bytes += weight_groups(s.weight) * linear_group_bytes(s.weight.type, s.weight.cols);
      p.need_scratch(linear_scratch_bytes(s.weight.cols));
    }
    p.ops.push_back(std::move(op));
  } else if (code == code_logits) {
    p.tail = std::make_unique<Tail>(p, r);
  } else if (auto wide = decode_attention(code, r, p)) {
    p.ops.push_back(std::move(wide));
  } else if (!decode_moe(code, rows, r, p)) {
    std::unique_ptr<TokenOp> op = decode_elementwise(code, r, p);
    if (!op) op = decode_norm(code, r, p);
    if (!op) op = decode_rope(code, r, p);
    if (!op) op = decode_attention_join(code, r, p);
    if (!op) op = decode_lora(code, r, p);
    if (!op) op = decode_route(code, r, p);
    if (!op) throw std::runtime_error("unknown instruction " + std::to_string(code));
    append(p, std::move(op), rows);
  }
  if (!r.done()) throw std::runtime_error("instruction " + std::to_string(code) + " has numbers to spare");
}

struct Forward : Job {
  Program& p;
  size_t at = 0;
  explicit Forward(Program& p) : p(p) {}
  int next_stage(int thread) override {
    // `at` is the op after the one that has just ended.
    for (; at < p.ops.size(); at++) {
      const int n = p.ops[at]->chunks(p.step, p.pool.granted());
      if (n > 1) return at++, n;
      if (n == 1) p.ops[at]->run(p.step, 0, p.threads[thread]);
    }
    return 0;
  }
  void run_chunk(int chunk, int thread) override { p.ops[at - 1]->run(p.step, chunk, p.threads[thread]); }
};

int read_threads(const double* description, int64_t length) {
  if (length < 1 || description[0] < 1) throw std::runtime_error("a program needs at least one thread");
  return int(description[0]);
}

}  // namespace

int64_t weight_groups(const Weight& w) { return (w.rows + linear_row_group() - 1) / linear_row_group(); }

void run_segments(const std::vector<Segment>& segments, int n, int64_t from, int64_t to, void* scratch) {
  int64_t base = 0;
  for (const Segment& s : segments) {
    const int64_t count = weight_groups(s.weight);
    const int64_t g0 = std::max<int64_t>(from - base, 0), g1 = std::min(to - base, count);
    if (g0 < g1) linear_run(s.weight, s.act, n, 0, n, int(g0), int(g1), s.y, s.ldy, s.epilogue, scratch);
    base += count;
  }
}

Segment Program::read_segment(Reader& r) {
  const int index = r.integer();
  if (index < 0 || index >= int(weights.size())) throw std::runtime_error("a product with a weight that is not there");
  Segment s{weights[index], workspace.data() + r.offset(), nullptr, 0, {}};
  s.y = floats(r.offset());
  s.ldy = r.offset();
  s.epilogue.bias = vector(r.offset());
  s.epilogue.accumulate = r.integer() != 0;
  return s;
}

static int64_t kv_value_bytes(KvType type) { return type == KvType::f32 ? 4 : type == KvType::q8 ? 1 : 2; }

Program::Program(const double* description, int64_t length)
    : pool(read_threads(description, length)) {
  Reader r(description, description + length);
  r.number();  // threads
  const bool exact = r.integer() != 0;
  max_tokens = r.integer();
  max_rows = r.integer();
  vocab = r.integer();
  kv_type = KvType(r.integer());
  slots.resize(size_t(r.integer()));
  workspace = Arena(r.offset());
  workspace.want_huge_pages();
  vector_data = Arena(r.offset() * 4);
  for (int n = r.integer(); n > 0; n--) group_pages.push_back(r.integer());
  for (int n = r.integer(); n > 0; n--) {
    Cache c{r.integer(), r.integer(), r.integer(), r.integer(), 0, 0, 0, nullptr};
    if (c.group < 0 || c.group >= int(group_pages.size())) throw std::runtime_error("a cache of a group that is not there");
    c.v_padded = (c.v_dim + 15) & ~15;
    c.tile_bytes = kv_value_bytes(kv_type) * page_tokens * (c.dim + c.v_padded);
    c.head_bytes = c.tile_bytes + (kv_type == KvType::q8 ? 2 * page_tokens * 4 : 0);
    page_data.emplace_back(c.head_bytes * c.heads * group_pages[c.group]);
    c.data = page_data.back().data();
    caches.push_back(c);
  }
  int64_t total = 0;
  std::vector<int64_t> offsets;
  for (int n = r.integer(); n > 0; n--) {
    Weight w{nullptr, Storage(r.integer()), r.integer(), r.integer(), Act::f32};
    w.act = linear_act(w.type, exact);
    offsets.push_back(total);
    total += align64(weight_groups(w) * linear_group_bytes(w.type, w.cols));
    weights.push_back(w);
  }
  weight_data = Arena(total);
  weight_data.want_huge_pages();
  for (size_t i = 0; i < weights.size(); i++) weights[i].data = weight_data.data() + offsets[i];
  for (int n = r.integer(); n > 0; n--) {
    const int code = r.integer();
    const bool rows = r.integer() != 0;
    const int count = r.integer();
    decode(*this, code, rows, r.part(count));
  }
  if (!r.done()) throw std::runtime_error("the program's description has numbers to spare");
  scratch_bytes = align64(scratch_bytes) + 64;
  scratch = Arena(scratch_bytes * pool.threads());
  for (int i = 0; i < pool.threads(); i++) threads.push_back({i, scratch.data() + scratch_bytes * i});
}

Program::~Program() = default;

void Program::forward() {
  Forward job(*this);
  pool.run(job);
}

int64_t Program::page_bytes(int group) const {
  int64_t bytes = 0;
  for (const Cache& c : caches)
    if (c.group == group) bytes += c.head_bytes * c.heads;
  return bytes;
}

void Program::copy_page(int group, int from, int to) {
  for (const Cache& c : caches)
    if (c.group == group) memcpy(c.tile(to, 0), c.tile(from, 0), size_t(c.head_bytes * c.heads));
}

}  // namespace mr
