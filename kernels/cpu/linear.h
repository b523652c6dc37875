// Owns: the boundary between the program interpreter (ops, threads, memory: program.cpp and friends) and the matrix
// kernels (linear*.cpp): packed weights and y = x · Wᵀ over them. Everything here is called concurrently by the pool's
// threads on disjoint ranges; nothing here allocates, locks or knows a thread.
#pragma once
#include <cstdint>

namespace mr {

// How bytes lie on disk. Values are shared with src/device/cpu (StorageType order of src/base/dtype.ts).
enum class Storage : int32_t { F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, count };

// How a weight wants its input: computed once a token, shared by all weights with the same input and kind. The two of
// bf16: rounded to bf16 for calls of more than a few tokens, with sums whose bits depend on the call; otherwise as the first two.
enum class Act : int32_t { f32, q8, f32_or_bf16, q8_or_bf16, count };

// A packed matrix [rows, cols]: codes and scales re-laid in groups of `row_group` interleaved rows, losslessly. Rows are
// padded to a whole group. data is 64-byte aligned; group g starts at data + g · linear_group_bytes(type, cols).
struct Weight {
  const uint8_t* data;
  Storage type;
  int32_t rows, cols;
  Act act;
};

struct Epilogue {
  const float* bias;   // [rows] or null
  bool accumulate;     // y += instead of y =
};

int linear_row_group();                                        // interleaved rows: the unit of work
int64_t linear_group_bytes(Storage type, int32_t cols);
bool linear_supports(Storage type, int32_t cols);              // cols a whole number of blocks...

// Packs groups [g0, g1). src_row(i) of packed row i is src + (row_map ? row_map[i] : i) · src_row_bytes + col_byte.
void linear_pack(Storage type, const uint8_t* src, int64_t src_row_bytes, int64_t src_col_byte, const int32_t* row_map,
                 int32_t rows, int32_t cols, int32_t g0, int32_t g1, uint8_t* dst);
// The inverse for one row, to f32: embedding lookups and tests. Bit for bit what the format's own dequantiser gives.
void linear_unpack_row(const Weight& w, int32_t row, float* out);

// exact: every row's bits depend on that row alone, and are those of every other instruction set.
Act linear_act(Storage type, bool exact);
int64_t linear_act_bytes(Act kind, int32_t tokens, int32_t cols);
// x: [tokens, ldx]; prepares tokens [t0, t1) into act (whose layout may interleave tokens only inside [t0, t1) of
// multiples of linear_token_group(), so callers split there).
int linear_token_group();
void linear_prepare(Act kind, const float* x, int64_t ldx, int32_t tokens, int32_t cols, int32_t t0, int32_t t1, void* act);

// y[t · ldy + r] for t in [t0, t1) and the rows of groups [g0, g1). The bits of y[t][r] depend on token t's input and row
// r alone, never on t0, t1, g0 or g1, nor on `tokens` where the weight's act is f32 or q8. scratch: linear_scratch_bytes() of the calling thread's own, 64-byte aligned.
int64_t linear_scratch_bytes(int32_t max_cols);
void linear_run(const Weight& w, const void* act, int32_t tokens, int32_t t0, int32_t t1, int32_t g0, int32_t g1,
                float* y, int64_t ldy, const Epilogue& epilogue, void* scratch);

}  // namespace mr
