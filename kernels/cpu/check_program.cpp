// Owns: a program that drives the C ABI (api.h) without Node and holds what it gives against plain loops in double
// precision: embedding, norms, rope, activations, paged attention, logits and sampling; and that no bit depends on how the
// tokens were cut into calls. For processors that the tests' host is not (under an emulator), and for the host's own.
// test/cpu/neon.test.ts builds it with check_moe.cpp, and runs it. Prints "ok" or what is off; exit status 1 then.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "api.h"
#include "check.h"
#include "program.h"

namespace {

using mr::Storage;
using std::vector;

constexpr int vocab = 300, heads = 4, kv_heads = 2, dim = 24, rotary = 20, half = rotary / 2;
constexpr int q_width = heads * dim, kv_width = kv_heads * dim, width = q_width + 2 * kv_width;
constexpr int layer_norm_width = 100, max_tokens = 320, prompt = 300, short_prompt = 37, pages = 64;

struct Case {
  std::string name;
  int kv_type, window;
  double softcap;
  bool sinks, causal;
};

struct Model {
  vector<float> embedding, head, rms_weight, layer_weight, layer_bias, sinks, inv_freq;
};

Model make_model() {
  Random r{7};
  Model m{r.floats(vocab * width),          r.floats(vocab * q_width, 0.3),   r.floats(width),
          r.floats(layer_norm_width),       r.floats(layer_norm_width),       r.floats(heads, 2), {}};
  for (int i = 0; i < half; i++) m.inv_freq.push_back(float(std::pow(10000.0, -double(i) / half)));
  return m;
}

// One program, and where its tensors lie.
struct Driver {
  void* program = nullptr;
  int64_t x, norm, layer, table, q, pairs, k, y, gelu, partial, tile_x, logits, act;

  Driver(const Model& m, const Case& c) {
    Areas a;
    x = a.take(max_tokens * width), norm = a.take(max_tokens * width), layer = a.take(max_tokens * layer_norm_width);
    table = a.take(max_tokens * rotary), q = a.take(max_tokens * q_width), pairs = a.take(max_tokens * q_width);
    k = a.take(max_tokens * kv_width), y = a.take(max_tokens * q_width), gelu = a.take(max_tokens * q_width);
    const int64_t partial_floats = 1 << 16;
    partial = a.take(partial_floats), tile_x = a.take(8 * q_width), logits = a.take(8 * vocab);
    act = a.take(int64_t(mr_act_bytes(mr_act(int(Storage::F32), 1), 8, q_width)) / 4);
    const int64_t rms_at = 0, layer_at = 256, bias_at = 384, sinks_at = 512;

    vector<double> d{2, 1, max_tokens, max_tokens, vocab, double(c.kv_type), 4, double(a.end), 1024, 1, pages,
                     1, 0, kv_heads, dim, dim, 2, 0, vocab, width, 0, vocab, q_width};
    vector<vector<double>> ops;
    const auto op = [&](int code, vector<double> numbers, int rows = 0) {
      numbers.insert(numbers.begin(), {double(code), double(rows), double(numbers.size())});
      ops.push_back(std::move(numbers));
    };
    vector<double> frequencies{double(table), half, 1};
    for (float f : m.inv_freq) frequencies.push_back(f);
    op(mr::code_rope_table, frequencies);
    op(mr::code_embed, {0, double(x), width, 1, 1, 0});
    op(mr::code_rms_norm, {double(x), width, double(norm), width, width, 1, double(rms_at), 1e-5});
    op(mr::code_layer_norm, {double(x), width, double(layer), layer_norm_width, layer_norm_width, double(layer_at), double(bias_at), 1e-5});
    const double norm_k = double(norm + 4 * q_width), norm_v = double(norm + 4 * (q_width + kv_width));
    op(mr::code_rope, {double(norm), width, double(q), q_width, heads, dim, rotary, double(table), 0});
    op(mr::code_rope, {double(norm), width, double(pairs), q_width, heads, dim, rotary, double(table), 1});
    op(mr::code_rope, {norm_k, width, double(k), kv_width, kv_heads, dim, rotary, double(table), 0});
    op(mr::code_cache_write, {0, double(k), kv_width, norm_v, width});
    op(mr::code_attention, {0, double(q), q_width, double(y), q_width, heads, 0.5, c.softcap, double(c.window), c.causal ? 1.0 : 0.0,
                            c.sinks ? double(sinks_at) : -1, double(partial), double(partial_floats)});
    op(mr::code_attention_join, {});
    op(mr::code_activation, {double(y), q_width, double(gelu), q_width, q_width, 1});
    op(mr::code_logits, {double(y), q_width, q_width, 8, double(tile_x), double(logits), 1, 0, -1, 1,
                         double(mr_act(int(Storage::F32), 1)), double(act), 1, 1, double(act), double(logits), vocab, -1, 0}, 1);
    d.push_back(double(ops.size()));
    for (const auto& numbers : ops) d.insert(d.end(), numbers.begin(), numbers.end());

    char message[256] = "";
    program = mr_create(d.data(), double(d.size()), message, sizeof message);
    expect(program != nullptr, "a program: " + std::string(message));
    if (!program) return;
    mr_pack(program, 0, reinterpret_cast<const uint8_t*>(m.embedding.data()), 4 * width, 0, 0, nullptr);
    mr_pack(program, 1, reinterpret_cast<const uint8_t*>(m.head.data()), 4 * q_width, 0, 0, nullptr);
    mr_set_vector(program, rms_at, m.rms_weight.data(), width);
    mr_set_vector(program, layer_at, m.layer_weight.data(), layer_norm_width);
    mr_set_vector(program, bias_at, m.layer_bias.data(), layer_norm_width);
    mr_set_vector(program, sinks_at, m.sinks.data(), heads);
    // Slot 0 takes the best token, slot 1 draws.
    const int32_t slots[2] = {0, 1}, starts[3] = {0, 0, 0}, none[1] = {0};
    const float floats[12] = {0, 1, 0, 1, 0, 0, 0.8f, 0.9f, 0.01f, 1, 0, 0};
    const int32_t ints[10] = {0, 0, 0, -1, 0, 20, 1234, 5678, -1, 0};
    mr_update_slots(program, 2, slots, floats, ints, starts, none, starts, none);
  }
  Driver(const Driver&) = delete;
  ~Driver() {
    if (program) mr_destroy(program);
  }
  vector<float> read(int64_t at, int n) const {
    vector<float> out(static_cast<size_t>(n));
    mr_read_workspace(program, double(at), out.data(), n);
    return out;
  }
};

struct Part {
  int sequence, from, to;  // positions
};

struct Drawn {
  int32_t token, rank, top[3];
  float logprob;
};

// What is known of each sequence's tokens after all calls: [token][…].
struct Seen {
  vector<float> norm[2], layer[2], q[2], pairs[2], k[2], y[2], gelu[2];
  vector<Drawn> drawn[2];
};

int token_at(int sequence, int position) { return (position * 37 + sequence * 101 + position * position % 11) % vocab; }

// One call; every token is a row.
void call(const Driver& d, const vector<Part>& parts, Seen& seen) {
  vector<int32_t> tokens, slots, token_start{0}, kv_start, page_start{0}, page_first, page_ids, rows, targets, positions;
  for (const Part& p : parts) {
    slots.push_back(p.sequence), kv_start.push_back(p.from), page_first.push_back(0);
    for (int t = p.from; t < p.to; t++) {
      rows.push_back(int32_t(tokens.size()));
      tokens.push_back(token_at(p.sequence, t)), targets.push_back(-1), positions.push_back(t);
    }
    for (int page = 0; page * mr::page_tokens < p.to; page++) page_ids.push_back((page * 2 + p.sequence) % pages);
    token_start.push_back(int32_t(tokens.size())), page_start.push_back(int32_t(page_ids.size()));
  }
  const int n = int(tokens.size());
  const int32_t counts[5] = {n, int32_t(parts.size()), n, int32_t(page_ids.size()), 0};
  const vector<int32_t> no_bias(size_t(n) + 1, 0);
  const int32_t no_id = 0;
  const float no_value = 0;
  const int status = mr_run(d.program, counts, tokens.data(), slots.data(), token_start.data(), kv_start.data(), page_start.data(),
                            page_first.data(), page_ids.data(), rows.data(), targets.data(), positions.data(), no_bias.data(),
                            &no_id, &no_value);
  expect(status == 0, "a step runs");
  vector<int32_t> chosen(n), ranks(n), top_ids(size_t(n) * 3);
  vector<float> logprobs(n), top_logprobs(size_t(n) * 3);
  mr_sample(d.program, rows.data(), n, nullptr, 3, chosen.data(), logprobs.data(), ranks.data(), top_ids.data(), top_logprobs.data());
  const auto keep = [&](int64_t at, int each, vector<float>* to) {
    const vector<float> all = d.read(at, n * each);
    for (size_t p = 0; p < parts.size(); p++)
      to[parts[p].sequence].insert(to[parts[p].sequence].end(), all.begin() + token_start[p] * each, all.begin() + token_start[p + 1] * each);
  };
  keep(d.norm, width, seen.norm), keep(d.layer, layer_norm_width, seen.layer), keep(d.q, q_width, seen.q);
  keep(d.pairs, q_width, seen.pairs), keep(d.k, kv_width, seen.k), keep(d.y, q_width, seen.y), keep(d.gelu, q_width, seen.gelu);
  for (size_t p = 0; p < parts.size(); p++)
    for (int t = token_start[p]; t < token_start[p + 1]; t++)
      seen.drawn[parts[p].sequence].push_back({chosen[t], ranks[t], {top_ids[3 * t], top_ids[3 * t + 1], top_ids[3 * t + 2]}, logprobs[t]});
}

// most: the row's largest magnitude.
double stored(double x, int kv_type, double most) {
  if (kv_type == 3) return std::nearbyint(x / most * 127) * most / 127;
  if (kv_type == 1) {
    // To 11 bits; below 2^-14 in steps of 2^-24. Half to even is what nearbyint does.
    const int exponent = x == 0 ? 0 : std::max(std::ilogb(x), -14);
    return std::ldexp(std::nearbyint(std::ldexp(x, 10 - exponent)), exponent - 10);
  }
  if (kv_type == 0) return double(float(x));
  uint32_t u;
  const float f = float(x);
  std::memcpy(&u, &f, 4);
  u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u;
  float back;
  std::memcpy(&back, &u, 4);
  return back;
}

double most_of(const float* row) {
  double most = 0;
  for (int i = 0; i < dim; i++) most = std::max(most, std::fabs(double(row[i])));
  return most;
}

// Norms and rope of one sequence.
void check_rows(const Model& m, const Seen& seen, int sequence, int n, const std::string& name) {
  vector<double> norm, layer, q(size_t(n) * q_width), pairs(q), k(size_t(n) * kv_width);
  for (int t = 0; t < n; t++) {
    const float* x = m.embedding.data() + int64_t(token_at(sequence, t)) * width;
    double squares = 0, mean = 0, spread = 0;
    for (int i = 0; i < width; i++) squares += double(x[i]) * x[i];
    const double scale = 1 / std::sqrt(squares / width + 1e-5);
    for (int i = 0; i < width; i++) norm.push_back(x[i] * scale * m.rms_weight[i]);
    for (int i = 0; i < layer_norm_width; i++) mean += double(x[i]) / layer_norm_width;
    for (int i = 0; i < layer_norm_width; i++) spread += (x[i] - mean) * (x[i] - mean) / layer_norm_width;
    for (int i = 0; i < layer_norm_width; i++)
      layer.push_back((x[i] - mean) / std::sqrt(spread + 1e-5) * m.layer_weight[i] + m.layer_bias[i]);
    // Of the norms as they came, so that only rope is looked at.
    const float* in = seen.norm[sequence].data() + int64_t(t) * width;
    const auto turn = [&](const float* from, double* to, bool interleaved) {
      for (int i = 0; i < half; i++) {
        const int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : half + i;
        const double angle = double(t) * m.inv_freq[i], cos = std::cos(angle), sin = std::sin(angle);
        to[a] = from[a] * cos - from[b] * sin, to[b] = from[b] * cos + from[a] * sin;
      }
      for (int i = rotary; i < dim; i++) to[i] = from[i];
    };
    for (int h = 0; h < heads; h++) {
      turn(in + h * dim, q.data() + int64_t(t) * q_width + h * dim, false);
      turn(in + h * dim, pairs.data() + int64_t(t) * q_width + h * dim, true);
    }
    for (int h = 0; h < kv_heads; h++) turn(in + q_width + h * dim, k.data() + int64_t(t) * kv_width + h * dim, false);
  }
  near(norm, seen.norm[sequence], 1e-6, name + ", rms norm");
  near(layer, seen.layer[sequence], 1e-6, name + ", layer norm");
  near(q, seen.q[sequence], 1e-6, name + ", rope");
  near(pairs, seen.pairs[sequence], 1e-6, name + ", interleaved rope");
  near(k, seen.k[sequence], 1e-6, name + ", rope of keys");
}

void check_attention(const Model& m, const Case& c, const Seen& seen, int sequence, int n) {
  vector<double> y, gelu;
  const float *q = seen.q[sequence].data(), *k = seen.k[sequence].data(), *v = seen.norm[sequence].data() + q_width + kv_width;
  for (int t = 0; t < n; t++)
    for (int h = 0; h < heads; h++) {
      const int from = c.window ? std::max(0, t - c.window + 1) : 0, to = c.causal ? t + 1 : n, of = h / (heads / kv_heads);
      vector<double> scores;
      double most = c.sinks ? double(m.sinks[h]) : -1e300;
      for (int j = from; j < to; j++) {
        double s = 0;
        for (int i = 0; i < dim; i++)
          s += double(q[t * q_width + h * dim + i]) * stored(k[j * kv_width + of * dim + i], c.kv_type, most_of(k + j * kv_width + of * dim));
        s *= 0.5;
        if (c.softcap > 0) s = c.softcap * std::tanh(s / c.softcap);
        scores.push_back(s), most = std::max(most, s);
      }
      double sum = c.sinks ? std::exp(m.sinks[h] - most) : 0, out[dim] = {};
      for (size_t j = 0; j < scores.size(); j++) {
        const double p = std::exp(scores[j] - most);
        sum += p;
        const float* row = v + (from + int64_t(j)) * width + of * dim;
        const double largest = most_of(row);
        for (int i = 0; i < dim; i++) out[i] += p * stored(row[i], c.kv_type, largest);
      }
      for (double o : out) y.push_back(o / sum);
    }
  for (float x : seen.y[sequence]) gelu.push_back(0.5 * x * (1 + std::erf(x / std::sqrt(2.0))));
  near(y, seen.y[sequence], 5e-6, c.name + ", attention");
  near(gelu, seen.gelu[sequence], 1e-6, c.name + ", gelu");
}

void check_draws(const Model& m, const Case& c, const Seen& seen, int sequence, int n) {
  for (int t = 0; t < n; t++) {
    const float* y = seen.y[sequence].data() + int64_t(t) * q_width;
    vector<double> l(vocab);
    double most = -1e300, sum = 0;
    for (int id = 0; id < vocab; id++) {
      for (int i = 0; i < q_width; i++) l[id] += double(y[i]) * m.head[id * q_width + i];
      most = std::max(most, l[id]);
    }
    for (double x : l) sum += std::exp(x - most);
    vector<int> order(vocab);
    for (int i = 0; i < vocab; i++) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return l[a] > l[b]; });
    const Drawn& d = seen.drawn[sequence][t];
    const std::string at = c.name + ", token " + std::to_string(t);
    // Whoever is this near may be either.
    const auto same = [&](int id, int place) { return std::fabs(l[id] - l[order[place]]) < 1e-5; };
    expect(d.token >= 0 && d.token < vocab, at + ": a token of the vocabulary");
    if (d.token < 0 || d.token >= vocab) continue;
    expect(std::fabs(d.logprob - (l[d.token] - most - std::log(sum))) < 1e-5, at + ": log-probability");
    expect(same(d.token, d.rank - (d.rank > 0 ? 1 : 0)) || same(d.token, d.rank), at + ": rank " + std::to_string(d.rank));
    for (int i = 0; i < 3; i++) expect(d.top[i] >= 0 && d.top[i] < vocab && same(d.top[i], i), at + ": best tokens");
    if (sequence == 0) expect(same(d.token, 0), at + ": the best token");
    if (sequence == 1) expect(l[d.token] >= l[order[19]] - 1e-5, at + ": a token of the best twenty");
  }
}

void run(const Model& m, const Case& c) {
  Seen whole, cut;
  {
    const Driver d(m, c);
    if (!d.program) return;
    call(d, {{0, 0, prompt}}, whole);
    call(d, {{1, 0, short_prompt}}, whole);
  }
  for (int s = 0; s < 2; s++) {
    check_rows(m, whole, s, s ? short_prompt : prompt, c.name);
    check_attention(m, c, whole, s, s ? short_prompt : prompt);
    check_draws(m, c, whole, s, s ? short_prompt : prompt);
  }
  if (!c.causal) return;
  // In pieces, the second sequence beside the first.
  const Driver d(m, c);
  for (int at = 0, other = 0, piece = 1; at < prompt; piece = piece % 61 + 12) {
    const int end = std::min(at + (at > 270 ? 1 : piece), prompt), other_end = std::min(other + 3, short_prompt);
    vector<Part> parts{{0, at, end}};
    if (other < other_end) parts.push_back({1, other, other_end});
    call(d, parts, cut);
    at = end, other = other_end;
  }
  // Adds what a short loop above may have left.
  for (int s = 0; s < 2; s++) {
    const size_t n = std::min(cut.drawn[s].size(), whole.drawn[s].size());
    expect(n > 10, c.name + ": pieces were run");
    const auto equal = [&](const vector<float>& a, const vector<float>& b) {
      return std::memcmp(a.data(), b.data(), 4 * std::min(a.size(), b.size())) == 0;
    };
    expect(equal(whole.y[s], cut.y[s]), c.name + ": attention's bits do not depend on the calls");
    expect(equal(whole.norm[s], cut.norm[s]) && equal(whole.layer[s], cut.layer[s]), c.name + ": norms' bits");
    for (size_t t = 0; t < n; t++)
      expect(whole.drawn[s][t].token == cut.drawn[s][t].token && whole.drawn[s][t].logprob == cut.drawn[s][t].logprob,
             c.name + ": draws do not depend on the calls");
  }
}

}  // namespace

int main() {
  std::printf("%s\n", mr_isa());
  const Model m = make_model();
  run(m, {"f32 cache", 0, 0, 0, false, true});
  run(m, {"f16 cache, window and sinks", 1, 70, 0, true, true});
  run(m, {"bf16 cache, softcap", 2, 0, 3, false, true});
  run(m, {"f16 cache, not causal", 1, 0, 0, false, false});
  run(m, {"q8 cache, window and softcap", 3, 70, 3, false, true});
  check_moe();
  std::printf(failures ? "%d off\n" : "ok\n", failures);
  return failures ? 1 : 0;
}
