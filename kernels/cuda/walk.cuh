// Owns: a step of one token in one launch. Between launches the memory waits: here one block a multiprocessor walks through the
// step's instructions, and while its warps wait for what other blocks compute, weights, keys and values of what comes next
// are on their way.
//
//   an instruction is a launch that it stands for: its parameters as they would be passed (src/device/cuda/walk.ts)
//     linear   mr_linear_1: tiles of 16 rows dealt over the blocks, each cut into slices of k for the block's warps
//     attend   mr_qkv and mr_attention_decode: one key/value head, or a part of its past, a block
//   a block = 8 warps that compute; 3 that fill their rings of shared memory through the copy engine, a lane a ring, in the order
//   in which its warp will want what it brings; one that finishes tiles (adds slices, scales, leaves the values) and keeps the
//   instructions' table
//
// Blocks wait for nothing but values: what an instruction leaves for another lies in an exchange, two bf16 and a tag in eight bytes
// that are written and read together. A tag names step and instruction; who reads looks again until it is there. An
// exchange is used again eight instructions later: by then whoever read it has added to something that the writer needed.
//
// Sums are added in the order of slices: the same bits every time. Hopper alone; empty elsewhere.
#pragma once
#include "attention.cuh"
#include "hopper.cuh"
#include "linear_one.cuh"

namespace mr {
namespace walk {

constexpr int warps = 8, producers = 3, threads = 32 * (warps + 1 + producers);
constexpr int held = 8;       // instructions in shared memory
constexpr int buffers = 4;    // tiles whose sums may wait to be finished
constexpr int flying = 8;     // pieces of a warp in its ring
constexpr int exchanges = 8;

enum Op { op_linear, op_attend };

// Parameters of mr_linear_1, in its order.
struct Linear {
  const bf16* x;
  int cols;
  void* y;
  int y_f32, y_width;
  const float* bias;
  const int* count;
  int epilogue, activation;
  int rows;  // gated: of a half
  const float* squares;
  int num_squares;
  float eps;
  const float* next_weight;
  bf16* next;
  float* next_squares;
  int num_segments;
  Segment segments[4];
};

// Of mr_qkv, then of mr_attention_decode.
struct Attend {
  const StepInfo* info;
  const int *positions, *sequences;
  const bf16* qkv;
  int qkv_wide;
  void* turned;
  int turned_wide, numbers[5];  // what the second launch says again, and the head's sizes
  int interleaved;
  const float2* table;
  const float *q_norm, *k_norm;
  float norm_eps;
  uint8_t *new_keys, *new_values;
  int64_t page_bytes;
  const int *page_start, *page_first, *page_ids;
  int type;
  const bf16* q;
  bf16* y;
  const uint8_t *k, *v;
  int64_t pool_bytes;
  const int* plan;
  int64_t tiles_at;
  const int* ids;
  float* partial;
  int* arrived;
  const float* sinks;
  int heads, kv_heads;
  float scale, softcap;
  int window, causal;
};

struct Instruction {
  int op;
  int from;        // the instruction whose exchange it reads; −1: x as it lies in memory
  int log_slices;  // of a tile's k; gated: of both halves together
  int log_grain;   // slices are cut at multiples of this many values
  int each, more;  // tiles of every block; `more` blocks from `start` on have one more
  int start;
  const float* residual;
  union {
    Linear linear;
    Attend attend;
  };
};
constexpr int instruction_bytes = 384;  // in memory two tensor maps follow: boxes of 64 × 16 of the keys, of the values
constexpr int stride = instruction_bytes + 2 * 128;
static_assert(sizeof(Linear) == 176 && sizeof(Attend) == 280 && sizeof(Instruction) <= instruction_bytes);

// What blocks leave each other: of an instruction `pairs` pairs of values, then a sum of squares a tile.
struct Exchange {
  uint8_t* base;
  int pairs, tiles;
  unsigned tag;  // of instruction 0 in this step
  __device__ __forceinline__ uint8_t* values(int c) const { return base + static_cast<int64_t>(c % exchanges) * (pairs + tiles) * 8; }
  __device__ __forceinline__ uint8_t* squares(int c) const { return values(c) + pairs * 8; }
};

#ifdef MR_HOPPER

__device__ __forceinline__ uint4 peek4(const uint8_t* p) {
  uint4 v;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ uint2 peek(const uint8_t* p) {
  uint2 v;
  asm volatile("ld.volatile.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void leave_pair(uint8_t* p, uint32_t value, unsigned tag) {
  asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(value), "r"(tag) : "memory");
}

// Units of a piece: 4 to 8 KB: what the copy engine takes to be fast, and little enough for a few in a ring.
template <int S>
constexpr int piece_units = Format<S>::k == 256 ? 2 : 4;

struct Cut {
  int log_k, bytes, piece;
};
__device__ __forceinline__ Cut cut_of(int type) {
  Cut cut;
  for_storage(type, [&]<int S>() { cut = {Format<S>::k == 256 ? 8 : Format<S>::k == 64 ? 6 : 5, Format<S>::bytes, piece_units<S>}; });
  return cut;
}

// Where in the ring a piece lies: asked for and used in the same order, each by the same steps.
struct Place {
  int at = 0, total = 0;
  __device__ __forceinline__ int take(int bytes, int align, int size) {
    const int from = (at + align - 1) & -align;
    if (from + bytes > size) {
      total += size - at + bytes, at = bytes;
      return 0;
    }
    total += from - at + bytes, at = from + bytes;
    return from;
  }
};

// A warp's slice of k, in grains.
struct Slice {
  int first, end;
  bool up;
  __device__ __forceinline__ Slice(const Instruction& now, int warp) {
    const Linear& l = now.linear;
    const bool gated = l.epilogue == gated_y;
    const int log = now.log_slices - (gated ? 1 : 0), grains = (l.cols + (1 << now.log_grain) - 1) >> now.log_grain;
    const int s = warp & ((1 << now.log_slices) - 1), mine = s & ((1 << log) - 1);
    up = gated && s >> log;
    first = (grains * mine) >> log, end = (grains * (mine + 1)) >> log;
  }
};

// The tiles of this block: `first` and every gridDim.x-th after it. So warps whose slice of k comes from the first tiles go on
// before the last are done.
struct Deal {
  int first, count;
  __device__ __forceinline__ explicit Deal(const Instruction& now) {
    int number = static_cast<int>(blockIdx.x) - now.start;
    if (number < 0) number += gridDim.x;
    first = number, count = now.each + (number < now.more);
  }
};

// Where a tile's rows lie: in which segment, and in y.
struct Rows {
  int segment = 0, within, column = 0, limit;  // column of y of the first row; rows that the tile has
  __device__ __forceinline__ Rows(const Linear& l, int tile) : within(tile) {
    if (l.epilogue == gated_y) {
      column = tile * 16, limit = l.rows - column;
      return;
    }
    for (; segment + 1 < l.num_segments; segment++) {
      const int rows = l.segments[segment].rows, tiles = (rows + 15) / 16;
      if (within < tiles) break;
      within -= tiles, column += rows;
    }
    column += within * 16, limit = l.segments[segment].rows - within * 16;
  }
};

// Round r of a warp's share of a product: units of a tile.
struct Job {
  const uint8_t* data;  // of the first unit
  Cut cut;
  int type, units;
  __device__ __forceinline__ bool of(const Instruction& now, const Deal& deal, const Slice& slice, int warp, int r) {
    const Linear& l = now.linear;
    const int n = (warp >> now.log_slices) + r * (warps >> now.log_slices);
    if (n >= deal.count) return false;
    const Rows rows(l, deal.first + n * static_cast<int>(gridDim.x));
    int segment = rows.segment, within = rows.within;
    if (slice.up && l.num_segments == 2) segment = 1;
    else if (slice.up) within += l.rows / 16;
    type = l.segments[segment].type;
    cut = cut_of(type);
    const int all = (l.cols + (1 << cut.log_k) - 1) >> cut.log_k, each = now.log_grain - cut.log_k;
    const int u0 = slice.first << each;
    units = min(slice.end << each, all) - u0;
    data = l.segments[segment].data + (static_cast<int64_t>(within) * all + u0) * cut.bytes;
    return true;
  }
};

// A block's share of an attention: parts [from, to) of 16 positions of a head.
struct Share {
  int head, piece, split;  // piece of split
  int from, to;
  int first, position;  // what the token sees
  __device__ __forceinline__ bool of(const Attend& a, int at) {
    position = at;
    first = a.window > 0 ? max(0, position - a.window + 1) : 0;
    const int begin = first / 16, parts = position / 16 + 1 - begin, number = gridDim.x - 1 - blockIdx.x;
    split = min(static_cast<int>(gridDim.x) / a.kv_heads, max(1, (parts + 3 * warps - 1) / (3 * warps)));
    head = number % a.kv_heads, piece = number / a.kv_heads;
    from = begin + parts * piece / split, to = begin + parts * (piece + 1) / split;
    return piece < split;
  }
};

// What the warps of a block tell each other.
struct Board {
  __align__(16) uint8_t table[held][instruction_bytes];
  uint64_t there[warps][flying], summed[buffers], taken[buffers];
  // Bytes and pieces that a warp has done with.
  struct Used {
    int total, number;
    __device__ __forceinline__ void write(int t, int n) {
      *reinterpret_cast<volatile int64_t*>(this) = static_cast<int64_t>(n) << 32 | static_cast<uint32_t>(t);
    }
  };
  __align__(8) Used used[warps];
  volatile int known;  // instructions that have been in the table
  volatile int found[producers];  // instructions of which all has been asked for
  volatile int finished[warps];  // instructions that a warp is through with
  unsigned step;
  int position;  // of the step's token
  float sums[buffers][warps][16];
  float maxima[warps][8], totals[warps][8];
  int last;
  __device__ __forceinline__ const Instruction& at(int c) const { return *reinterpret_cast<const Instruction*>(table[c % held]); }
};

// A computing warp: its ring, its corner of shared memory, and what it has used.
struct Warp {
  Board& board;
  const Exchange& exchange;
  uint8_t *ring, *corners;
  int ring_bytes, corner_bytes, warp, lane;
  Place used;
  int number = 0;
  // A piece is there; where.
  __device__ __forceinline__ int arrive(int bytes, int align) {
    const int place = used.take(bytes, align, ring_bytes);
    one::arrival(&board.there[warp][number % flying], number / flying & 1);
    return place;
  }
  // The last piece is done with.
  __device__ __forceinline__ void leave() {
    __syncwarp();
    number++;
    if (lane == 0) board.used[warp].write(used.total, number);
  }
  __device__ __forceinline__ uint8_t* corner() const { return corners + warp * corner_bytes; }
};
__device__ __forceinline__ void computing_sync() { asm volatile("bar.sync 1, %0;" ::"n"(32 * warps) : "memory"); }

// Ids of the pages that a warp wants, one after the other, asked for before it does: the memory answers late, and a lane that
// waited for it would hold all rings up. The first is most often that of the layer before.
struct Pages {
  const int* ids = nullptr;
  int offset, first_at, first, next;
  __device__ __forceinline__ void begin(const Attend& a, int page) {
    if (ids != a.page_ids) ids = a.page_ids, offset = a.page_start[0] - a.page_first[0], first_at = -1;
    if (first_at != page) first_at = page, first = ids[offset + page];
    next = first;
  }
  // The page begun with or named last; `page`, if there is one, is the next.
  __device__ __forceinline__ int take(int page) {
    const int now = next;
    if (page >= 0) next = ids[offset + page];
    return now;
  }
};

// A lane a ring: asks for what its warp will want, in that order, as far as there is room. Lanes of one warp wait for each other
// at every step, so rings are shared out over a few.
template <int D>
__device__ void bring(const uint8_t* program, int count, const int* positions, int producer, int warp, uint8_t* ring, int ring_bytes, Board& board) {
  constexpr int part_bytes = 16 * D * 2;
  const unsigned mates = (1u << (warps - producer + producers - 1) / producers) - 1;
  Place asked;
  int asked_number = 0;
  int ahead = 0, round = 0;       // instruction, and round of it
  const uint8_t* from = nullptr;  // weights
  int left = 0, unit = 0, each = 0;
  int part = 0, part_end = 0, part_head = 0, page = 0;  // keys and values
  Pages pages;
  bool boxes = false, of_values = false;
  int position = -1;
  // The next bytes to be asked for are found; false: none for now.
  const auto find = [&](int known) {
    while (ahead < known) {
      const Instruction& next = board.at(ahead);
      if (next.op == op_linear) {
        const Slice slice(next, warp);
        const Deal deal(next);
        Job job;
        while (job.of(next, deal, slice, warp, round)) {
          round++;
          if (job.units <= 0) continue;
          from = job.data, left = job.units, unit = job.cut.bytes, each = job.cut.piece;
          boxes = false;
          return true;
        }
      } else {
        const Attend& a = next.attend;
        if (position < 0) wait(), position = positions[0];
        if (round == 0) {
          Share share;
          part = part_end = 0;
          if (share.of(a, position)) part = share.from + warp, part_end = share.to, part_head = share.head;
          if (part < part_end) pages.begin(a, part / 4);
          of_values = true;
        }
        round++;
        of_values = !of_values;
        if (!of_values && round > 1) part += warps;
        if (part < part_end) {
          if (!of_values) page = pages.take(part + warps < part_end ? (part + warps) / 4 : -1);
          left = 1, unit = part_bytes, each = 1, boxes = true;
          return true;
        }
      }
      ahead++, round = 0;
    }
    return false;
  };
  int told = 0;
  for (;;) {
    const int known = board.known;
    if (left > 0 || find(known)) {
      const volatile Board::Used& used = board.used[warp];
      const int total = used.total, number = used.number;
      const int units = min(each, left), bytes = units * unit;
      Place next = asked;
      const int to = next.take(bytes, boxes ? 1024 : 128, ring_bytes);
      if (next.total - total <= ring_bytes && asked_number - number < flying) {
        const uint32_t signal = attn::shared_address(&board.there[warp][asked_number % flying]);
        attn::barrier_expect(signal, bytes);
        if (!boxes) {
          asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(attn::shared_address(ring + to)),
                       "l"(from), "r"(bytes), "r"(signal)
                       : "memory");
          from += bytes;
        } else {
          const auto* map = reinterpret_cast<const attn::TensorMap*>(program + static_cast<int64_t>(ahead) * stride + instruction_bytes) + of_values;
          for (int i = 0; i < D / 64; i++)
            attn::copy_box(attn::shared_address(ring + to) + i * 2048, map, i * 64, part_head * 64 + part % 4 * 16, page, signal);
        }
        asked = next, asked_number++, left -= units;
      }
    }
    __syncwarp(mates);
    const int least = __reduce_min_sync(mates, static_cast<unsigned>(ahead));
    if (least > told) {
      told = least;
      if (warp == producer) board.found[producer] = told;
    }
    if (told >= count) return;
  }
}

#endif

}  // namespace walk
}  // namespace mr
