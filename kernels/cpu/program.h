// Owns: what a program is on this side: one workspace, packed weights, KV pages, device slots, and a list of operations
// that was decoded once. A step runs the list over one batch; see program.cpp for how it is cut into stages.
//
//   TokenOp: a row of its output depends on the same row of its inputs alone. Neighbours in the list form a Region, which
//            a thread runs from end to end over a few tokens: no barrier inside.
//   WideOp:  needs all of its input; cut into chunks in its own way. A Region is one.
//
// Activations are f32, rows of [tokens, width] or [rows, width], at fixed offsets in the workspace.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "linear.h"
#include "pool.h"

namespace mr {

enum class KvType : int32_t { f32, f16, bf16, q8 };
constexpr int page_tokens = 16;

// Memory from the system, zero until written. drop() gives the contents back and keeps the addresses.
class Arena {
 public:
  explicit Arena(int64_t bytes = 0);
  ~Arena();
  Arena(Arena&& o) noexcept : data_(o.data_), bytes_(o.bytes_) { o.data_ = nullptr, o.bytes_ = 0; }
  Arena& operator=(Arena&& o) noexcept {
    std::swap(data_, o.data_), std::swap(bytes_, o.bytes_);
    return *this;
  }
  Arena(const Arena&) = delete;
  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  void drop();
  void want_huge_pages();

 private:
  uint8_t* data_;
  int64_t bytes_;
};

// Pages of sequence s: ids[start[s] … start[s+1]); the first holds positions from first[s] · page_tokens on.
struct PageTable {
  const int32_t *start, *first, *ids;
};

// A batch (src/device/batch.ts), copied, and what is derived from it. It stays until the next one: rows that wait for
// masks are sampled later.
struct Step {
  int tokens = 0, sequences = 0, rows = 0;
  std::vector<int32_t> slots, token_start, kv_start;        // by sequence
  std::vector<int32_t> page_start, page_first, page_ids;    // of all groups, one after another
  std::vector<int32_t> row_tokens, targets, row_positions;  // by row
  std::vector<int32_t> bias_start, bias_ids;
  std::vector<float> bias_values;
  std::vector<int32_t> ids, positions, sequence;  // by token; ids with the slots' last tokens put in
  std::vector<PageTable> pages;                   // by group
};

// A layer's keys and values: page p of head h starts at data + (p · heads + h) · head_bytes with a K tile [dim, 16] and
// then a V tile [16, v_padded], the rest of a V row being zero. In q8 the tiles are of int8, and f32 scales follow: of the
// 16 keys, then of the 16 values. A number is its code times its scale.
struct Cache {
  int group, heads, dim, v_dim, v_padded;
  int64_t tile_bytes, head_bytes;  // of both tiles; with the scales
  uint8_t* data;
  uint8_t* tile(int page, int head) const { return data + (int64_t(page) * heads + head) * head_bytes; }
  float* key_scales(uint8_t* tile) const { return reinterpret_cast<float*>(tile + tile_bytes); }
  float* value_scales(uint8_t* tile) const { return key_scales(tile) + page_tokens; }
};

struct Thread {
  int index;
  uint8_t* scratch;  // 64-byte aligned, the largest that any op asked for
};

struct Program;

struct TokenOp {
  virtual ~TokenOp() = default;
  virtual void run(const Step& step, int t0, int t1, Thread& thread) = 0;
};

struct WideOp {
  virtual ~WideOp() = default;
  // Called by one thread just before the op: 0 chunks: nothing to do; 1: that thread runs it at once.
  virtual int chunks(const Step& step, int threads) = 0;
  virtual void run(const Step& step, int chunk, Thread& thread) = 0;
};

// The description's numbers, read in order.
class Reader {
 public:
  Reader(const double* begin, const double* end) : at_(begin), end_(end) {}
  double number();
  int integer() { return int(number()); }
  int64_t offset() { return int64_t(number()); }
  float real() { return float(number()); }
  bool done() const { return at_ == end_; }
  Reader part(int count);

 private:
  const double *at_, *end_;
};

// One output of a matrix product. Several run side by side when nothing orders them.
struct Segment {
  Weight weight;
  const void* act;
  float* y;
  int64_t ldy;
  Epilogue epilogue;
};

struct Slot {
  float temperature = 0, top_p = 1, min_p = 0, repetition = 1, frequency = 0, presence = 0;
  int32_t top_k = 0;
  uint32_t seed_low = 0, seed_high = 0;
  int32_t adapter = -1, last_token = -1;  // −1: none yet
  bool counted = false;
  struct Count {
    bool prompt;
    int32_t output;
  };
  std::unordered_map<int32_t, Count> counts;
};

// What an adapter adds at one site: y += scale · B (A x). a: [rank, a_cols]; b, turned round: [rank, b_rows].
struct Factors {
  int rank = 0, a_cols = 0, b_rows = 0;
  float scale = 0;
  std::vector<float> a, b;
};

struct Results {
  int32_t* tokens;
  float* logprobs;
  int32_t* ranks;
  int top;
  int32_t* top_ids;
  float* top_logprobs;
};

int64_t weight_groups(const Weight& w);
// Row groups [from, to) of the segments laid end to end, for n tokens.
void run_segments(const std::vector<Segment>& segments, int n, int64_t from, int64_t to, void* scratch);

struct Tail;
struct Attention;
struct Moe;

// y = f(x) · up over d values, or f(x) where up is null; kind: as src/device/cpu/lower.ts numbers them.
using ActivateRow = void (*)(const float* x, const float* up, float* y, int d);
ActivateRow activate_row_of(int kind);

struct Program {
  // Throws std::runtime_error with a message where the description makes no sense.
  Program(const double* description, int64_t length);
  ~Program();

  int max_tokens, max_rows, vocab;
  KvType kv_type;
  Pool pool;
  Arena workspace, weight_data, vector_data, scratch;
  std::vector<Arena> page_data;  // by cache
  std::vector<int32_t> group_pages;
  std::vector<Cache> caches;
  std::vector<Weight> weights;
  std::vector<Slot> slots;
  std::vector<std::vector<Factors>> adapters;  // by adapter slot and site; empty or of rank 0: nothing is added
  std::vector<std::unique_ptr<WideOp>> ops;
  std::vector<Attention*> attentions;  // those of `ops`, in order
  std::shared_ptr<Moe> last_moe;       // while decoding
  std::unique_ptr<Tail> tail;
  std::vector<Thread> threads;
  int64_t scratch_bytes = 0;
  Step step;
  uint64_t step_serial = 0;

  float* floats(int64_t offset) { return reinterpret_cast<float*>(workspace.data() + offset); }
  float* floats_or_null(int64_t offset) { return offset < 0 ? nullptr : floats(offset); }
  const float* vector(int64_t index) {
    return index < 0 ? nullptr : reinterpret_cast<const float*>(vector_data.data()) + index;
  }
  void need_scratch(int64_t bytes) {
    if (bytes > scratch_bytes) scratch_bytes = bytes;
  }
  Segment read_segment(Reader& r);
  void forward();
  // Samples the given rows (indices into the step's rows); bits: one mask a row of ceil(vocab / 32) words, or null.
  void sample(const int32_t* which, int count, const uint32_t* bits, const Results& results);
  void copy_page(int group, int from, int to);
  int64_t page_bytes(int group) const;
};

// Decoders of the instructions, one a file: null where the code is not theirs.
std::unique_ptr<TokenOp> decode_elementwise(int code, Reader& r, Program& p);
std::unique_ptr<TokenOp> decode_norm(int code, Reader& r, Program& p);
std::unique_ptr<TokenOp> decode_lora(int code, Reader& r, Program& p);
std::unique_ptr<TokenOp> decode_rope(int code, Reader& r, Program& p);
std::unique_ptr<TokenOp> decode_attention_join(int code, Reader& r, Program& p);
std::unique_ptr<TokenOp> decode_route(int code, Reader& r, Program& p);
std::unique_ptr<WideOp> decode_attention(int code, Reader& r, Program& p);
// Appends its several ops itself; false: not its code.
bool decode_moe(int code, bool rows, Reader& r, Program& p);

// Codes of the description's instructions; src/device/cpu/code.ts has the same list in the same order.
enum Code : int {
  code_embed,
  code_prepare,
  code_add,
  code_activation,
  code_gated,
  code_gather,
  code_rms_norm,
  code_layer_norm,
  code_rope_table,
  code_rope,
  code_cache_write,
  code_linear,
  code_attention,
  code_attention_join,
  code_logits,
  code_lora,
  code_route,
  code_moe,
  code_moe_sum,
};

}  // namespace mr
