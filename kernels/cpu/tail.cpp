// Owns: the stages of tail.h.
#include "tail.h"

#include <algorithm>
#include <cstring>

namespace mr {

namespace {

// For each tile of rows: products, logits with their sums, draws.
struct Sampling : Job {
  Tail& tail;
  Program& p;
  const int32_t* which;
  const int count;
  const uint32_t* masks;
  const Results& out;

  enum { products, sums, draws } stage = draws;
  int from = 0, rows = 0, cuts = 1;  // the tile: rows [from, from + rows) of `which`
  const int stretches;
  std::vector<Stats> stats;      // [rows × stretches]
  std::vector<int> runs;         // starts of runs of rows of one sequence, and the end

  Sampling(Tail& tail, Program& p, const int32_t* which, int count, const uint32_t* masks, const Results& out)
      : tail(tail), p(p), which(which), count(count), masks(masks), out(out),
        stretches((p.vocab + stats_tokens - 1) / stats_tokens) {}

  int next_stage(int) override {
    if (stage == products) return stage = sums, rows * stretches;
    if (stage == sums) return stage = draws, int(runs.size()) - 1;
    from += rows;
    rows = std::min(tail.tile_rows, count - from);
    if (rows <= 0) return 0;
    begin_tile();
    stage = products;
    cuts = int(std::min<int64_t>(tail.groups, p.pool.threads() * 16));
    return cuts;
  }
  void begin_tile() {
    for (int i = 0; i < rows; i++)
      std::copy_n(tail.x + int64_t(which[from + i]) * tail.stride, tail.width, tail.tile_x + int64_t(i) * tail.width);
    for (const auto& act : tail.acts) linear_prepare(act.kind, tail.tile_x, tail.width, rows, tail.width, 0, rows, act.at);
    stats.resize(size_t(rows) * stretches);
    // Rows of one sequence change its counts in turn.
    runs.assign(1, 0);
    for (int i = 1; i < rows; i++)
      if (sequence(i) != sequence(i - 1)) runs.push_back(i);
    runs.push_back(rows);
  }
  int sequence(int i) const { return p.step.sequence[p.step.row_tokens[which[from + i]]]; }

  void run_chunk(int chunk, int thread) override {
    if (stage == products) {
      run_segments(tail.segments, rows, tail.groups * chunk / cuts, tail.groups * (chunk + 1) / cuts,
                   p.threads[thread].scratch);
    } else if (stage == sums) {
      const int row = chunk / stretches, first = chunk % stretches * stats_tokens;
      stats[chunk] = finish_logits(tail.logits + int64_t(row) * p.vocab + first, std::min(stats_tokens, p.vocab - first),
                                   first, tail.scale, tail.softcap, tail.bias ? tail.bias + first : nullptr);
    } else {
      for (int i = runs[chunk]; i < runs[chunk + 1]; i++) draw(i, thread);
    }
  }
  void draw(int i, int thread) {
    const Step& s = p.step;
    const int row = which[from + i];
    Slot& slot = p.slots[s.slots[sequence(i)]];
    const int b = s.bias_start[row];
    const RowRequest request{&slot, s.row_positions[row], s.targets[row], s.bias_ids.data() + b,
                             s.bias_values.data() + b, s.bias_start[row + 1] - b,
                             masks ? masks + int64_t(from + i) * ((p.vocab + 31) / 32) : nullptr, out.top};
    RowResult result{0, 0, 0, out.top_ids + int64_t(row) * out.top, out.top_logprobs + int64_t(row) * out.top};
    sample_row(tail.logits + int64_t(i) * p.vocab, p.vocab, merge(&stats[size_t(i) * stretches], stretches), request,
               result, tail.scratch[thread]);
    out.tokens[row] = result.token, out.logprobs[row] = result.logprob, out.ranks[row] = result.rank;
    if (request.target >= 0) return;
    slot.last_token = result.token;
    if (slot.counted) slot.counts[result.token].output++;
  }
};

}  // namespace

Tail::Tail(Program& p, Reader& r) {
  x = p.floats(r.offset()), stride = r.offset();
  width = r.integer(), tile_rows = r.integer();
  tile_x = p.floats(r.offset()), logits = p.floats(r.offset());
  scale = r.real(), softcap = r.real();
  bias = p.vector(r.offset());
  for (int n = r.integer(); n > 0; n--) {
    const mr::Act kind = mr::Act(r.integer());
    acts.push_back({kind, p.workspace.data() + r.offset()});
  }
  for (int n = r.integer(); n > 0; n--) segments.push_back(p.read_segment(r));
  for (const Segment& s : segments) {
    groups += weight_groups(s.weight);
    p.need_scratch(linear_scratch_bytes(s.weight.cols));
  }
  scratch.resize(size_t(p.pool.threads()));
}

void Tail::run(Program& p, const int32_t* which, int count, const uint32_t* masks, const Results& results) {
  if (count == 0) return;
  Sampling job(*this, p, which, count, masks, results);
  p.pool.run(job);
}

void Program::sample(const int32_t* which, int count, const uint32_t* bits, const Results& results) {
  if (tail) tail->run(*this, which, count, bits, results);
}

}  // namespace mr
