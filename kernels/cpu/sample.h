// Owns: how a token follows from a row of logits: the decisions of src/device/reference/sample.ts, which is the
// specification; here with vectors and without sorting a vocabulary.
#pragma once
#include <cstdint>
#include <vector>

#include "program.h"

namespace mr {

// Of a stretch of logits: the largest, its smallest id, and Σ exp(l − max).
struct Stats {
  float max;
  int32_t best;
  double sum;
};

constexpr int stats_tokens = 8192;  // stretches of this many, so that the sums have one order

// l = softcap · tanh((scale · l + bias) / softcap), NaN to −Infinity, +Infinity to the largest; in place, n values of
// which the first is token `first`.
Stats finish_logits(float* l, int n, int32_t first, float scale, float softcap, const float* bias);
Stats merge(const Stats* stretches, int count);

struct RowRequest {
  const Slot* slot;
  int32_t position, target;
  const int32_t* bias_ids;
  const float* bias_values;
  int bias_count;
  const uint32_t* mask;  // or null
  int top;
};

struct RowResult {
  int32_t token, rank;
  float logprob;
  int32_t* top_ids;  // [top]
  float* top_logprobs;
};

// Kept by each thread, so that rows allocate nothing.
struct SampleScratch {
  std::vector<float> adjusted, weights;
  std::vector<int32_t> ids;
};

void sample_row(const float* l, int vocab, const Stats& stats, const RowRequest& request, RowResult& result,
                SampleScratch& scratch);

}  // namespace mr
