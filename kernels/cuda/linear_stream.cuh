// Owns: y = x · Wᵀ for up to 64 tokens a pass, every format: the weights stream once from memory through a ring of
// cp.async private to each warp, become bf16 fragments in registers and meet the tokens on the tensor cores, W being their
// A operand (16 rows), the tokens the B operand (8 a fragment). linear_8.cu … linear_64.cu are its instances.
//
// Codes enter the products as exact small integers and the scale multiplies the f32 sum of its 32 (or 16) values, so
// nothing of a weight is rounded. F16 and F32 weights are split into two and three bf16 whose sum they are.
//
// The order of a sum is fixed by the matrix alone: k is cut into slices (splits × wk), each summed along k; the slices of
// one block are added in order, then the blocks' sums in order. Never does the number of tokens enter: the instances give the
// same bits.
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
  int tiles;      // up to 8 tokens: tiles that a row of warps goes through
  float* partial;
  int* tickets;
};

// T: tokens a pass. Few tokens' x comes along with the weights, more through the L1 cache.
template <int T>
struct Shape {
  static constexpr int tokens = T, NT = T / 8, RT = T <= 8 ? 1 : 2;
  static constexpr int ring = T == 8 ? 11264 : 13824;
  static constexpr int scales = RT * 16 * 72;  // a warp's table of scales
  static constexpr int warp_bytes = ring + scales;
  // Whether a warp brings x along: eight tokens of a super-block would leave no room for the weights.
  static constexpr bool own_x(int k) { return T == 8 && k <= 64; }
  // Bytes of a token's k values in the ring: rows an odd number of half lines apart, so that fragments meet no bank twice.
  static constexpr int x_row(int k) { return k == 32 ? 2 * k : 2 * k + 64; }
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
// (bits & mask) | others: one instruction, where the compiler makes two of two constants.
__device__ __forceinline__ uint32_t picked(uint32_t bits, uint32_t mask, uint32_t others) {
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(bits), "r"(mask), "r"(others));
  return out;
}
// Codes 128 + q as a pair of bf16, less their zero.
__device__ __forceinline__ uint32_t centred(uint32_t pair, uint32_t zero) {
  const __nv_bfloat162 d = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&pair), *reinterpret_cast<const __nv_bfloat162*>(&zero));
  return *reinterpret_cast<const uint32_t*>(&d);
}

__device__ __forceinline__ void copy16(uint8_t* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}

// Eight values from k on; zero beyond the row. Slow: rows that are not on multiples of 8 values.
static __device__ __noinline__ uint4 load_ragged(const bf16* x, int k, int cols) {
  uint32_t v[8];
  for (int i = 0; i < 8; i++) v[i] = k + i < cols ? __bfloat16_as_ushort(x[k + i]) : 0;
  return make_uint4(v[0] | v[1] << 16, v[2] | v[3] << 16, v[4] | v[5] << 16, v[6] | v[7] << 16);
}

// b[0], b[1]: the B operand of a 32's first product; b[2], b[3] of its second.
template <int S>
__device__ __forceinline__ uint4 load_own_x(const uint8_t* x, int k, int t) {
  if constexpr (S == Q6_K) {
    const uint2 a = *reinterpret_cast<const uint2*>(x + 2 * (k + 4 * t)), b = *reinterpret_cast<const uint2*>(x + 2 * (k + 16 + 4 * t));
    return make_uint4(a.x, a.y, b.x, b.y);
  } else {
    return *reinterpret_cast<const uint4*>(x + 2 * (k + 8 * t));
  }
}
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

  // Of infinity nothing is left.
  __device__ __forceinline__ float rest(float w, uint32_t part) { return isinf(w) ? 0.0f : w - __uint_as_float(part); }
  __device__ __forceinline__ void split(float w0, float w1, int product, int reg) {
    float r0 = w0, r1 = w1;
#pragma unroll
    for (int i = 0; i < terms; i++) {
      const uint32_t pair = bf16_pair(r0, r1);
      a[i][product][reg] = pair;
      r0 = rest(r0, pair << 16);
      r1 = rest(r1, pair & 0xffff0000u);
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
          a[0][i >> 1][p * 2 + (i & 1)] = centred(picked(w, 0x007f007fu, 0x43004300u), picked(w, 0x00800080u, 0x43004300u));
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
          uint32_t pair = picked(words[half] >> (4 * p), 0x000f000fu, 0x43004300u);
          if (L::bits == 6) pair = picked(p < 2 ? plane[half] << (4 - 2 * p) : plane[half] >> (2 * p - 4), 0x00300030u, pair);
          if (L::bits == 5) pair = picked(plane[half] << (4 - p), 0x00100010u, pair);
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

// 32 values of 16·RT rows and 8 tokens.
template <int S, int RT, int NT>
__device__ __forceinline__ void products(const Fragments<S> (&f)[RT], const float2 (&low)[RT], const float2 (&high)[RT], const uint4& b,
                                         float (&acc)[RT][NT][4], int nt) {
  using L = Format<S>;
  float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};  // of the tokens' values, where offsets want them
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
    } else {
      float p[4] = {0.0f, 0.0f, 0.0f, 0.0f}, q[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      mma(p, f[rt].a[0][0], b.x, b.y);
      mma(S == Q6_K ? q : p, f[rt].a[0][1], b.z, b.w);
      to[0] += low[rt].x * p[0], to[1] += low[rt].x * p[1], to[2] += high[rt].x * p[2], to[3] += high[rt].x * p[3];
      if constexpr (S == Q6_K) {
        to[0] += low[rt].y * q[0], to[1] += low[rt].y * q[1], to[2] += high[rt].y * q[2], to[3] += high[rt].y * q[3];
      } else if constexpr (L::has_min) {
        to[0] += low[rt].y * sums[0], to[1] += low[rt].y * sums[1];
        to[2] += high[rt].y * sums[0], to[3] += high[rt].y * sums[1];
      }
    }
  }
}

// Units [u0, u1) of RT neighbouring tiles (w: the first's unit 0; apart: bytes to the second's) into acc; then finish(0).
// Up to 8 tokens: of `tiles` tiles, `apart` bytes from each other, one after the other, without a break in the loads; from
// the there-th on, the last again.
template <int S, int T, class Finish>
__device__ __forceinline__ void stream(const uint8_t* w, int64_t apart, int u0, int u1, int tiles, int there, uint8_t* ring, const LinearTask& task,
                                       int token0, float (&acc)[Shape<T>::RT][Shape<T>::NT][4], Finish&& finish) {
  using L = Format<S>;
  using G = Shape<T>;
  constexpr int RT = G::RT, NT = G::NT, x_row = G::x_row(L::k), weights = L::bytes * RT;
  constexpr bool own_x = G::own_x(L::k);
  constexpr int stage = weights + (own_x ? T * x_row : 0), fit = G::ring / stage, depth = fit > 8 ? 8 : fit;
  static_assert(depth >= 2);
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  uint8_t* table = ring + G::ring;
  // Where the loads are: unit `ahead` of tile `at_tile`.
  int ahead = u0, at_tile = u0 < u1 ? 0 : tiles;
  const uint8_t* from_tile = w;
  const auto advance = [&] {
    if (++ahead < u1) return;
    ahead = u0, at_tile++;
    if (at_tile < there) from_tile += apart;
  };
  const auto fetch = [&](int slot) {
    if (at_tile >= tiles) return;
#pragma unroll
    for (int rt = 0; rt < RT; rt++) {
      const uint8_t* from = from_tile + rt * apart + static_cast<int64_t>(ahead) * L::bytes;
#pragma unroll
      for (int at = 0; at < L::bytes; at += 512) {
        if (at + 512 <= L::bytes || at + lane * 16 < L::bytes) copy16(ring + slot * stage + rt * L::bytes + at + lane * 16, from + at + lane * 16);
      }
    }
  };
#pragma unroll
  for (int i = 0; i < depth - 1; i++) fetch(i), advance();
  wait();
  const int count = *task.count, left = count - token0 - g;  // token 8·nt + g of the pass is there where 8·nt < left
  const bool ragged = (task.cols & 7) != 0;
  const bf16* x = task.x + static_cast<int64_t>(token0 + g) * task.cols;
  const auto fetch_x = [&](int u, int slot) {
    if (!own_x) return;
    uint8_t* to = ring + slot * stage + weights;
#pragma unroll
    for (int i = lane; i < T * (L::k / 8); i += 32) {
      const int token = i / (L::k / 8), chunk = i % (L::k / 8), k = u * L::k + chunk * 8;
      const bool there = token0 + token < count && k < task.cols;
      const bf16* from = task.x + static_cast<int64_t>(token0 + token) * task.cols;
      if (L::floating && ragged) *reinterpret_cast<uint4*>(to + token * x_row + chunk * 16) = there ? load_ragged(from, k, task.cols) : make_uint4(0, 0, 0, 0);
      else copy16(to + token * x_row + chunk * 16, there ? from + k : task.x, there);
    }
  };
  for (int i = 0, u = u0; i < depth - 1 && u0 < u1; i++) {
    fetch_x(u, i);
    if (++u == u1) u = u0;
  }
  commit();
  arrived<0>();
  if (token0 >= count) return;

  const int64_t next = 8 * static_cast<int64_t>(task.cols);
  int slot = 0, tile = 0;
  for (int u = u0; tile < tiles; u++) {
    if (u == u1 || u0 == u1) {
      finish(tile);
      u = u0 - 1, tile++;
      continue;
    }
    arrived<depth - 2>();
    __syncwarp();
    const int into = slot == 0 ? depth - 1 : slot - 1;
    if (at_tile < tiles) {
      fetch(into);
      fetch_x(ahead, into);
      advance();
    }
    commit();
    const uint8_t* unit = ring + slot * stage;
    if constexpr (L::k == 256) {
#pragma unroll
      for (int rt = 0; rt < RT; rt++) tabulate<S>(unit + rt * L::bytes, table + rt * 1152, lane);
      __syncwarp();
    }
#pragma unroll(NT < 4 ? 2 : 1)
    for (int chunk = 0; chunk < L::k / 32; chunk++) {
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
        uint4 b;
        if constexpr (own_x) b = load_own_x<S>(unit + weights + g * x_row, chunk * 32, t);
        else b = load_x<S>(x + nt * next, 8 * nt < left, u * L::k + chunk * 32, t, task.cols, ragged);
        products<S, RT>(f, low, high, b, acc, nt);
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
template <class Task>
__device__ __forceinline__ Tiles block_tiles(const Task& task, int b, int each) {
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

// pass: which T tokens.
template <int T>
__device__ void linear_block(const LinearTask& task, int pass) {
  using G = Shape<T>;
  constexpr int RT = G::RT, NT = G::NT;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ bool is_last;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int wk = task.wk, wr = 8 / wk, my_wr = warp / wk, my_wk = warp % wk;
  const bool gated = task.epilogue == gated_y;
  const int token0 = pass * G::tokens, R = wr * RT * 16;

  // The warp's tiles. Those beyond the segment stand for its last one and are not written.
  Tiles tiles;
  int my_tile;
  if (gated) {
    const int pair0 = blockIdx.x * (wr * RT / 2) * task.tiles, up = my_wr >= wr / 2;
    tiles = {up && task.num_segments == 2 ? task.segments[1] : task.segments[0], pair0, 0};
    my_tile = pair0 + (my_wr - (up ? wr / 2 : 0)) * RT * task.tiles + (up && task.num_segments == 1 ? task.rows / 16 : 0);
  } else {
    tiles = block_tiles(task, blockIdx.x, wr * RT * task.tiles);
    my_tile = tiles.tile0 + my_wr * RT * task.tiles;
  }
  const int last = (tiles.segment.rows + 15) / 16 - 1;
  const int first = min(my_tile, last);
  const bool two = RT == 2 && my_tile + 1 <= last;

  const bool alone = gridDim.y == 1;
  constexpr int tokens = G::tokens;
  const int apart = tokens * R;
  const int half = gated ? R / 2 : R, limit = gated ? task.rows : tiles.segment.rows;
  // [wk][tokens][R]: over the rings once they are done with; beside them, twice, where tiles follow each other.
  float* sums = reinterpret_cast<float*>(shared + (T <= 8 ? 8 * G::warp_bytes : 0));
  float* totals = reinterpret_cast<float*>(shared + 8 * G::warp_bytes);  // [tokens][R], where one block takes all splits
  int valid = 0;
  float acc[RT][NT][4] = {};
  const auto leave = [&](float* to_sums) {
#pragma unroll
    for (int rt = 0; rt < RT; rt++) {
#pragma unroll
      for (int nt = 0; nt < NT; nt++) {
        float* to = to_sums + my_wk * apart + (nt * 8 + 2 * (lane & 3)) * R + (my_wr * RT + rt) * 16 + (lane >> 2);
        float(&d)[4] = acc[rt][nt];
        to[0] = d[0], to[R] = d[1], to[8] = d[2], to[R + 8] = d[3];
        d[0] = d[1] = d[2] = d[3] = 0.0f;
      }
    }
  };
  release();
  if constexpr (T <= 8) {
    const int block_count = min(task.tiles, (limit + 15) / 16 - tiles.tile0);  // of the first row of warps
    for_storage(tiles.segment.type, [&]<int S>() {
      using L = Format<S>;
      const int units = (task.cols + L::k - 1) / L::k;
      const int64_t tile_bytes = static_cast<int64_t>(units) * L::bytes;
      stream<S, T>(tiles.segment.data + first * tile_bytes, tile_bytes, units * my_wk / wk, units * (my_wk + 1) / wk,
                   block_count, max(1, last + 1 - first), shared + warp * G::warp_bytes, task, token0, acc, [&](int tile) {
        float* mine = sums + (tile & 1) * wk * apart;
        leave(mine);
        __syncthreads();
        const int rows = min(tokens, *task.count - token0);
        for (int i = threadIdx.x; i < rows * half; i += 256) {
          const int token = i / half, row = i % half, local = (tiles.tile0 + row / 16 * task.tiles + tile) * 16 + row % 16;
          if (local >= limit) continue;
          const float up = gated ? add_slices(mine + token * R + half + row, wk, apart) : 0.0f;
          write_y(task, token0 + token, tiles.column + local, add_slices(mine + token * R + row, wk, apart), up);
        }
      });
    });
    return;
  }
  for (int split = alone ? 0 : blockIdx.y; split < (alone ? task.splits : blockIdx.y + 1); split++) {
    for_storage(tiles.segment.type, [&]<int S>() {
      using L = Format<S>;
      const int units = (task.cols + L::k - 1) / L::k, slices = task.splits * wk, slice = split * wk + my_wk;
      const int64_t tile_bytes = static_cast<int64_t>(units) * L::bytes;
      stream<S, T>(tiles.segment.data + first * tile_bytes, two ? tile_bytes : 0, units * slice / slices, units * (slice + 1) / slices,
                   1, 1, shared + warp * G::warp_bytes, task, token0, acc, [](int) {});
    });
    valid = min(tokens, *task.count - token0) * R;
    if (valid <= 0) return;
    __syncthreads();
    leave(sums);
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
  for (int i = threadIdx.x; i < valid / R * half; i += 256) {
    const int token = i / half, row = i % half, local = tiles.tile0 * 16 + row;
    if (local >= limit) continue;
    const float v = value(token * R + row), up = gated ? value(token * R + half + row) : 0.0f;
    write_y(task, token0 + token, tiles.column + local, v, up);
  }
}

}  // namespace mr

// One kernel for a number of tokens a pass. grid: (groups of rows, splits or 1, passes); shared memory:
// 8 × Shape::warp_bytes, and more: up to 8 tokens 2 × [wk][tokens][R] f32; else [tokens][R] f32 where one block takes several
// splits.
#define MR_LINEAR(NAME, T, BLOCKS)                                                                                       \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS) NAME(                                                          \
      const mr::bf16* x, int cols, void* y, int y_f32, int y_width, const float* bias, const int* count, int epilogue,     \
      int activation, int rows, int splits, int wk, int tiles, float* partial, int* tickets, int num_segments, const uint8_t* d0,     \
      int t0, int n0, const uint8_t* d1, int t1, int n1, const uint8_t* d2, int t2, int n2, const uint8_t* d3, int t3,     \
      int n3) {                                                                                                            \
    const mr::LinearTask task{x,          cols, y,                                                                         \
                              y_f32,      y_width, bias,                                                                   \
                              count,      epilogue, activation,                                                            \
                              rows,       {{d0, t0, n0}, {d1, t1, n1}, {d2, t2, n2}, {d3, t3, n3}}, num_segments,          \
                              splits,     wk, tiles, partial,                                                                     \
                              tickets};                                                                                    \
    mr::linear_block<T>(task, blockIdx.z);                                                                                         \
  }
