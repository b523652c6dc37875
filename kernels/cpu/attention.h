// Owns: what one attention op of a program is, and how a step's work is cut; attention.cpp has the arithmetic.
//
// The order of every sum is laid down by absolute positions, so a row has the same bits however the work is cut:
//   positions:   | part 0: 256 tokens                    | part 1 ...
//   blocks:      | 64 | 64 | 64 | 64 |                   one online-softmax update each, in order, inside a part
//   then the parts of a row are folded, in order, and divided.
// A decoding row with a long past has its parts run by different threads and joined by the op that follows.
#pragma once
#include <memory>
#include <vector>

#include "program.h"

namespace mr {

constexpr int block_tokens = 64;
constexpr int part_tokens = 256;

struct AttentionTask {
  int sequence, kv_head, t0, t1;  // tokens of the step
  int part;                       // −1: all of them
};

// Same for all layers of one geometry: made once a step.
struct AttentionTasks {
  uint64_t made_for = ~uint64_t(0);
  std::vector<AttentionTask> tasks;
  // By sequence: floats offset of its partial results, −1: none; the first of its parts and how many.
  struct Split {
    int64_t at;
    int first, count;
  };
  std::vector<Split> splits;
};

struct Attention : WideOp {
  Cache cache;
  KvType kv_type;
  const float* q;
  float* y;
  int64_t ldq, ldy;
  int heads, group;
  float scale, softcap;
  int window;  // 0: none
  bool causal;
  const float* sinks;
  float* partial;
  int64_t partial_floats;
  int query_tokens;  // tokens of one task
  std::shared_ptr<AttentionTasks> work;
  const uint64_t* step_serial;

  int chunks(const Step& step, int threads) override;
  void run(const Step& step, int chunk, Thread& thread) override;
  // Joins a token's partial results into y, where its sequence has any.
  void join(const Step& step, int token) const;

  int last_position(const Step& s, int sequence, int token) const;
  int first_position(int position) const { return window > 0 && position >= window ? position - window + 1 : 0; }
  int64_t partial_size() const { return 2 + cache.v_padded; }
  int64_t scratch_bytes() const;
  bool same_geometry(const Attention& o) const;

 private:
  void make_tasks(const Step& step, int threads);
  template <class T>
  void run_task(const Step& step, const AttentionTask& task, Thread& thread) const;
};

}  // namespace mr
