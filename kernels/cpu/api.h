// Owns: the C ABI that src/device/cpu/native.ts binds, and nothing else of this folder is seen from outside. One thread
// calls it for one program at a time. Sizes and offsets that may pass 2^31 travel as doubles. Messages are UTF-8,
// cut to the buffer. No exception passes: what cannot be had (memory for a step's few lists) ends the process, which its
// owner starts again.
#pragma once
#include <cstdint>

#define MR_API extern "C" __attribute__((visibility("default")))

MR_API const char* mr_isa() noexcept;
MR_API int mr_row_group() noexcept;
MR_API int mr_token_group() noexcept;
MR_API int mr_supports(int type, int cols) noexcept;
// How the type wants its input prepared; exact: with bits that depend on the row alone.
MR_API int mr_act(int type, int exact) noexcept;
MR_API double mr_act_bytes(int kind, int tokens, int cols) noexcept;
MR_API double mr_packed_bytes(int type, int rows, int cols) noexcept;

// Null, and a message, where the description is bad or memory is not there.
MR_API void* mr_create(const double* description, double length, char* message, int message_bytes) noexcept;
MR_API void mr_destroy(void* program) noexcept;

// Packs `rows` rows (row_map: which of the source's; null: from row0 on) of a weight, on all threads.
MR_API void mr_pack(void* program, int weight, const uint8_t* source, double row_bytes, double column_byte, int row0,
                    const int32_t* row_map) noexcept;
// The inverse, of one row: [cols].
MR_API void mr_unpack_row(void* program, int weight, int row, float* out) noexcept;
MR_API void mr_set_vector(void* program, double offset, const float* values, double count) noexcept;
MR_API void mr_get_vector(void* program, double offset, float* out, double count) noexcept;
// Gives weights or pages back to the system; weights have to be packed again.
MR_API void mr_drop(void* program, int weights, int pages) noexcept;
// How many of the program's threads work from the next call on.
MR_API void mr_set_threads(void* program, int threads) noexcept;

// Runs a step's forward and samples the rows `which`. Arrays are those of src/device/batch.ts; counts: tokens, sequences,
// rows, page ids, bias entries. Page tables of all groups stand one after another: group g's `start` at
// g · (sequences + 1), its `first` at g · sequences, and the starts count from the first group's ids on.
// 0: done. 1: a token stands for the last sample of a slot that has none; nothing has run.
MR_API int mr_run(void* program, const int32_t* counts, const int32_t* tokens, const int32_t* slots,
                   const int32_t* token_start, const int32_t* kv_start, const int32_t* page_start,
                   const int32_t* page_first, const int32_t* page_ids, const int32_t* rows, const int32_t* targets,
                   const int32_t* row_positions, const int32_t* bias_start, const int32_t* bias_ids,
                   const float* bias_values) noexcept;
// Samples `count` rows of the last step; masks: null or ceil(vocab / 32) words for each of them. Results are written at
// the rows' own places: [rows], and [rows · top].
MR_API void mr_sample(void* program, const int32_t* which, int count, const uint32_t* masks, int top, int32_t* tokens,
                      float* logprobs, int32_t* ranks, int32_t* top_ids, float* top_logprobs) noexcept;
// Slot updates, applied in order: floats and ints in the order of SlotFloat and SlotInt.
MR_API void mr_update_slots(void* program, int count, const int32_t* slots, const float* floats, const int32_t* ints,
                            const int32_t* prompt_start, const int32_t* prompt_ids, const int32_t* output_start,
                            const int32_t* output_ids) noexcept;

// What adapter slot `adapter` adds at a site (the number of a lora instruction): a [rank, a_cols], b [b_rows, rank].
MR_API void mr_set_adapter(void* program, int adapter, int site, int rank, const float* a, int a_cols, const float* b,
                           int b_rows, float scale) noexcept;
MR_API void mr_drop_adapter(void* program, int adapter) noexcept;

MR_API double mr_page_bytes(void* program, int group) noexcept;
MR_API void mr_copy_pages(void* program, int group, const int32_t* from, const int32_t* to, int count) noexcept;
MR_API void mr_read_pages(void* program, int group, const int32_t* ids, int count, uint8_t* out) noexcept;
MR_API void mr_write_pages(void* program, int group, const int32_t* ids, int count, const uint8_t* bytes) noexcept;
// floats of the workspace, from a byte offset on.
MR_API void mr_read_workspace(void* program, double offset, float* out, double count) noexcept;

// What the machine can do at most, on so many threads: bytes read a second, int8 and f32 operations a second. Takes about
// half a second.
MR_API double mr_roof_read(int threads) noexcept;
MR_API double mr_roof_int8(int threads) noexcept;
MR_API double mr_roof_f32(int threads) noexcept;

// Attention with every score in memory, for comparison; see naive_attention.cpp. Returns the bytes of scores.
MR_API double mr_naive_attention(const float* q, const float* k, const float* v, float* out, int n, int heads,
                                 int kv_heads, int dim, int threads) noexcept;

// Quantises `values` values of a float type to another's blocks; needs no program. 0: done. 1: one of them is not finite.
MR_API int mr_quantize(int from, const uint8_t* source, double values, int to, uint8_t* out, int threads) noexcept;
