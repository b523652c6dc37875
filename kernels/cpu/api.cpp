// Owns: the C ABI's functions: arguments in, calls to Program, no exception out.
#include "api.h"

#include <algorithm>
#include <cstring>
#include <exception>

#include "program.h"
#include "quantize.h"
#include "roof.h"

using namespace mr;

namespace {

Program& of(void* program) { return *static_cast<Program*>(program); }

// Runs f(i) for i in [0, n) on all threads.
template <class F>
void for_each(Pool& pool, int n, F&& f) {
  struct Each : Job {
    int n;
    F& f;
    bool begun = false;
    Each(int n, F& f) : n(n), f(f) {}
    int next_stage(int) override { return begun ? 0 : (begun = true, n); }
    void run_chunk(int chunk, int) override { f(chunk); }
  } job(n, f);
  pool.run(job);
}

template <class T>
void assign(std::vector<T>& to, const T* from, int64_t n) {
  if (n > 0)
    to.assign(from, from + n);
  else
    to.clear();
}

// False: a slot has no last token.
bool derive(Program& p, Step& s, const int32_t* tokens) {
  s.ids.resize(s.tokens), s.positions.resize(s.tokens), s.sequence.resize(s.tokens);
  for (int seq = 0; seq < s.sequences; seq++) {
    for (int t = s.token_start[seq]; t < s.token_start[seq + 1]; t++) {
      s.ids[t] = tokens[t] >= 0 ? tokens[t] : p.slots[-1 - tokens[t]].last_token;
      s.positions[t] = s.kv_start[seq] + t - s.token_start[seq];
      s.sequence[t] = seq;
      if (s.ids[t] < 0) return false;
    }
  }
  s.pages.clear();
  for (size_t g = 0; g < p.group_pages.size(); g++)
    s.pages.push_back({s.page_start.data() + g * (s.sequences + 1), s.page_first.data() + g * s.sequences,
                       s.page_ids.data()});
  return true;
}

}  // namespace

const char* mr_isa() noexcept {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  return "NEON with i8mm";
#elif defined(__ARM_FEATURE_DOTPROD)
  return "NEON with dotprod";
#elif defined(__ARM_NEON)
  return "NEON";
#elif defined(__AMX_INT8__)
  return "AMX";
#elif defined(__AVX512F__)
  return "AVX-512";
#else
  return "AVX2";
#endif
}

int mr_row_group() noexcept { return linear_row_group(); }
int mr_token_group() noexcept { return linear_token_group(); }
int mr_supports(int type, int cols) noexcept { return linear_supports(Storage(type), cols); }
int mr_act(int type, int exact) noexcept { return int(linear_act(Storage(type), exact != 0)); }
double mr_act_bytes(int kind, int tokens, int cols) noexcept { return double(linear_act_bytes(Act(kind), tokens, cols)); }

double mr_packed_bytes(int type, int rows, int cols) noexcept {
  const Weight w{nullptr, Storage(type), rows, cols, Act::f32};
  return double(weight_groups(w) * linear_group_bytes(w.type, cols));
}

void* mr_create(const double* description, double length, char* message, int message_bytes) noexcept {
  try {
    return new Program(description, int64_t(length));
  } catch (const std::exception& e) {
    std::strncpy(message, e.what(), size_t(message_bytes - 1));
    message[message_bytes - 1] = 0;
    return nullptr;
  }
}

void mr_destroy(void* program) noexcept { delete static_cast<Program*>(program); }

void mr_pack(void* program, int weight, const uint8_t* source, double row_bytes, double column_byte, int row0,
             const int32_t* row_map) noexcept {
  Program& p = of(program);
  const Weight& w = p.weights[weight];
  const uint8_t* from = source + (row_map ? 0 : int64_t(row_bytes) * row0);
  const int64_t groups = weight_groups(w);
  const int runs = int(std::clamp<int64_t>(groups, 1, p.pool.threads() * 8));
  for_each(p.pool, runs, [&](int i) {
    linear_pack(w.type, from, int64_t(row_bytes), int64_t(column_byte), row_map, w.rows, w.cols, int(groups * i / runs),
                int(groups * (i + 1) / runs), const_cast<uint8_t*>(w.data));
  });
}

void mr_unpack_row(void* program, int weight, int row, float* out) noexcept {
  linear_unpack_row(of(program).weights[weight], row, out);
}

void mr_set_vector(void* program, double offset, const float* values, double count) noexcept {
  std::copy_n(values, int64_t(count), reinterpret_cast<float*>(of(program).vector_data.data()) + int64_t(offset));
}

void mr_get_vector(void* program, double offset, float* out, double count) noexcept {
  std::copy_n(reinterpret_cast<const float*>(of(program).vector_data.data()) + int64_t(offset), int64_t(count), out);
}

void mr_set_threads(void* program, int threads) noexcept { of(program).pool.grant(threads); }

void mr_drop(void* program, int weights, int pages) noexcept {
  Program& p = of(program);
  if (weights) p.weight_data.drop();
  if (pages)
    for (Arena& a : p.page_data) a.drop();
}

int mr_run(void* program, const int32_t* counts, const int32_t* tokens, const int32_t* slots,
            const int32_t* token_start, const int32_t* kv_start, const int32_t* page_start, const int32_t* page_first,
            const int32_t* page_ids, const int32_t* rows, const int32_t* targets, const int32_t* row_positions,
            const int32_t* bias_start, const int32_t* bias_ids, const float* bias_values) noexcept {
  Program& p = of(program);
  Step& s = p.step;
  s.tokens = counts[0], s.sequences = counts[1], s.rows = counts[2];
  const int64_t groups = int64_t(p.group_pages.size());
  assign(s.slots, slots, s.sequences), assign(s.kv_start, kv_start, s.sequences);
  assign(s.token_start, token_start, s.sequences + 1);
  assign(s.page_start, page_start, groups * (s.sequences + 1)), assign(s.page_first, page_first, groups * s.sequences);
  assign(s.page_ids, page_ids, counts[3]);
  assign(s.row_tokens, rows, s.rows), assign(s.targets, targets, s.rows);
  assign(s.row_positions, row_positions, s.rows), assign(s.bias_start, bias_start, s.rows + 1);
  assign(s.bias_ids, bias_ids, counts[4]), assign(s.bias_values, bias_values, counts[4]);
  p.step_serial++;
  if (!derive(p, s, tokens)) return 1;
  p.forward();
  return 0;
}

void mr_sample(void* program, const int32_t* which, int count, const uint32_t* masks, int top, int32_t* tokens,
               float* logprobs, int32_t* ranks, int32_t* top_ids, float* top_logprobs) noexcept {
  of(program).sample(which, count, masks, {tokens, logprobs, ranks, top, top_ids, top_logprobs});
}

void mr_update_slots(void* program, int count, const int32_t* slots, const float* floats, const int32_t* ints,
                     const int32_t* prompt_start, const int32_t* prompt_ids, const int32_t* output_start,
                     const int32_t* output_ids) noexcept {
  Program& p = of(program);
  for (int u = 0; u < count; u++) {
    Slot& slot = p.slots[slots[u]];
    const float* f = floats + 6 * u;
    const int32_t* n = ints + 5 * u;
    slot.temperature = f[0], slot.top_p = f[1], slot.min_p = f[2];
    slot.repetition = f[3], slot.frequency = f[4], slot.presence = f[5];
    slot.top_k = n[0], slot.seed_low = uint32_t(n[1]), slot.seed_high = uint32_t(n[2]), slot.adapter = n[3];
    slot.counted = n[4] != 0;
    slot.counts.clear();
    for (int i = prompt_start[u]; i < prompt_start[u + 1]; i++) slot.counts[prompt_ids[i]].prompt = true;
    for (int i = output_start[u]; i < output_start[u + 1]; i++) slot.counts[output_ids[i]].output++;
  }
}

void mr_set_adapter(void* program, int adapter, int site, int rank, const float* a, int a_cols, const float* b, int b_rows,
                    float scale) noexcept {
  auto& adapters = of(program).adapters;
  if (adapter >= int(adapters.size())) adapters.resize(size_t(adapter) + 1);
  auto& sites = adapters[adapter];
  if (site >= int(sites.size())) sites.resize(size_t(site) + 1);
  Factors f{rank, a_cols, b_rows, scale, {a, a + int64_t(rank) * a_cols}, std::vector<float>(size_t(rank) * b_rows)};
  for (int r = 0; r < b_rows; r++)
    for (int j = 0; j < rank; j++) f.b[size_t(j) * b_rows + r] = b[int64_t(r) * rank + j];
  sites[site] = std::move(f);
}

void mr_drop_adapter(void* program, int adapter) noexcept {
  auto& adapters = of(program).adapters;
  if (adapter < int(adapters.size())) adapters[adapter].clear();
}

double mr_page_bytes(void* program, int group) noexcept { return double(of(program).page_bytes(group)); }

void mr_copy_pages(void* program, int group, const int32_t* from, const int32_t* to, int count) noexcept {
  for (int i = 0; i < count; i++) of(program).copy_page(group, from[i], to[i]);
}

// A page outside: its part of each of the group's caches, in order.
void mr_read_pages(void* program, int group, const int32_t* ids, int count, uint8_t* out) noexcept {
  for (int i = 0; i < count; i++) {
    for (const Cache& c : of(program).caches) {
      if (c.group != group) continue;
      out = std::copy_n(c.tile(ids[i], 0), c.head_bytes * c.heads, out);
    }
  }
}

void mr_write_pages(void* program, int group, const int32_t* ids, int count, const uint8_t* bytes) noexcept {
  for (int i = 0; i < count; i++) {
    for (const Cache& c : of(program).caches) {
      if (c.group != group) continue;
      std::copy_n(bytes, c.head_bytes * c.heads, c.tile(ids[i], 0));
      bytes += c.head_bytes * c.heads;
    }
  }
}

void mr_read_workspace(void* program, double offset, float* out, double count) noexcept {
  std::copy_n(of(program).floats(int64_t(offset)), int64_t(count), out);
}

int mr_quantize(int from, const uint8_t* source, double values, int to, uint8_t* out, int threads) noexcept {
  return quantize(Storage(from), source, int64_t(values), Storage(to), out, threads) ? 0 : 1;
}

double mr_roof_read(int threads) noexcept { return roof_read(threads); }
double mr_roof_int8(int threads) noexcept { return roof_int8(threads); }
double mr_roof_f32(int threads) noexcept { return roof_f32(threads); }
