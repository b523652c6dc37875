// Owns: the attention kernels by name. A cache's type and head size decide the kernel; everything else is an argument.
//   mr_attention_plan                        once a step and geometry, before the others
//   mr_attention_decode_{bf16,f16}_{D}       short rows       both after the step's keys and values are in their pages
//   mr_attention_prefill[_exact]_{bf16,f16}_{D}   long rows
//   mr_attention_any_{bf16,f16,f32}          any head size, every row; needs no plan
#include "attention_any.cuh"
#include "attention_decode.cuh"
#include "attention_plan.cuh"
#include "attention_prefill.cuh"

using mr::attn::Args;

#define ATTENTION_PARAMETERS                                                                                        \
  const __nv_bfloat16 *q, __nv_bfloat16 *y, const uint8_t *k, const uint8_t *v, int64_t page_bytes, const int *plan, \
      int64_t tiles_at, const int *page_ids, float *partial, int *arrived, const float *sinks, int heads,            \
      int kv_heads, float scale, float softcap, int window, int causal
#define ATTENTION_ARGS \
  Args { q, y, k, v, page_bytes, plan, page_ids, partial, arrived, sinks, tiles_at, heads, kv_heads, scale, softcap, window, causal }

extern "C" __global__ void __launch_bounds__(mr::attn::plan_threads)
    mr_attention_plan(int* plan, int64_t tiles_at, int heads, int kv_heads, int window, int causal, int tile_block_rows,
                      int blocks, int room, const mr::StepInfo* step, const int* token_starts, const int* kv_starts,
                      const int* page_starts, const int* page_firsts, const int* page_ids) {
  Args a = {};
  a.tiles_at = tiles_at, a.heads = heads, a.kv_heads = kv_heads, a.window = window, a.causal = causal;
  a.page_ids = page_ids;
  mr::wait();
  mr::release();
  mr::attn::make_plan(plan, a, tile_block_rows, blocks, room, step->sequences, token_starts, kv_starts, page_starts,
                      page_firsts);
}

#define DECODE(name, T, D, SLOTS, BLOCKS)                                                      \
  extern "C" __global__ void __launch_bounds__(mr::attn::decode_threads, BLOCKS)               \
      mr_attention_decode_##name##_##D(ATTENTION_PARAMETERS) {                                 \
    mr::attn::decode<T, D, SLOTS, false>(ATTENTION_ARGS, nullptr, nullptr);                    \
  }
// The same with the copy engine; empty where there is none.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define BOXES(name, T, D, SLOTS, BLOCKS)                                                       \
  extern "C" __global__ void __launch_bounds__(mr::attn::decode_threads, BLOCKS)               \
      mr_attention_decode_boxes_##name##_##D(ATTENTION_PARAMETERS,                             \
                                             const __grid_constant__ mr::attn::TensorMap keys, \
                                             const __grid_constant__ mr::attn::TensorMap values) { \
    mr::attn::decode<T, D, SLOTS, true>(ATTENTION_ARGS, &keys, &values);                       \
  }
#else
#define BOXES(name, T, D, SLOTS, BLOCKS)                                                       \
  extern "C" __global__ void mr_attention_decode_boxes_##name##_##D(                           \
      ATTENTION_PARAMETERS, const __grid_constant__ mr::attn::TensorMap keys,                  \
      const __grid_constant__ mr::attn::TensorMap values) {}
#endif
#define PREFILL(name, T, D, WARPS, MT, BLOCKS, XWARPS, XMT)                                    \
  extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)                             \
      mr_attention_prefill_##name##_##D(ATTENTION_PARAMETERS) {                                \
    mr::attn::prefill<T, D, WARPS, MT, false>(ATTENTION_ARGS);                                 \
  }                                                                                            \
  extern "C" __global__ void __launch_bounds__(32 * XWARPS, 1)                                 \
      mr_attention_prefill_exact_##name##_##D(ATTENTION_PARAMETERS) {                          \
    mr::attn::prefill<T, D, XWARPS, XMT, true>(ATTENTION_ARGS);                                \
  }
#define BOTH(name, T)                  \
  DECODE(name, T, 64, 3, 4)            \
  DECODE(name, T, 96, 2, 3)            \
  DECODE(name, T, 128, 3, 2)                      \
  DECODE(name, T, 256, 2, 1)           \
  BOXES(name, T, 64, 3, 4)             \
  BOXES(name, T, 128, 3, 2)            \
  BOXES(name, T, 256, 3, 1)            \
  PREFILL(name, T, 64, 4, 2, 2, 8, 1)  \
  PREFILL(name, T, 96, 4, 2, 2, 8, 1)  \
  PREFILL(name, T, 128, 4, 2, 2, 8, 1) \
  PREFILL(name, T, 256, 8, 1, 1, 4, 1)

BOTH(bf16, __nv_bfloat16)
BOTH(f16, __half)

#define ANY(name, T)                                                                                               \
  extern "C" __global__ void __launch_bounds__(mr::attn::any_threads) mr_attention_any_##name(                     \
      const __nv_bfloat16* q, __nv_bfloat16* y, const uint8_t* k, const uint8_t* v, int64_t page_bytes,            \
      const int* page_ids, const float* sinks, int heads, int kv_heads, float scale, float softcap, int window,    \
      int causal, int head_dim, int v_head_dim, const mr::StepInfo* step, const int* token_sequence,               \
      const int* token_starts, const int* kv_starts, const int* page_starts, const int* page_firsts) {             \
    const Args a = {q, y, k, v, page_bytes, nullptr, page_ids, nullptr, nullptr, sinks, 0, heads, kv_heads, scale, \
                    softcap, window, causal};                                                                      \
    mr::attn::attend_any<T>(a, head_dim, v_head_dim, step, token_sequence, token_starts, kv_starts, page_starts,   \
                            page_firsts);                                                                          \
  }
ANY(bf16, __nv_bfloat16)
ANY(f16, __half)
ANY(f32, float)
