// Owns: a step of one token in one launch. Between launches the memory waits: here one block a multiprocessor walks through the
// step's instructions, and while it waits for what others compute, its weights, keys and values of what comes next are on
// their way.
//
//   an instruction is a launch that it stands for: its parameters as they would be passed (src/device/cuda/walk.ts)
//     linear   mr_linear_1; tiles of 16 rows dealt over the blocks, each cut into slices of k for the block's warps
//     attend   mr_qkv and mr_attention_decode: one key/value head, or a part of its past, a block
//     copy     mr_gather
//   a block = 16 warps that compute, each with a ring in shared memory that it fills itself through the copy engine, in the
//   order of the instructions and ahead of them; and the manager, a warp that waits for the other blocks
//
//   order of an instruction c (barriers of shared memory; their phase is c's parity):
//     manager: every block is done with c − 1 → ready → [squares of the row → scaled] → done (all warps) → tells the others
//     a warp:  ready → its slice of x into its own corner → products … → its sums meet those of the tile's other slices;
//              whoever comes last writes the tile → done
//
// Sums are added in the order of slices: the same bits every time. Hopper alone; empty elsewhere.
#pragma once
#include "attention.cuh"
#include "hopper.cuh"
#include "linear_one.cuh"

namespace mr {
namespace walk {

constexpr int warps = 16, threads = 32 * (warps + 4);  // the manager is the first of the last four: registers go to warps by fours
constexpr int held = 8;     // instructions in shared memory
constexpr int buffers = 8;  // tiles whose sums may be incomplete
constexpr int flying = 8;   // pieces of a warp on their way

enum Op { op_linear, op_attend, op_copy };

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

// Of mr_gather.
struct Copy {
  const StepInfo* info;
  const uint8_t* x;
  uint8_t* y;
  const int* row_tokens;
  int bytes;
};

struct Instruction {
  int op;
  int free;        // does not wait for the one before
  int log_slices;  // of a tile's k; gated: of both halves together
  int tiles;
  int grain;       // slices are cut at its multiples
  int pad[3];
  union {
    Linear linear;
    Attend attend;
    Copy copy;
  };
};
constexpr int instruction_bytes = 384;  // in memory two tensor maps follow: boxes of 64 × 16 of the keys, of the values
constexpr int stride = instruction_bytes + 2 * 128;
static_assert(sizeof(Linear) == 176 && sizeof(Attend) == 280 && sizeof(Instruction) <= instruction_bytes);

#ifdef MR_HOPPER

// Units of a piece: about 4 KB, and at most 256 values.
template <int S>
constexpr int piece_units = Format<S>::k == 256 ? 1 : Format<S>::bytes >= 2048 ? 2 : 4;

struct Cut {
  int k, bytes, piece;
};
__device__ __forceinline__ Cut cut_of(int type, int most) {
  Cut cut;
  for_storage(type, [&]<int S>() { cut = {Format<S>::k, Format<S>::bytes, Format<S>::bytes >= 2048 ? min(piece_units<S>, most) : piece_units<S>}; });
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

// Round r of a warp's share of a product: units [u0, u1) of a tile.
struct Job {
  const uint8_t* data;  // of the tile
  int type, u0, u1;
  int tile;
  int column, limit;  // of y, of the tile's first row; rows that the tile has
};
__device__ __forceinline__ void slice_of(const Instruction& at, int warp, int& g0, int& g1, bool& up) {
  const Linear& l = at.linear;
  const bool gated = l.epilogue == gated_y;
  const int log = at.log_slices - (gated ? 1 : 0), grains = (l.cols + at.grain - 1) / at.grain;
  const int s = warp & ((1 << at.log_slices) - 1), mine = s & ((1 << log) - 1);
  up = gated && s >> log;
  g0 = (grains * mine) >> log, g1 = (grains * (mine + 1)) >> log;
}
__device__ __forceinline__ bool job_of(const Instruction& at, int warp, int r, Job& job) {
  const Linear& l = at.linear;
  job.tile = blockIdx.x + gridDim.x * ((warp >> at.log_slices) + r * (warps >> at.log_slices));
  if (job.tile >= at.tiles) return false;
  int g0, g1;
  bool up;
  slice_of(at, warp, g0, g1, up);
  int segment = 0, tile = job.tile, column = 0;
  if (l.epilogue == gated_y) {
    if (up && l.num_segments == 2) segment = 1;
    else if (up) tile += l.rows / 16;
    job.limit = l.rows - job.tile * 16;
  } else {
    while (segment + 1 < l.num_segments) {
      const int tiles = (l.segments[segment].rows + 15) / 16;
      if (tile < tiles) break;
      tile -= tiles, column += l.segments[segment].rows, segment++;
    }
    job.limit = l.segments[segment].rows - tile * 16;
  }
  job.column = column + (l.epilogue == gated_y ? job.tile : tile) * 16;
  job.type = l.segments[segment].type;
  const Cut cut = cut_of(job.type, 2);
  const int units = (l.cols + cut.k - 1) / cut.k, each = at.grain / cut.k;
  job.u0 = g0 * each, job.u1 = min(g1 * each, units);
  job.data = l.segments[segment].data + static_cast<int64_t>(tile) * units * cut.bytes;
  return true;
}

// A block's share of an attention: parts [from, to) of 16 positions of a head.
struct Share {
  int head, piece, split;  // piece of split
  int from, to;
  int first, position;  // what the token sees
  __device__ __forceinline__ bool of(const Attend& a) {
    position = a.positions[0];
    first = a.window > 0 ? max(0, position - a.window + 1) : 0;
    const int begin = first / 16, parts = position / 16 + 1 - begin, number = gridDim.x - 1 - blockIdx.x;
    split = min(static_cast<int>(gridDim.x) / a.kv_heads, max(1, (parts + 2 * warps - 1) / (2 * warps)));
    head = number % a.kv_heads, piece = number / a.kv_heads;
    from = begin + parts * piece / split, to = begin + parts * (piece + 1) / split;
    return piece < split;
  }
};

__device__ __forceinline__ uint32_t transposed(uint32_t pairs) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pairs));
  return out;
}
__device__ __forceinline__ void computing_sync() { asm volatile("bar.sync 1, %0;" ::"n"(32 * warps) : "memory"); }
__device__ __forceinline__ float2 pair_of(const bf16* p) {
  const uint32_t two = __ldcg(reinterpret_cast<const unsigned*>(p));
  return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
}

// A lane's share of a head that is to be turned: of each 16 dimensions of the first half 2t, 2t + 1, 2t + 8, 2t + 9 (low), and
// those half a head further (high). g: the row of heads from q on; beyond `rows` zeros.
template <class T, int D>
__device__ __forceinline__ void queries(const Attend& a, int head0, int rows, int g, int t, uint32_t (&q)[D / 16][2]) {
  constexpr int half = D / 2, steps = D / 32;
  float2 low[steps][2], high[steps][2];
  const bf16* row = a.qkv + static_cast<int64_t>(head0 + min(g, rows - 1)) * D + 2 * t;
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < steps; k++)
#pragma unroll
    for (int i = 0; i < 2; i++) low[k][i] = pair_of(row + 16 * k + 8 * i), high[k][i] = pair_of(row + half + 16 * k + 8 * i);
  if (a.q_norm) {
#pragma unroll
    for (int k = 0; k < steps; k++)
#pragma unroll
      for (int i = 0; i < 2; i++)
        squares += low[k][i].x * low[k][i].x + low[k][i].y * low[k][i].y + high[k][i].x * high[k][i].x + high[k][i].y * high[k][i].y;
    squares += __shfl_xor_sync(~0u, squares, 1), squares += __shfl_xor_sync(~0u, squares, 2);
    const float by = rsqrtf(squares / D + a.norm_eps);
#pragma unroll
    for (int k = 0; k < steps; k++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int d = 16 * k + 8 * i + 2 * t;
        low[k][i].x *= by * a.q_norm[d], low[k][i].y *= by * a.q_norm[d + 1];
        high[k][i].x *= by * a.q_norm[half + d], high[k][i].y *= by * a.q_norm[half + d + 1];
      }
  }
#pragma unroll
  for (int k = 0; k < steps; k++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float4 by = *reinterpret_cast<const float4*>(a.table + 16 * k + 8 * i + 2 * t);
      const float2 x = low[k][i], z = high[k][i];
      q[k][i] = g < rows ? attn::pack<T>(x.x * by.x - z.x * by.y, x.y * by.z - z.y * by.w) : 0u;
      q[k + steps][i] = g < rows ? attn::pack<T>(z.x * by.x + x.x * by.y, z.y * by.z + x.y * by.w) : 0u;
    }
}

template <class T>
__device__ __forceinline__ T element(float x) {
  if constexpr (std::is_same_v<T, bf16>) return __float2bfloat16_rn(x);
  else return __float2half_rn(x);
}

// The token's key, turned: a lane's dimensions are lane + 32 j of the first half and those half a head further.
template <class T, int D>
__device__ __forceinline__ void new_key(const Attend& a, int head, int lane, T (&key)[D / 32]) {
  constexpr int half = D / 2, count = D / 64;
  const bf16* row = a.qkv + static_cast<int64_t>(a.heads + head) * D;
  float low[count], high[count], squares = 0.0f;
#pragma unroll
  for (int j = 0; j < count; j++) {
    const unsigned short x = __ldcg(reinterpret_cast<const unsigned short*>(row) + lane + 32 * j);
    const unsigned short z = __ldcg(reinterpret_cast<const unsigned short*>(row) + half + lane + 32 * j);
    low[j] = __uint_as_float(x << 16), high[j] = __uint_as_float(z << 16);
    squares += low[j] * low[j] + high[j] * high[j];
  }
  if (a.k_norm) {
    const float by = rsqrtf(warp_sum(squares) / D + a.norm_eps);
#pragma unroll
    for (int j = 0; j < count; j++) low[j] *= by * a.k_norm[lane + 32 * j], high[j] *= by * a.k_norm[half + lane + 32 * j];
  }
#pragma unroll
  for (int j = 0; j < count; j++) {
    const float2 by = a.table[lane + 32 * j];
    key[j] = element<T>(low[j] * by.x - high[j] * by.y), key[j + count] = element<T>(high[j] * by.x + low[j] * by.y);
  }
}

template <class T, int D>
__device__ void walk(const uint8_t* program, int count, unsigned* sync, int corner_bytes, int piece_most) {
  using Keys = attn::Rows<D, 16>;
  constexpr int part_bytes = 16 * D * 2;
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ __align__(16) uint8_t table[held][instruction_bytes];
  __shared__ float sums[buffers][warps][16];
  __shared__ int tickets[buffers];
  __shared__ volatile int turns[buffers];
  __shared__ float maxima[warps][8], totals[warps][8];
  __shared__ uint64_t there[warps][flying], ready, scaled, done;
  __shared__ float row_scale;
  __shared__ int flag;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const auto at = [&](int c) -> const Instruction& { return *reinterpret_cast<const Instruction*>(table[c % held]); };

  for (int i = threadIdx.x; i < min(held, count) * (instruction_bytes / 16); i += threads) {
    const int c = i / (instruction_bytes / 16), j = i % (instruction_bytes / 16);
    reinterpret_cast<uint4*>(table[c])[j] = *reinterpret_cast<const uint4*>(program + static_cast<int64_t>(c) * stride + j * 16);
  }
  if (threadIdx.x < buffers) tickets[threadIdx.x] = 0, turns[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    barrier_init(&ready, 1), barrier_init(&scaled, 1), barrier_init(&done, warps);
    for (int w = 0; w < warps; w++)
      for (int i = 0; i < flying; i++) barrier_init(&there[w][i], 1);
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  release();

  if (warp >= warps) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
    if (warp > warps) return;
    wait();
    const unsigned before = *reinterpret_cast<volatile unsigned*>(sync);
    const unsigned all = (before + 1) * gridDim.x;
    for (int c = 0; c < count; c++) {
      uint4 next;
      const bool more = c + held < count && lane < instruction_bytes / 16;
      if (more) next = *reinterpret_cast<const uint4*>(program + static_cast<int64_t>(c + held) * stride + lane * 16);
      if (c > 0 && !at(c).free) {
        if (lane == 0) {
          unsigned seen;
          do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(sync + 32 * c) : "memory");
          } while (static_cast<int>(seen - all) < 0);
        }
        __syncwarp();
      }
      if (lane == 0) barrier_arrive(&ready);
      if (at(c).op == op_linear && at(c).linear.squares) {
        const Linear& l = at(c).linear;
        float sum = 0.0f;
#pragma unroll 8
        for (int i = lane; i < l.num_squares; i += 32) sum += __ldcg(l.squares + i);
        sum = warp_sum(sum);
        if (lane == 0) row_scale = rsqrtf(sum / l.cols + l.eps);
      }
      if (lane == 0) barrier_arrive(&scaled);
      barrier_wait(&done, c & 1);
      if (more) reinterpret_cast<uint4*>(table[c % held])[lane] = next;
      __syncwarp();
      if (lane == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(sync + 32 * (c + 1)) : "memory");
    }
    // All blocks have read it: they have told of the first instruction.
    if (blockIdx.x == 0 && lane == 0) *reinterpret_cast<volatile unsigned*>(sync) = before + 1;
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
  uint32_t ring_bytes;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(ring_bytes));
  ring_bytes = (ring_bytes / warps - corner_bytes) & ~1023u;
  uint8_t* const ring = shared + warp * ring_bytes;
  const uint32_t ring_at = attn::shared_address(ring);
  uint8_t* const corners = shared + warps * ring_bytes;
  bf16* const corner = reinterpret_cast<bf16*>(corners + warp * corner_bytes);

  // ---- ahead: what is asked for
  Place asked, used;
  int asked_number = 0, used_number = 0;
  int ahead = 0, limit = min(held, count), round = 0;  // instruction, and round of it
  const uint8_t* from = nullptr;                       // weights
  int left = 0, unit = 0, each = 0;
  int part = 0, part_end = 0, part_head = 0, page = 0;  // keys and values
  bool boxes = false, of_values = false;
  // The next bytes to be asked for are found; false: none for now.
  const auto find = [&] {
    while (ahead < limit) {
      const Instruction& next = at(ahead);
      if (next.op == op_linear) {
        Job job;
        while (job_of(next, warp, round, job)) {
          round++;
          if (job.u0 >= job.u1) continue;
          const Cut cut = cut_of(job.type, piece_most);
          from = job.data + static_cast<int64_t>(job.u0) * cut.bytes, left = job.u1 - job.u0, unit = cut.bytes, each = cut.piece;
          boxes = false;
          return true;
        }
      } else if (next.op == op_attend) {
        const Attend& a = next.attend;
        if (round == 0) {
          Share share;
          part = part_end = 0;
          if (share.of(a)) part = share.from + warp, part_end = share.to, part_head = share.head;
          of_values = true;
        }
        round++;
        of_values = !of_values;
        if (!of_values && round > 1) part += warps;
        if (part < part_end) {
          if (!of_values) page = a.page_ids[a.page_start[0] + part / 4 - a.page_first[0]];
          left = 1, unit = part_bytes, each = 1, boxes = true;
          return true;
        }
      }
      ahead++, round = 0;
    }
    return false;
  };
  const auto ask = [&] {
    for (;;) {
      if (left == 0 && !find()) return;
      const int units = min(each, left), bytes = units * unit;
      Place next = asked;
      const int to = next.take(bytes, boxes ? 1024 : 128, ring_bytes);
      if (next.total - used.total > static_cast<int>(ring_bytes) || asked_number - used_number >= flying) return;
      uint64_t* barrier = &there[warp][asked_number % flying];
      if (!boxes) {
        one::fetch(ring + to, from, bytes, barrier, lane);
        from += bytes;
      } else if (lane == 0) {
        const auto* map = reinterpret_cast<const attn::TensorMap*>(program + static_cast<int64_t>(ahead) * stride + instruction_bytes) + of_values;
        const uint32_t signal = attn::shared_address(barrier);
        attn::barrier_expect(signal, bytes);
        for (int i = 0; i < D / 64; i++) attn::copy_box(ring_at + to + i * 2048, map, i * 64, part_head * 64 + part % 4 * 16, page, signal);
      }
      asked = next, asked_number++, left -= units;
    }
  };
  // A piece is there; where.
  const auto arrive = [&](int bytes, int align) {
    const int place = used.take(bytes, align, ring_bytes);
    one::arrival(&there[warp][used_number % flying], used_number / flying & 1);
    return place;
  };
  // The last piece is done with.
  const auto leave = [&] {
    __syncwarp();
    used_number++;
    ask();
  };

  int turn0 = 0;  // tiles of this block before this instruction
  const auto linear = [&](const Instruction& now, int c) {
    const Linear& l = now.linear;
    const bool gated = l.epilogue == gated_y;
    const int slices = 1 << now.log_slices, mine = warp & (slices - 1);
    Job job;
    bool some = job_of(now, warp, 0, job);
    int g0, g1;
    bool up;
    slice_of(now, warp, g0, g1, up);
    const int k0 = g0 * now.grain, k1 = min(g1 * now.grain, l.cols);
    if (some) {
#pragma unroll 4
      for (int i = 8 * lane; i < ((k1 - k0 + 255) & ~255); i += 256) {
        const uint4 values = k0 + i < k1 ? __ldcg(reinterpret_cast<const uint4*>(l.x + k0 + i)) : make_uint4(0, 0, 0, 0);
        *reinterpret_cast<uint4*>(corner + i) = values;
      }
      __syncwarp();
    }
    uint32_t masks[8];  // of a chunk's column: 1 and 1, as bf16
#pragma unroll
    for (int j = 0; j < 8; j++) masks[j] = g == j ? 0x3f803f80u : 0;
    for (int r = 0; some; some = job_of(now, warp, ++r, job)) {
      const int row = lane & 15, column = job.column + row;
      const bool inside = row < job.limit;
      float bias = 0.0f, up_bias = 0.0f, residual = 0.0f, next_weight = 0.0f;
      if (inside) {
        if (l.bias) bias = l.bias[column];
        if (l.bias && gated) up_bias = l.bias[l.rows + column];
        if (l.next) next_weight = l.next_weight[column];
        if (l.epilogue == add_y) residual = __ldcg(static_cast<const float*>(l.y) + column);
      }
      float2 acc = make_float2(0.0f, 0.0f);
      float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      const Cut cut = cut_of(job.type, piece_most);
      for (int u = job.u0; u < job.u1; u += cut.piece) {
        const int units = min(cut.piece, job.u1 - u);
        const uint8_t* unit_at = ring + arrive(units * cut.bytes, 128);
        const bf16* x = corner + (u * cut.k - k0);
        for_storage(job.type, [&]<int S>() {
          using L = Format<S>;
          uint4 values;
          if constexpr (S == Q6_K) {
            const uint2 a = *reinterpret_cast<const uint2*>(x + 32 * g + 4 * t), b = *reinterpret_cast<const uint2*>(x + 32 * g + 16 + 4 * t);
            values = make_uint4(a.x, a.y, b.x, b.y);
          } else {
            values = k0 + 8 * lane + (u * cut.k - k0) < k1 ? *reinterpret_cast<const uint4*>(x + 8 * lane) : make_uint4(0, 0, 0, 0);
          }
          if constexpr (L::k == 256) {
            one::super_block<S>(unit_at, values, masks, lane, acc);
          } else {
#pragma unroll
            for (int i = 0; i < piece_units<S>; i++)
              if (i < units) one::small_unit<S>(unit_at + i * L::bytes, values, masks + i * (L::k / 32), lane, sum);
          }
        });
        leave();
      }
      acc.x += sum[0] + sum[1], acc.y += sum[2] + sum[3];
#pragma unroll
      for (int o = 1; o < 4; o *= 2) acc.x += __shfl_xor_sync(~0u, acc.x, o), acc.y += __shfl_xor_sync(~0u, acc.y, o);

      const int turn = turn0 + (warp >> now.log_slices) + r * (warps >> now.log_slices), buffer = turn % buffers;
      while (turns[buffer] != turn / buffers) {}
      if (t == 0) sums[buffer][mine][g] = acc.x, sums[buffer][mine][8 + g] = acc.y;
      __threadfence_block();
      __syncwarp();
      int ticket = 0;
      if (lane == 0) ticket = atomicAdd(&tickets[buffer], 1);
      if (__shfl_sync(~0u, ticket, 0) != slices - 1) continue;
      // The last of the tile: lanes of the first half add the first half of the slices, a gate's.
      __threadfence_block();
      float value = 0.0f, square = 0.0f;
      const int some_slices = max(slices / 2, 1);
      if (slices > 1 || lane < 16)
        for (int i = 0; i < some_slices; i++) value += sums[buffer][(lane >> 4) * some_slices + i][row];
      __syncwarp();
      if (lane == 0) {
        tickets[buffer] = 0;
        __threadfence_block();
        turns[buffer] = turn / buffers + 1;
      }
      float other = __shfl_down_sync(~0u, value, 16);
      if (!gated) value += other;
      if (l.squares) {
        one::arrival(&scaled, c & 1);
        const float scale = *const_cast<volatile float*>(&row_scale);
        value *= scale, other *= scale;
      }
      value += bias;
      if (gated) value = activate(l.activation, value) * (other + up_bias);
      value += residual;
      if (inside && lane < 16) {
        if (l.y_f32) static_cast<float*>(l.y)[column] = value;
        else static_cast<bf16*>(l.y)[column] = __float2bfloat16_rn(value);
        if (l.next) l.next[column] = __float2bfloat16_rn(value * next_weight), square = value * value;
      }
      if (l.next) {
        square = warp_sum(square);
        if (lane == 0) l.next_squares[job.tile] = square;
      }
    }
    turn0 += (now.tiles - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
  };

  const auto attend = [&](const Instruction& now) {
    const Attend& a = now.attend;
    Share share;
    if (!share.of(a)) return;
    const int group = a.heads / a.kv_heads, last = share.position / 16, within = share.position % 16;
    const attn::Scale scale(a.scale, a.softcap);
    uint32_t q[D / 16][2];
    queries<T, D>(a, share.head * group, group, g, t, q);
    T key[D / 32], value[D / 32];
    const bool owner = last >= share.from && last < share.to && (last - share.from) % warps == warp;
    if (owner) {
      new_key<T, D>(a, share.head, lane, key);
      const auto* row = reinterpret_cast<const unsigned short*>(a.qkv) + static_cast<int64_t>(a.heads + a.kv_heads + share.head) * D;
      const int page_id = a.page_ids[a.page_start[0] + share.position / 64 - a.page_first[0]];
      const int64_t to = (static_cast<int64_t>(share.head) * 64 + share.position % 64) * D;
      T* keys_to = reinterpret_cast<T*>(a.new_keys + page_id * a.page_bytes) + to;
      T* values_to = reinterpret_cast<T*>(a.new_values + page_id * a.page_bytes) + to;
#pragma unroll
      for (int j = 0; j < D / 32; j++) {
        value[j] = element<T>(__uint_as_float(static_cast<uint32_t>(__ldcg(row + lane + 32 * j)) << 16));
        keys_to[lane + 32 * j] = key[j], values_to[lane + 32 * j] = value[j];
      }
    }
    // Of heads 2t and 2t + 1 of the group; a lane's own part of the total.
    float m[2] = {attn::nothing, attn::nothing}, total[2] = {0.0f, 0.0f}, o[D / 16][4] = {};
    for (int p = share.from + warp; p < share.to; p += warps) {
      const bool mended = owner && p == last;
      const int keys_at = arrive(part_bytes, 1024);
      if (mended) {
#pragma unroll
        for (int j = 0; j < D / 32; j++) {
          const int d = lane + 32 * j;
          *reinterpret_cast<T*>(ring + keys_at + Keys::at(within, d / 8) + d % 8 * 2) = key[j];
        }
        __syncwarp();
      }
      float s[4] = {};
#pragma unroll
      for (int k = 0; k < D / 16; k++) {
        uint32_t keys[4];
        attn::load_matrices(keys, ring_at + keys_at + Keys::at(lane & 15, 2 * k + (lane >> 4)));
        attn::multiply<T>(s, keys, q[k][0], q[k][1]);
      }
      if (mended) attn::before_copies();
      leave();
      float most[2];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int position = p * 16 + g + (i >> 1) * 8;
        s[i] = (a.softcap > 0 ? scale.capped(s[i]) : s[i]) * scale.factor;
        if (position < share.first || position > share.position) s[i] = attn::nothing;
      }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        most[h] = fmaxf(s[h], s[2 + h]);
#pragma unroll
        for (int i = 4; i < 32; i *= 2) most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], i));
        most[h] = fmaxf(most[h], m[h]);
        const float base = most[h] == attn::nothing ? 0.0f : most[h], keep = attn::exp2_fast(m[h] - base);
        m[h] = most[h];
        s[h] = attn::exp2_fast(s[h] - base), s[2 + h] = attn::exp2_fast(s[2 + h] - base);
        total[h] = total[h] * keep + s[h] + s[2 + h];
#pragma unroll
        for (int n = 0; n < D / 16; n++) o[n][h] *= keep, o[n][2 + h] *= keep;
      }
      const uint32_t w0 = transposed(attn::pack<T>(s[0], s[1])), w1 = transposed(attn::pack<T>(s[2], s[3]));
      const int values_at = arrive(part_bytes, 1024);
      if (mended) {
#pragma unroll
        for (int j = 0; j < D / 32; j++) {
          const int d = lane + 32 * j;
          *reinterpret_cast<T*>(ring + values_at + Keys::at(within, d / 8) + d % 8 * 2) = value[j];
        }
        // Rows that nobody has written yet may hold anything, and 0 · NaN is not 0.
        for (int i = lane; i < (15 - within) * (D / 8); i += 32)
          *reinterpret_cast<uint4*>(ring + values_at + Keys::at(within + 1 + i / (D / 8), i % (D / 8))) = make_uint4(0, 0, 0, 0);
        __syncwarp();
      }
#pragma unroll
      for (int n = 0; n < D / 16; n++) {
        uint32_t values[4];
        attn::load_transposed(values, ring_at + values_at + Keys::at((lane & 7) + (lane >> 4) * 8, 2 * n + (lane >> 3 & 1)));
        attn::multiply<T>(o[n], values, w0, w1);
      }
      if (mended) attn::before_copies();
      leave();
    }

    float* const results = reinterpret_cast<float*>(corners);  // [warps][group][D]
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
      for (int i = 4; i < 32; i *= 2) total[h] += __shfl_xor_sync(~0u, total[h], i);
      const int head = 2 * t + h;
      if (head >= group) continue;
      if (g == 0) maxima[warp][head] = m[h], totals[warp][head] = total[h];
      float* to = results + (warp * group + head) * D + g;
#pragma unroll
      for (int n = 0; n < D / 16; n++) to[16 * n] = o[n][h], to[16 * n + 8] = o[n][2 + h];
    }
    computing_sync();
    float* const partial = a.partial + static_cast<int64_t>(share.head) * share.split * group * (D + 2);
    float* const own = partial + static_cast<int64_t>(share.piece) * group * (D + 2);
    const auto write = [&](int i, float sum_m, float sum_l, float sum_o) {
      const int head = share.head * group + i / D;
      a.y[static_cast<int64_t>(head) * D + i % D] = __float2bfloat16_rn(sum_o * attn::finish(sum_m, sum_l, a.sinks, head));
    };
    for (int i = threadIdx.x; i < group * D; i += 32 * warps) {
      const int head = i / D;
      float sum_m = attn::nothing, sum_l = 0.0f, sum_o = 0.0f;
#pragma unroll
      for (int w = 0; w < warps; w++) {
        const attn::Fold fold(sum_m, sum_l, maxima[w][head], totals[w][head]);
        sum_o = fold(sum_o, results[w * group * D + i]);
      }
      if (share.split == 1) {
        write(i, sum_m, sum_l, sum_o);
      } else {
        own[i] = sum_o;
        if (i % D == 0) own[group * D + 2 * head] = sum_m, own[group * D + 2 * head + 1] = sum_l;
      }
    }
    if (share.split == 1) return;
    __threadfence();
    computing_sync();
    if (threadIdx.x == 0) {
      const int before = atomicAdd(a.arrived + share.head, 1);
      flag = before == share.split - 1;
      if (flag) a.arrived[share.head] = 0;
    }
    computing_sync();
    if (!*const_cast<volatile int*>(&flag)) return;
    __threadfence();
    for (int i = threadIdx.x; i < group * D; i += 32 * warps) {
      float sum_m = attn::nothing, sum_l = 0.0f, sum_o = 0.0f;
#pragma unroll 8
      for (int w = 0; w < share.split; w++) {
        const float* one_of = partial + static_cast<int64_t>(w) * group * (D + 2);
        const float o1 = __ldcg(one_of + i), m1 = __ldcg(one_of + group * D + 2 * (i / D)), l1 = __ldcg(one_of + group * D + 2 * (i / D) + 1);
        const attn::Fold fold(sum_m, sum_l, m1, l1);
        sum_o = fold(sum_o, o1);
      }
      write(i, sum_m, sum_l, sum_o);
    }
  };

  ask();
  for (int c = 0; c < count; c++) {
    barrier_wait(&ready, c & 1);
    // The manager has brought the instruction that is `held` after the one before.
    limit = min(c + held, count);
    ask();
    const Instruction& now = at(c);
    if (now.op == op_linear) {
      linear(now, c);
    } else if (now.op == op_attend) {
      attend(now);
    } else if (blockIdx.x == 0) {
      const Copy& copy = now.copy;
      for (int i = threadIdx.x; i < copy.bytes / 16; i += 32 * warps)
        reinterpret_cast<uint4*>(copy.y)[i] = __ldcg(reinterpret_cast<const uint4*>(copy.x) + i);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&done);
  }
}

#else

template <class T, int D>
__device__ void walk(const uint8_t*, int, unsigned*, int, int) {}

#endif

}  // namespace walk
}  // namespace mr

// grid: the multiprocessors. program: `count` instructions; sync: 32 · (count + 1) words, zero before the first launch;
// corner_bytes: a warp's share of shared memory beside its ring; piece_most: units of 2 KB that a piece may have.
#define MR_WALK(NAME, T, D)                                                                                              \
  extern "C" __global__ void __launch_bounds__(mr::walk::threads, 1)                                                     \
      mr_walk_##NAME##_##D(const uint8_t* program, int count, unsigned* sync, int corner_bytes, int piece_most) {        \
    mr::walk::walk<T, D>(program, count, sync, corner_bytes, piece_most);                                                \
  }
