// Owns: what attention's kernels share: the order of its sums, the records by which a step's work is dealt out, and the
// tensor core's vocabulary.
//
// The order of every sum is laid down by absolute positions, so a row has the same bits however the work is cut:
//   positions:  | part: 64 | part | part | ...              one page; scores, their maximum, weights, weights · V
//   supers:     | 2 parts | 2 parts | ... | 8 parts | ...   parts folded in order, from nothing
//   a row:      supers folded in order, from nothing, then the sink, then the division
// A run is some consecutive supers of 16 rows (tokens × query heads of one key/value head). The first run of its rows
// goes on folding and leaves one partial result, later ones leave one a super; who comes last folds them in order.
// Where rows are many (prompts), a block keeps its rows from end to end: attention_prefill.cuh.
#pragma once
#include <type_traits>

#include "common.cuh"

namespace mr {
namespace attn {

constexpr int part_tokens = 64;  // also of a page
constexpr int tile_rows = 16;
constexpr float log2_e = 1.4426950408889634f;

// Supers in parts: of 2 up to 1024 positions, of `middle` up to 16384, then of twice that. The fewer key/value heads there
// are, the finer they have to be to keep a device busy. Layers with a window read few positions wherever they are: of 2.
struct Supers {
  int shift;  // middle is 2^shift; 0: of 2 everywhere
  __device__ Supers(int kv_heads, int window) : shift(window > 0 ? 0 : kv_heads >= 8 ? 3 : kv_heads >= 4 ? 2 : 1) {}
  __device__ int index(int part) const {
    if (shift == 0 || part < 16) return part >> 1;
    const int middle = 8 + ((min(part, 256) - 16) >> shift);
    return part < 256 ? middle : middle + ((part - 256) >> (shift + 1));
  }
  // The first boundary at or after part.
  __device__ int boundary(int part) const {
    const int round = shift == 0 || part <= 16 ? 1 : (part <= 256 ? 1 << shift : 2 << shift) - 1;
    return (part + round) & ~round;
  }
  __device__ bool ends(int next_part) const { return boundary(next_part) == next_part; }
};

// The plan of one step: two counts, then the records. Written by mr_attention_plan, read by every layer of its geometry.
struct Run {
  int part0, part1;     // [part0, part1)
  int page_base;        // pageIds[page_base + part]
  int kv_start, n;      // of the sequence: positions before this step, tokens in it
  int token_start;
  int row0;             // first of the 16 rows; row r of a sequence: token r / group, head r % group of its kv head
  int partial;          // index of its first partial result, −1: this run is all, and writes y
  int base, count;      // of the partial results that are to be folded
  int runs;
  int rows;             // index of these 16 rows, for the counter
  int page0, page1;     // of its first two parts
  int pad[2];
};
static_assert(sizeof(Run) == 64);

struct Tile {  // of a long sequence: rows from row0 on
  int row0, token_start, n, kv_start, page_base;
  int pad[3];
};
static_assert(sizeof(Tile) == 32);

constexpr int plan_header = 8;  // int32: runs, tiles

// What a launch knows: fixed addresses and numbers.
struct Args {
  const bf16* q;
  bf16* y;
  const uint8_t* k;  // of page 0; a page of a kv head is [64][D]
  const uint8_t* v;
  int64_t page_bytes;  // from page to page
  const int* plan;
  const int* page_ids;
  float* partial;
  int* arrived;
  const float* sinks;  // or null
  int64_t tiles_at;    // int32 offset of the tiles in the plan
  int heads, kv_heads;
  float scale, softcap;  // softcap 0: none
  int window;            // 0: none
  int causal;
};

// ---- copies to shared memory, matrices

__device__ inline uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// 16 bytes; zeros where !real.
__device__ inline void copy_async(uint32_t to, const void* from, bool real) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0)
               : "memory");
}
__device__ inline void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ inline void wait_all_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ inline void load_matrices(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
__device__ inline void load_transposed(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
__device__ inline void load_transposed(uint32_t (&r)[2], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(at)
               : "memory");
}

// c += a · b, 16 × 8 × 16.
template <class T>
__device__ inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <class T>
__device__ inline uint32_t pack(float low, float high);
template <>
__device__ inline uint32_t pack<bf16>(float low, float high) {
  __nv_bfloat162 r = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<uint32_t*>(&r);
}
template <>
__device__ inline uint32_t pack<__half>(float low, float high) {
  __half2 r = __floats2half2_rn(low, high);
  return *reinterpret_cast<uint32_t*>(&r);
}
template <class T>
constexpr uint32_t ones = 0x3f803f80;
template <>
constexpr uint32_t ones<__half> = 0x3c003c00;

// Two bf16 as the cache's type.
template <class T>
__device__ inline uint32_t from_bf16(uint32_t two) {
  if constexpr (std::is_same_v<T, bf16>) return two;
  const float2 f = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&two));
  return pack<T>(f.x, f.y);
}

// A tile of R rows of D elements of 2 bytes in shared memory, in 16-byte chunks, placed so that 8 rows' chunks of one column
// lie in different banks: [chunk / 8][row][chunk % 8 ^ row % 8], which is also how the copy engine's 128-byte swizzle
// lays out its boxes of 64 columns; rows with 16 bytes of padding where 64 columns do not go into D.
template <int D, int R = part_tokens>
struct Rows {
  static constexpr int chunks = D / 8;
  static constexpr bool swizzled = chunks % 8 == 0;
  static constexpr int stride = swizzled ? 128 : 2 * D + 16;  // from row to row
  static constexpr int bytes = R * (swizzled ? 2 * D : stride);
  static_assert(swizzled || (stride / 16) % 2 == 1);
  __device__ static uint32_t at(int row, int chunk) {
    if (!swizzled) return row * stride + chunk * 16;
    return (chunk >> 3) * (R * 128) + row * 128 + (((chunk & 7) ^ (row & 7)) << 4);
  }
  // The address of chunk c + chunks from that of chunk c (tiles lie on multiples of 128 bytes): c is 0 or 1, chunks even.
  __device__ static uint32_t moved(uint32_t at, int chunks) {
    return swizzled ? (at ^ ((chunks & 7) << 4)) + (chunks >> 3) * (R * 128) : at + chunks * 16;
  }
};

// ---- the copy engine (Hopper): boxes of 64 columns and 64 rows, and the barriers that count their bytes

struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

#if __CUDA_ARCH__ >= 900
__device__ inline void barrier_init(uint32_t barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}
__device__ inline void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ inline void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
// What this thread wrote to shared memory comes before what the copy engine does there afterwards.
__device__ inline void before_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ inline void copy_box(uint32_t to, const TensorMap* map, int column, int row, int page, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(page), "r"(barrier)
      : "memory");
}
#endif

// ---- softmax

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Scores in units where the weight is 2^score: multiply by `factor` after this.
struct Scale {
  float factor, in, cap;
  __device__ Scale(float scale, float softcap)
      : factor(softcap > 0 ? 1.0f : scale * log2_e), in(softcap > 0 ? 2 * log2_e * scale / softcap : 0), cap(softcap * log2_e) {}
  // cap · tanh(x · scale / softcap): tanh(z) = 1 − 2 / (1 + e^2z)
  __device__ float capped(float x) const { return cap - __fdividef(2 * cap, 1 + exp2_fast(x * in)); }
};

constexpr float nothing = -__builtin_huge_valf();

// (m, l, o) ← (m, l, o) and (m1, l1, o1) together: o ← o · keep + o1 · take. Exact where either is empty.
struct Fold {
  float keep = 1, take = 1;
  Fold() = default;
  __device__ Fold(float& m, float& l, float m1, float l1) {
    const float both = fmaxf(m, m1), base = both == nothing ? 0.0f : both;
    keep = exp2_fast(m - base), take = exp2_fast(m1 - base);
    l = fmaf(l1, take, l * keep);
    m = both;
  }
  __device__ float operator()(float o, float o1) const { return fmaf(o1, take, o * keep); }
};

// The sink joins; what o has to be multiplied by.
__device__ inline float finish(float m, float l, const float* sinks, int head) {
  float keep = 1;
  if (sinks) {
    const float sink = sinks[head] * log2_e, both = fmaxf(m, sink);
    keep = exp2_fast(m - both);
    l = fmaf(l, keep, exp2_fast(sink - both));
  }
  return l > 0 ? keep / l : 0;
}

// What row r of a sequence's rows may see: positions [first, last].
struct Reach {
  int first, last;
  __device__ Reach(int r, int group, int n, int kv_start, const Args& a) {
    const int token = min(r / group, n - 1), position = kv_start + token;
    last = a.causal ? position : kv_start + n - 1;
    first = a.window > 0 ? max(0, position - a.window + 1) : 0;
  }
};

}  // namespace attn
}  // namespace mr
