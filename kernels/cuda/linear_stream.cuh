// Owns: y = x · Wᵀ for up to 64 tokens a pass, every format: the weights stream once from memory through a ring of
// cp.async private to each warp, become bf16 fragments in registers and meet the tokens on the tensor cores, W being their
// A operand (16 rows), the tokens the B operand (8 a fragment). linear_8.cu … linear_64.cu are its instances.
//
// Codes enter the products as exact small integers and the scale multiplies the f32 sum of its 32 (or 16) values, so
// nothing of a weight is rounded. F16 and F32 weights are split into two and three bf16 whose sum they are.
//
// The order of a sum is fixed by the matrix alone: k is cut into slices (splits × wk), each summed along k; the slices of
// one block are added in order, then the blocks' sums in order. Never does the number of tokens enter: every instance gives
// the same bits.
//
//   block = 8 warps = wr rows of warps × wk slices of k; a warp holds RT tiles of 16 rows and 8·NT tokens
//   gated: the first half of the rows of warps holds gate tiles, the second the up tiles of the same outputs
//   gridDim.y blocks share the splits: each takes one (partial sums meet in `partial`, whoever comes last adds them), or
//   a single block takes them one after the other
#pragma once
#include "linear_layout.cuh"

namespace mr {

enum Epilogue { store_y, add_y, gated_y };

struct Segment {
  const uint8_t* data;
  int type, rows;
};

struct LinearTask {
  const bf16* x;
  int cols;       // of x and of the weight
  void* y;
  int y_f32, y_width;
  const float* bias;
  const int* count;  // tokens of the step
  int epilogue, activation;
  int rows;       // gated: of a half
  Segment segments[4];
  int num_segments;
  int splits, wk;
  float* partial;
  int* tickets;
};

template <int NT>
struct Shape {
  static constexpr int RT = NT == 1 ? 1 : 2;
  static constexpr int tokens = NT * 8;
  static constexpr int ring = NT == 1 ? 8192 : 13824;
  static constexpr int scales = RT * 16 * 72;  // a warp's table of scales
  static constexpr int warp_bytes = ring + scales;
};

__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void copy16(uint8_t* to, const uint8_t* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from)
               : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void arrived() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
  const __nv_bfloat162 p = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&p);
}
// Codes 128 + q as a pair of bf16, less their zero.
__device__ __forceinline__ uint32_t centred(uint32_t pair, uint32_t zero) {
  const __nv_bfloat162 d = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&pair), *reinterpret_cast<const __nv_bfloat162*>(&zero));
  return *reinterpret_cast<const uint32_t*>(&d);
}

// The lane's eight values of a token from k on; zero beyond the row. Slow: rows that are not on multiples of 8 values.
static __device__ __noinline__ uint4 load_ragged(const bf16* x, int k, int cols) {
  uint32_t v[8];
  for (int i = 0; i < 8; i++) v[i] = k + i < cols ? __bfloat16_as_ushort(x[k + i]) : 0;
  return make_uint4(v[0] | v[1] << 16, v[2] | v[3] << 16, v[4] | v[5] << 16, v[6] | v[7] << 16);
}

// b[0], b[1]: the B operand of a 32's first product; b[2], b[3] of its second.
template <int S>
__device__ __forceinline__ uint4 load_x(const bf16* x, bool valid, int k, int t, int cols, bool ragged) {
  if constexpr (S == Q6_K) {
    if (!valid) return make_uint4(0, 0, 0, 0);
    const uint2 a = *reinterpret_cast<const uint2*>(x + k + 4 * t), b = *reinterpret_cast<const uint2*>(x + k + 16 + 4 * t);
    return make_uint4(a.x, a.y, b.x, b.y);
  } else {
    if (Format<S>::floating && ragged && valid) return load_ragged(x, k + 8 * t, cols);
    if (!valid || k + 8 * t >= cols) return make_uint4(0, 0, 0, 0);
    return *reinterpret_cast<const uint4*>(x + k + 8 * t);
  }
}

// Fragments of the products of a unit's 32 values from 32 · chunk on: [term][first 16, second 16]. Terms add up to W.
template <int S>
struct Fragments {
  static constexpr int terms = S == F32 ? 3 : S == F16 ? 2 : 1;
  uint32_t a[terms][2][4];

  __device__ __forceinline__ void split(float w0, float w1, int product, int reg) {
    float r0 = w0, r1 = w1;
#pragma unroll
    for (int i = 0; i < terms; i++) {
      const uint32_t pair = bf16_pair(r0, r1);
      a[i][product][reg] = pair;
      r0 -= __uint_as_float(pair << 16);
      r1 -= __uint_as_float(pair & 0xffff0000u);
    }
  }

  __device__ __forceinline__ void load(const uint8_t* unit, int lane, int chunk) {
    using L = Format<S>;
    const int g = lane >> 2, t = lane & 3;
    if constexpr (S == BF16) {
      const uint4 low = *reinterpret_cast<const uint4*>(unit + swizzled(g, chunk * 4 + t));
      const uint4 high = *reinterpret_cast<const uint4*>(unit + swizzled(g + 8, chunk * 4 + t));
      a[0][0][0] = low.x, a[0][0][1] = high.x, a[0][0][2] = low.y, a[0][0][3] = high.y;
      a[0][1][0] = low.z, a[0][1][1] = high.z, a[0][1][2] = low.w, a[0][1][3] = high.w;
    } else if constexpr (S == F16) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint4 row = *reinterpret_cast<const uint4*>(unit + swizzled(g + 8 * half, chunk * 4 + t));
        const uint32_t pairs[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
        for (int p = 0; p < 4; p++) {
          const float2 w = __half22float2(*reinterpret_cast<const __half2*>(&pairs[p]));
          split(w.x, w.y, p >> 1, (p & 1) * 2 + half);
        }
      }
    } else if constexpr (S == F32) {
#pragma unroll
      for (int q = 0; q < 4; q++) {  // (row half, first or second four)
        const float4 w = *reinterpret_cast<const float4*>(unit + (q * 32 + lane) * 16);
        split(w.x, w.y, q & 1, q >> 1);
        split(w.z, w.w, q & 1, 2 + (q >> 1));
      }
    } else if constexpr (S == Q8_0) {
      const uint4 row = *reinterpret_cast<const uint4*>(unit + chunk * 512 + lane * 16);
      const uint32_t words[4] = {row.x, row.z, row.y, row.w};  // [product][row half]
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int p = 0; p < 2; p++) {
          // 128 + the low seven bits, less 128, or less 256 where the sign bit is set.
          const uint32_t w = words[i] >> (8 * p);
          a[0][i >> 1][p * 2 + (i & 1)] = centred((w & 0x007f007fu) | 0x43004300u, (w & 0x00800080u) | 0x43004300u);
        }
      }
    } else {
      const uint2 row = *reinterpret_cast<const uint2*>(unit + (chunk >> 1) * 512 + lane * 16 + (chunk & 1) * 8);
      const uint32_t words[2] = {row.x, row.y};
      uint32_t plane[2] = {0, 0};
      if constexpr (S == Q6_K) {
        const uint2 p = *reinterpret_cast<const uint2*>(unit + L::plane_at + (chunk >> 2) * 512 + lane * 16 + (chunk >> 1 & 1) * 8);
        plane[0] = p.x >> (8 * (chunk & 1)), plane[1] = p.y >> (8 * (chunk & 1));
      } else if constexpr (L::bits == 5) {
        const int at = S == Q5_K ? lane * 16 + (chunk >> 1) * 4 : lane * 4;
        const uint32_t w = *reinterpret_cast<const uint32_t*>(unit + L::plane_at + at) >> (8 * (chunk & 1));
        plane[0] = w, plane[1] = w >> 4;
      }
#pragma unroll
      for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int p = 0; p < 4; p++) {
          uint32_t pair = (words[half] >> (4 * p) & 0x000f000fu) | 0x43004300u;
          if (L::bits == 6) pair |= (p < 2 ? plane[half] << (4 - 2 * p) : plane[half] >> (2 * p - 4)) & 0x00300030u;
          if (L::bits == 5) pair |= (plane[half] << (4 - p)) & 0x00100010u;
          if (!L::has_min) pair = centred(pair, 0x43004300u + L::zero * 0x00010001u);
          a[0][p >> 1][(p & 1) * 2 + half] = pair;
        }
      }
    }
  }
};

// Each row's scales of a super-block, by the lanes together, into `table`: rows of 72 bytes, 8 × (scale, offset) where
// the value is scale · (128 + q) + offset, or 16 scales for Q6_K.
template <int S>
__device__ __forceinline__ void tabulate(const uint8_t* unit, uint8_t* table, int lane) {
  using L = Format<S>;
  const int row = lane >> 1, first = (lane & 1) * 4;
  if constexpr (S == Q6_K) {
    const float d = f16_value(*reinterpret_cast<const uint16_t*>(unit + L::head_at + 256 + row * 2));
    const uint2 s = *reinterpret_cast<const uint2*>(unit + L::head_at + row * 16 + first * 2);
    const auto scale = [&](uint32_t w, int i) { return d * static_cast<float>(static_cast<int8_t>(w >> (8 * i))); };
    float2* to = reinterpret_cast<float2*>(table + row * 72 + first * 8);
    to[0] = make_float2(scale(s.x, 0), scale(s.x, 1)), to[1] = make_float2(scale(s.x, 2), scale(s.x, 3));
    to[2] = make_float2(scale(s.y, 0), scale(s.y, 1)), to[3] = make_float2(scale(s.y, 2), scale(s.y, 3));
  } else {
    const uint4 h = *reinterpret_cast<const uint4*>(unit + L::head_at + row * 16);
    const float d = f16_value(h.x & 0xffff), dmin = f16_value(h.x >> 16);
    const uint32_t scales = h.y >> (4 * first), mins = h.z >> (4 * first), top = h.w >> (2 * first);
    float2* to = reinterpret_cast<float2*>(table + row * 72 + first * 8);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float scale = d * static_cast<float>((scales >> (4 * i) & 15) | (top >> (2 * i) & 3) << 4);
      const float min = dmin * static_cast<float>((mins >> (4 * i) & 15) | (top >> (16 + 2 * i) & 3) << 4);
      to[i] = make_float2(scale, -128.0f * scale - min);
    }
  }
}

// Units [u0, u1) of RT neighbouring tiles (w: the first's unit 0; apart: bytes to the second's) into acc.
template <int S, int NT>
__device__ __forceinline__ void stream(const uint8_t* w, int64_t apart, int u0, int u1, uint8_t* ring, const LinearTask& task,
                                       int token0, float (&acc)[Shape<NT>::RT][NT][4]) {
  using L = Format<S>;
  constexpr int RT = Shape<NT>::RT, stage = L::bytes * RT, fit = Shape<NT>::ring / stage, depth = fit > 8 ? 8 : fit;
  static_assert(depth >= 2);
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  uint8_t* table = ring + Shape<NT>::ring;
  const auto fetch = [&](int u, int slot) {
    if (u < u1) {
#pragma unroll
      for (int rt = 0; rt < RT; rt++) {
        const uint8_t* from = w + rt * apart + static_cast<int64_t>(u) * L::bytes;
#pragma unroll
        for (int at = 0; at < L::bytes; at += 512) {
          if (at + 512 <= L::bytes || at + lane * 16 < L::bytes) copy16(ring + slot * stage + rt * L::bytes + at + lane * 16, from + at + lane * 16);
        }
      }
    }
    commit();
  };
#pragma unroll
  for (int i = 0; i < depth - 1; i++) fetch(u0 + i, i);
  wait();
  const int count = *task.count;
  if (token0 >= count) {
    arrived<0>();
    return;
  }

  const bool ragged = (task.cols & 7) != 0;
  const bf16* x = task.x + static_cast<int64_t>(token0 + g) * task.cols;
  const int64_t next = 8 * static_cast<int64_t>(task.cols);
  const int left = count - token0 - g;  // token 8·nt + g of the pass is there where 8·nt < left
  int slot = 0;
  for (int u = u0; u < u1; u++) {
    arrived<depth - 2>();
    __syncwarp();
    fetch(u + depth - 1, slot == 0 ? depth - 1 : slot - 1);
    const uint8_t* unit = ring + slot * stage;
    if constexpr (L::k == 256) {
#pragma unroll
      for (int rt = 0; rt < RT; rt++) tabulate<S>(unit + rt * L::bytes, table + rt * 1152, lane);
      __syncwarp();
    }
#pragma unroll(NT < 4 ? 2 : 1)
    for (int chunk = 0; chunk < L::k / 32; chunk++) {
      const int k = u * L::k + chunk * 32;
      Fragments<S> f[RT];
      float2 low[RT], high[RT];  // (scale, offset) of rows g and g + 8; Q6_K: scales of both sixteens
#pragma unroll
      for (int rt = 0; rt < RT; rt++) {
        const uint8_t* own = unit + rt * L::bytes;
        f[rt].load(own, lane, chunk);
        if constexpr (L::k == 256) {
          low[rt] = *reinterpret_cast<const float2*>(table + rt * 1152 + g * 72 + chunk * 8);
          high[rt] = *reinterpret_cast<const float2*>(table + rt * 1152 + (g + 8) * 72 + chunk * 8);
        } else if constexpr (!L::floating) {
          const auto scale = [&](int r, int at) { return f16_value(*reinterpret_cast<const uint16_t*>(own + L::head_at + at + r * 4 + chunk * 2)); };
          low[rt].x = scale(g, 0), high[rt].x = scale(g + 8, 0);
          if (L::has_min) low[rt].y = scale(g, 64) - 128.0f * low[rt].x, high[rt].y = scale(g + 8, 64) - 128.0f * high[rt].x;
        }
      }
#pragma unroll
      for (int nt = 0; nt < NT; nt++) {
        const uint4 b = load_x<S>(x + nt * next, 8 * nt < left, k, t, task.cols, ragged);
        float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};  // of the tokens' 32 values, where offsets want them
        if constexpr (L::has_min) {
          const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
          mma(sums, ones, b.x, b.y);
          mma(sums, ones, b.z, b.w);
        }
#pragma unroll
        for (int rt = 0; rt < RT; rt++) {
          float(&to)[4] = acc[rt][nt];
          if constexpr (L::floating) {
#pragma unroll
            for (int i = Fragments<S>::terms - 1; i >= 0; i--) mma(to, f[rt].a[i][0], b.x, b.y), mma(to, f[rt].a[i][1], b.z, b.w);
          } else if constexpr (S == Q6_K) {
            float p[4] = {0.0f, 0.0f, 0.0f, 0.0f}, q[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            mma(p, f[rt].a[0][0], b.x, b.y);
            mma(q, f[rt].a[0][1], b.z, b.w);
            to[0] += low[rt].x * p[0], to[1] += low[rt].x * p[1], to[2] += high[rt].x * p[2], to[3] += high[rt].x * p[3];
            to[0] += low[rt].y * q[0], to[1] += low[rt].y * q[1], to[2] += high[rt].y * q[2], to[3] += high[rt].y * q[3];
          } else {
            float p[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            mma(p, f[rt].a[0][0], b.x, b.y);
            mma(p, f[rt].a[0][1], b.z, b.w);
            to[0] += low[rt].x * p[0], to[1] += low[rt].x * p[1], to[2] += high[rt].x * p[2], to[3] += high[rt].x * p[3];
            if (L::has_min) {
              to[0] += low[rt].y * sums[0], to[1] += low[rt].y * sums[1];
              to[2] += high[rt].y * sums[0], to[3] += high[rt].y * sums[1];
            }
          }
        }
      }
    }
    slot = slot == depth - 1 ? 0 : slot + 1;
  }
  arrived<0>();
}

// The tiles of a block: of one segment, tile0 …; column: of y, of the segment's row 0.
struct Tiles {
  Segment segment;
  int tile0, column;
};

// Block b's tiles, `each` to a block; no block straddles segments.
__device__ __forceinline__ Tiles block_tiles(const LinearTask& task, int b, int each) {
  int column = 0;
  Tiles out{task.segments[0], 0, 0};
#pragma unroll
  for (int s = 0; s < 4; s++) {
    if (s >= task.num_segments || b < 0) break;
    const int blocks = ((task.segments[s].rows + 15) / 16 + each - 1) / each;
    if (b < blocks) out = {task.segments[s], b * each, column};
    b -= blocks, column += task.segments[s].rows;
  }
  return out;
}

// value: a column of y, or of the gate, whose up is beside it.
__device__ __forceinline__ void write_y(const LinearTask& task, int token, int column, float value, float up) {
  if (task.bias) value += task.bias[column];
  if (task.epilogue == gated_y) {
    if (task.bias) up += task.bias[task.rows + column];
    value = activate(task.activation, value) * up;
  }
  const int64_t at = static_cast<int64_t>(token) * task.y_width + column;
  if (!task.y_f32) static_cast<bf16*>(task.y)[at] = __float2bfloat16_rn(value);
  else if (task.epilogue == add_y) static_cast<float*>(task.y)[at] += value;
  else static_cast<float*>(task.y)[at] = value;
}

// Slices are added by twos, the pairs in order.
__device__ __forceinline__ float add_slices(const float* sums, int wk, int apart) {
  float total = sums[0] + sums[apart];
  for (int s = 2; s < wk; s += 2) total += sums[s * apart] + sums[(s + 1) * apart];
  return total;
}

template <int NT>
__device__ void linear_block(const LinearTask& task) {
  using G = Shape<NT>;
  constexpr int RT = G::RT;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ bool is_last;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int wk = task.wk, wr = 8 / wk, my_wr = warp / wk, my_wk = warp % wk;
  const bool gated = task.epilogue == gated_y;
  const int token0 = blockIdx.z * G::tokens, R = wr * RT * 16;

  // The warp's tiles. Those beyond the segment stand for its last one and are not written.
  Tiles tiles;
  int my_tile;
  if (gated) {
    const int pair0 = blockIdx.x * (wr * RT / 2), up = my_wr >= wr / 2;
    tiles = {up && task.num_segments == 2 ? task.segments[1] : task.segments[0], pair0, 0};
    my_tile = pair0 + (my_wr - (up ? wr / 2 : 0)) * RT + (up && task.num_segments == 1 ? task.rows / 16 : 0);
  } else {
    tiles = block_tiles(task, blockIdx.x, wr * RT);
    my_tile = tiles.tile0 + my_wr * RT;
  }
  const int last = (tiles.segment.rows + 15) / 16 - 1;
  const int first = min(my_tile, last);
  const bool two = RT == 2 && my_tile + 1 <= last;

  const bool alone = gridDim.y == 1;
  float* sums = reinterpret_cast<float*>(shared);                        // [wk][tokens][R]
  float* totals = reinterpret_cast<float*>(shared + 8 * G::warp_bytes);  // [tokens][R], where one block takes all splits
  constexpr int tokens = G::tokens;
  const int apart = tokens * R;
  int valid = 0;
  release();
  for (int split = alone ? 0 : blockIdx.y; split < (alone ? task.splits : blockIdx.y + 1); split++) {
    float acc[RT][NT][4] = {};
    for_storage(tiles.segment.type, [&]<int S>() {
      using L = Format<S>;
      const int units = (task.cols + L::k - 1) / L::k, slices = task.splits * wk, slice = split * wk + my_wk;
      const int64_t tile_bytes = static_cast<int64_t>(units) * L::bytes;
      stream<S, NT>(tiles.segment.data + first * tile_bytes, two ? tile_bytes : 0, units * slice / slices,
                    units * (slice + 1) / slices, shared + warp * G::warp_bytes, task, token0, acc);
    });
    valid = min(tokens, *task.count - token0) * R;
    if (valid <= 0) return;
    __syncthreads();
#pragma unroll
    for (int rt = 0; rt < RT; rt++) {
#pragma unroll
      for (int nt = 0; nt < NT; nt++) {
        float* to = sums + my_wk * apart + (nt * 8 + 2 * (lane & 3)) * R + (my_wr * RT + rt) * 16 + (lane >> 2);
        to[0] = acc[rt][nt][0], to[R] = acc[rt][nt][1], to[8] = acc[rt][nt][2], to[R + 8] = acc[rt][nt][3];
      }
    }
    __syncthreads();
    if (alone && task.splits > 1) {
      for (int i = threadIdx.x; i < valid; i += 256) {
        const float sum = add_slices(sums + i, wk, apart);
        totals[i] = split == 0 ? sum : totals[i] + sum;
      }
      __syncthreads();
    }
  }

  float* partial = nullptr;  // of this block's neighbours along y
  if (!alone) {
    partial = task.partial + static_cast<int64_t>(blockIdx.x) * gridDim.y * apart;
    for (int i = threadIdx.x; i < valid; i += 256) __stcg(partial + blockIdx.y * apart + i, add_slices(sums + i, wk, apart));
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      is_last = atomicAdd(task.tickets + blockIdx.x, 1) == gridDim.y - 1;
      if (is_last) task.tickets[blockIdx.x] = 0;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
  }
  const auto value = [&](int i) {
    if (alone) return task.splits > 1 ? totals[i] : add_slices(sums + i, wk, apart);
    float total = __ldcg(partial + i);
    for (int s = 1; s < static_cast<int>(gridDim.y); s++) total += __ldcg(partial + s * apart + i);
    return total;
  };
  const int half = gated ? R / 2 : R, limit = gated ? task.rows : tiles.segment.rows;
  for (int i = threadIdx.x; i < valid / R * half; i += 256) {
    const int token = i / half, row = i % half, local = tiles.tile0 * 16 + row;
    if (local >= limit) continue;
    const float v = value(token * R + row), up = gated ? value(token * R + half + row) : 0.0f;
    write_y(task, token0 + token, tiles.column + local, v, up);
  }
}

}  // namespace mr

// One kernel for a number of tokens a pass. grid: (groups of rows, splits or 1, passes); shared memory:
// 8 × Shape::warp_bytes, and [tokens][R] f32 more where one block takes several splits.
#define MR_LINEAR(NAME, NT, BLOCKS)                                                                                      \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS) NAME(                                                          \
      const mr::bf16* x, int cols, void* y, int y_f32, int y_width, const float* bias, const int* count, int epilogue,     \
      int activation, int rows, int splits, int wk, float* partial, int* tickets, int num_segments, const uint8_t* d0,     \
      int t0, int n0, const uint8_t* d1, int t1, int n1, const uint8_t* d2, int t2, int n2, const uint8_t* d3, int t3,     \
      int n3) {                                                                                                            \
    const mr::LinearTask task{x,          cols, y,                                                                         \
                              y_f32,      y_width, bias,                                                                   \
                              count,      epilogue, activation,                                                            \
                              rows,       {{d0, t0, n0}, {d1, t1, n1}, {d2, t2, n2}, {d3, t3, n3}}, num_segments,          \
                              splits,     wk, partial,                                                                     \
                              tickets};                                                                                    \
    mr::linear_block<NT>(task);                                                                                            \
  }
