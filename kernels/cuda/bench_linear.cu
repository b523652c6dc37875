// Owns: checking and timing the linear kernels on a GPU, without Node: every format and shape against a plain reference,
// then GB/s of chains of products as a model's step has them. Built by scripts/bench-cuda-linear.sh; prints JSON lines.
//   bench_linear [check|time]...
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cmath>
#include <functional>
#include <string>
#include <vector>
#include <algorithm>
#include <cuda.h>
#include "linear_wgmma.cuh"
#include "linear_one.cuh"

extern "C" {
__global__ void mr_linear_pack(int, const uint8_t*, int64_t, int64_t, int, const int*, int, int, uint8_t*);
__global__ void mr_linear_unpack(int, const uint8_t*, int, int, float*);
__global__ void mr_linear_widen(int, const uint8_t*, int, uint8_t*);
#define STREAM(NAME)                                                                                                        \
  __global__ void NAME(const mr::bf16*, int, void*, int, int, const float*, const int*, int, int, int, int, int, int, float*, int*, \
                       int, const uint8_t*, int, int, const uint8_t*, int, int, const uint8_t*, int, int, const uint8_t*, int, int);
__global__ void mr_linear_1(const mr::bf16*, int, void*, int, int, const float*, const int*, int, int, int, const float*, int, float, const float*,
                            mr::bf16*, float*, int, const uint8_t*, int, int, const uint8_t*, int, int, const uint8_t*, int, int, const uint8_t*, int, int);
STREAM(mr_linear_8)
STREAM(mr_linear_16)
STREAM(mr_linear_32)
STREAM(mr_linear_64)
#define PRODUCT mr::TensorMap, mr::TensorMap, mr::TensorMap, mr::TensorMap, mr::TensorMap, int, void*, int, int, const float*, const int*, int, int, int, int, int, int, int, int
__global__ void mr_linear_gemm_128(PRODUCT, int);
__global__ void mr_linear_gemm_256(PRODUCT, int);
#define FEW(BM, R) __global__ void mr_linear_few_##BM##_##R(PRODUCT, int, int, int, int);
#define EACH_FEW(DO) DO(64, 32) DO(64, 64) DO(64, 96) DO(64, 128) DO(64, 192) DO(64, 224) DO(64, 256) DO(128, 32) DO(128, 64) DO(128, 96) DO(128, 128) DO(128, 192) DO(128, 224) DO(128, 256)
EACH_FEW(FEW)
#define PACKED(NAME)                                                                                                          \
  __global__ void NAME(mr::TensorMap, mr::TensorMap, int, void*, int, int, const float*, const int*, int, int, int, int,       \
                       const uint8_t*, int, int, const uint8_t*, int, int, const uint8_t*, int, int, const uint8_t*, int, int, int, int, \
                       int, int, int);
PACKED(mr_linear_packed_16)
PACKED(mr_linear_packed_32)
PACKED(mr_linear_packed_64)
__global__ void mr_linear_turn(const mr::bf16*, int, const int*, mr::bf16*, int64_t, int);
}

#define CHECK(x)                                                                                        \
  do {                                                                                                  \
    cudaError_t e = (x);                                                                                \
    if (e != cudaSuccess) printf("{\"error\":\"%s line %d: %s\"}\n", #x, __LINE__, cudaGetErrorString(e)), exit(1); \
  } while (0)

using mr::bf16;
static const char* names[] = {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"};
static cudaStream_t stream;
static int sms;

static uint64_t state = 1;
static uint32_t rnd() {
  state += 0x9e3779b97f4a7c15ull;
  uint64_t z = state;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull, z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return z >> 32;
}
static float uniform() { return rnd() * 2.3283064e-10f - 0.5f; }

static int unit_k(int type) { int k = 0; mr::for_storage(type, [&]<int S>() { k = mr::Format<S>::k; }); return k; }
static int unit_bytes(int type) { int b = 0; mr::for_storage(type, [&]<int S>() { b = mr::Format<S>::bytes; }); return b; }
static int block_values(int type) { return type <= mr::BF16 ? 1 : type >= mr::Q4_K ? 256 : 32; }
static int block_bytes(int type) { static const int b[] = {4, 2, 2, 18, 20, 22, 24, 34, 144, 176, 210}; return b[type]; }
static int units(int type, int cols) { return (cols + unit_k(type) - 1) / unit_k(type); }
static int64_t packed_bytes(int type, int rows, int cols) { return int64_t((rows + 15) / 16) * units(type, cols) * unit_bytes(type); }

static float half_at(const uint8_t* p) { __half_raw r; r.x = p[0] | p[1] << 8; return __half2float(__half(r)); }
static void put_half(uint8_t* p, float v) { __half_raw r = __half(v); p[0] = r.x & 255, p[1] = r.x >> 8; }

// The formats' meaning, by their documents, one value at a time (host).
static float value_of(int type, const uint8_t* b, int j) {
  const auto six = [&](const uint8_t* p, int s, bool min) -> int {
    if (s < 4) return p[s + (min ? 4 : 0)] & 63;
    return min ? (p[s + 4] >> 4) | (p[s] >> 6) << 4 : (p[s + 4] & 15) | (p[s - 4] >> 6) << 4;
  };
  uint32_t u;
  float f;
  switch (type) {
    case mr::F32: memcpy(&f, b, 4); return f;
    case mr::F16: return half_at(b);
    case mr::BF16: u = uint32_t(b[0] | b[1] << 8) << 16; memcpy(&f, &u, 4); return f;
    case mr::Q4_0: return half_at(b) * float((b[2 + j % 16] >> (j / 16 * 4) & 15) - 8);
    case mr::Q4_1: { volatile float p = half_at(b) * float(b[4 + j % 16] >> (j / 16 * 4) & 15); return p + half_at(b + 2); }
    case mr::Q5_0: return half_at(b) * float(((b[6 + j % 16] >> (j / 16 * 4) & 15) | (b[2 + j / 8] >> j % 8 & 1) << 4) - 16);
    case mr::Q5_1: { volatile float p = half_at(b) * float((b[8 + j % 16] >> (j / 16 * 4) & 15) | (b[4 + j / 8] >> j % 8 & 1) << 4); return p + half_at(b + 2); }
    case mr::Q8_0: return half_at(b) * float(int8_t(b[2 + j]));
    case mr::Q4_K: case mr::Q5_K: {
      const int s = j / 32, l = j % 32, codes = type == mr::Q4_K ? 16 : 48;
      volatile float scale = half_at(b) * float(six(b + 4, s, false)), min = half_at(b + 2) * float(six(b + 4, s, true));
      int q = b[codes + 32 * (s / 2) + l] >> (s % 2 * 4) & 15;
      if (type == mr::Q5_K) q |= (b[16 + l] >> s & 1) << 4;
      volatile float p = scale * float(q);
      return p - min;
    }
    default: {
      const int h = j / 128, r = j % 128, q4 = r / 32, l = r % 32;
      const int low = b[64 * h + (q4 & 1) * 32 + l] >> (q4 / 2 * 4) & 15, high = b[128 + 32 * h + l] >> (2 * q4) & 3;
      volatile float scale = half_at(b + 208) * float(int8_t(b[192 + j / 16]));
      return scale * float((low | high << 4) - 32);
    }
  }
}

struct Weight {
  int type, rows, cols;
  uint8_t* data;
  std::vector<float> host;  // where checked
};

static std::vector<uint8_t> random_file(int type, int rows, int cols) {
  const int64_t blocks = int64_t(rows) * cols / block_values(type);
  std::vector<uint8_t> out(blocks * block_bytes(type));
  for (auto& b : out) b = rnd();
  for (int64_t i = 0; i < blocks; i++) {
    uint8_t* b = out.data() + i * block_bytes(type);
    const float d = 0.002f + 0.01f * (uniform() + 0.5f);
    if (type == mr::F32) { float v = uniform(); memcpy(b, &v, 4); }
    else if (type == mr::F16) put_half(b, uniform());
    else if (type == mr::BF16) { float v = uniform(); uint32_t u; memcpy(&u, &v, 4); b[0] = u >> 16, b[1] = u >> 24; }
    else if (type == mr::Q6_K) put_half(b + 208, d * 0.02f);
    else {
      put_half(b, type >= mr::Q4_K ? d * 0.05f : type == mr::Q8_0 ? d * 0.1f : d);
      if (type != mr::Q4_0 && type != mr::Q5_0 && type != mr::Q8_0) put_half(b + 2, type >= mr::Q4_K ? d * 0.3f : -d * 8);
    }
  }
  return out;
}

static Weight make(int type, int rows, int cols, bool check_unpack) {
  Weight w{type, rows, cols, nullptr, {}};
  const auto file = random_file(type, rows, cols);
  const int64_t row_bytes = int64_t(cols) / block_values(type) * block_bytes(type);
  uint8_t* raw;
  CHECK(cudaMalloc(&raw, file.size()));
  CHECK(cudaMemcpy(raw, file.data(), file.size(), cudaMemcpyHostToDevice));
  CHECK(cudaMalloc(&w.data, packed_bytes(type, rows, cols)));
  CHECK(cudaMemset(w.data, 0xff, packed_bytes(type, rows, cols)));
  const dim3 grid(units(type, cols), (rows + 15) / 16);
  mr_linear_pack<<<grid, 256>>>(type, raw, row_bytes, 0, 0, nullptr, rows, cols, w.data);
  w.host.resize(int64_t(rows) * cols);
  for (int r = 0; r < rows; r++)
    for (int k = 0; k < cols; k++)
      w.host[int64_t(r) * cols + k] = value_of(type, file.data() + r * row_bytes + int64_t(k / block_values(type)) * block_bytes(type), k % block_values(type));
  if (check_unpack) {
    float* back;
    CHECK(cudaMalloc(&back, w.host.size() * 4));
    mr_linear_unpack<<<grid, 256>>>(type, w.data, rows, cols, back);
    std::vector<float> got(w.host.size());
    CHECK(cudaMemcpy(got.data(), back, got.size() * 4, cudaMemcpyDeviceToHost));
    int64_t wrong = 0;
    for (size_t i = 0; i < got.size(); i++) wrong += memcmp(&got[i], &w.host[i], 4) != 0 && !(got[i] == 0 && w.host[i] == 0);
    if (wrong) printf("{\"check\":\"unpack\",\"type\":\"%s\",\"wrong\":%ld,\"of\":%zu}\n", names[type], wrong, got.size());
    CHECK(cudaFree(back));
  }
  CHECK(cudaDeviceSynchronize());
  CHECK(cudaFree(raw));
  return w;
}

template <class T>
static T* upload(const std::vector<T>& v) {
  T* p;
  CHECK(cudaMalloc(&p, v.size() * sizeof(T)));
  CHECK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}

struct Call {
  std::vector<Weight> segments;
  const bf16* x;
  void* y;
  int y_f32, y_width;
  const float* bias;
  const int* count;
  int epilogue;  // mr::Epilogue
  int tokens;    // of the bucket
  float* partial;
  int* tickets;
};

template <class... P, class... A>
static void launch_cluster(int cluster, void (*kernel)(P...), dim3 grid, int block, int shared, A... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared, config.stream = stream;
  cudaLaunchAttribute a[2]{};
  a[0].id = cudaLaunchAttributeProgrammaticStreamSerialization, a[0].val.programmaticStreamSerializationAllowed = 1;
  a[1].id = cudaLaunchAttributeClusterDimension, a[1].val.clusterDim = {unsigned(cluster), 1, 1};
  config.attrs = a, config.numAttrs = cluster > 1 ? 2 : 1;
  CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...));
}
template <class... P, class... A>
static void launch(void (*kernel)(P...), dim3 grid, int block, int shared, A... args) {
  launch_cluster(1, kernel, grid, block, shared, args...);
}

// As src/device/cuda/linear.ts lowers it. tile: tokens a pass (8, 16, 32, 64).
static int most_tiles = 1;
static int narrow = 1;  // one token: fewer warps along k, more rows a block
template <int T, class K>
static void run_stream(K kernel, const Call& c) {
  using G = mr::Shape<T>;
  const bool gated = c.epilogue == mr::gated_y;
  const int wk = T > 8 ? 2 : (gated ? 4 : 8) / (T == 1 ? narrow : 1), wr = 8 / wk, R = wr * G::RT * 16, slices = gated ? 4 : 8,
            splits = T == 1 ? 1 : slices / wk;
  const int passes = (c.tokens + G::tokens - 1) / G::tokens;
  const int rows = gated ? c.y_width : 0;
  int groups = 0, tiles = 0;
  for (auto& s : c.segments) tiles += (s.rows + 15) / 16;
  // As many tiles a block as leave every multiprocessor its blocks.
  const int each = T > 8 ? 1 : std::max(1, std::min(most_tiles, tiles / wr / (sms * (T == 1 ? 3 : 2))));
  if (gated) groups = (rows + R / 2 * each - 1) / (R / 2 * each);
  else for (auto& s : c.segments) groups += ((s.rows + 15) / 16 + wr * G::RT * each - 1) / (wr * G::RT * each);
  const bool alone = splits == 1 || passes > 1;
  const int shared = 8 * G::warp_bytes + (T <= 8 ? 2 * wk * T * R * 4 : alone && splits > 1 ? G::tokens * R * 4 : 0);
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  const auto seg = [&](int i) { return i < int(c.segments.size()) ? c.segments[i] : Weight{0, 0, 0, nullptr, {}}; };
  const Weight a = seg(0), b = seg(1), d = seg(2), e = seg(3);
  launch(kernel, dim3(groups, alone ? 1 : splits, passes), 256, shared, c.x, c.segments[0].cols, c.y, c.y_f32, c.y_width, c.bias, c.count,
         c.epilogue, int(mr::silu), rows, splits, wk, each, c.partial, c.tickets, int(c.segments.size()), a.data, a.type, a.rows, b.data, b.type,
         b.rows, d.data, d.type, d.rows, e.data, e.type, e.rows);
}
// norm: sums of squares of x, and how many; next: what is left for the next norm.
struct Norm {
  const float* squares;
  int count;
  const float* weight;
  bf16* next;
  float* next_squares;
};
static void run_one(const Call& c, const Norm& norm = {}) {
  int groups = 0;
  if (c.epilogue == mr::gated_y) groups = (c.y_width + 15) / 16;
  else for (auto& s : c.segments) groups += (s.rows + 15) / 16;
  const int each = std::min(3, (groups + sms - 1) / sms), shared = 233472 / each - 2176;
  CHECK(cudaFuncSetAttribute(mr_linear_1, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  const auto seg = [&](int i) { return i < int(c.segments.size()) ? c.segments[i] : Weight{0, 0, 0, nullptr, {}}; };
  const Weight a = seg(0), b = seg(1), d = seg(2), e = seg(3);
  launch(mr_linear_1, dim3(groups), 256, shared, c.x, c.segments[0].cols, c.y, c.y_f32, c.y_width, c.bias, c.count, c.epilogue, int(mr::silu),
         c.epilogue == mr::gated_y ? c.y_width : 0, norm.squares, norm.count, 1e-5f, norm.weight, norm.next, norm.next_squares,
         int(c.segments.size()), a.data, a.type, a.rows, b.data, b.type, b.rows, d.data, d.type, d.rows, e.data, e.type, e.rows);
}
// element: 2 bytes with the 128-byte swizzle, or 8 without.
static mr::TensorMap tensor_map(const void* at, int element, int64_t cols, int64_t rows, int box_cols, int box_rows) {
  static void* found = nullptr;
  if (!found) {
    cudaDriverEntryPointQueryResult result;
    CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result));
  }
  const cuuint64_t sizes[2] = {cuuint64_t(cols), cuuint64_t(rows)}, strides[1] = {cuuint64_t(cols) * element};
  const cuuint32_t box[2] = {cuuint32_t(box_cols), cuuint32_t(box_rows)}, ones[2] = {1, 1};
  CUtensorMap map;
  const auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  const CUresult e = encode(&map, element == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16 : CU_TENSOR_MAP_DATA_TYPE_UINT64, 2, const_cast<void*>(at), sizes, strides,
                            box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE, element == 2 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                            CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (e != CUDA_SUCCESS) printf("{\"error\":\"cuTensorMapEncodeTiled %d\"}\n", int(e)), exit(1);
  mr::TensorMap out;
  memcpy(&out, &map, sizeof out);
  return out;
}
// Blocks of R rows.
static int blocks_of(const Call& c, const std::vector<Weight>& weights, int R) {
  const auto blocks = [](int rows, int tiles) { return ((rows + 15) / 16 + tiles - 1) / tiles; };
  if (c.epilogue == mr::gated_y) return blocks(c.y_width, R / 32);
  int all = 0;
  for (auto& s : weights) all += blocks(s.rows, R / 16);
  return all;
}
template <class K, class... A>
static void run_product(K kernel, int cluster, dim3 grid, int block, int shared, int box_rows, int R, const Call& c, const std::vector<Weight>& weights, A... more) {
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  const mr::TensorMap map = tensor_map(c.x, 2, weights[0].cols, c.tokens, 64, box_rows);
  const auto seg = [&](size_t i) {
    const Weight& w = weights[std::min(i, weights.size() - 1)];
    return tensor_map(w.data, 8, (w.cols + 63) / 64 * 256, (w.rows + 15) / 16, 256, R / 32);
  };
  const auto rows = [&](size_t i) { return i < weights.size() ? weights[i].rows : 0; };
  launch_cluster(cluster, kernel, grid, block, shared, map, seg(0), seg(1), seg(2), seg(3), weights[0].cols, c.y, c.y_f32, c.y_width, c.bias, c.count,
                 c.epilogue, int(mr::silu), c.epilogue == mr::gated_y ? c.y_width : 0, int(weights.size()), rows(0), rows(1), rows(2), rows(3), more...);
}
static void run_gemm(int BN, const Call& c, const std::vector<Weight>& weights) {
  const int pairs = (c.tokens + 255) / 256, blocks = blocks_of(c, weights, BN);
  const dim3 grid(std::min(sms / 2, pairs * blocks) * 2);
  const int shared = (BN == 256 ? 4 : 6) * (128 + BN) * 128 + 1024 + 8 * 16 * 40 * 4;
  if (BN == 256) run_product(mr_linear_gemm_256, 2, grid, 384, shared, 128, 256, c, weights, pairs);
  else run_product(mr_linear_gemm_128, 2, grid, 384, shared, 128, 128, c, weights, pairs);
}
// Few tokens: rows a block and blocks along k, those asked for or the cheapest.
static int few_rows = 0, few_splits = 0, few_shared = 226 << 10;
static void run_few(const Call& c, const std::vector<Weight>& weights, bool late) {
  const int steps = (weights[0].cols + 63) / 64, n = std::min(c.tokens, 128), passes = (c.tokens + 127) / 128, BM = n <= 64 ? 64 : 128;
  const int x_rows = (n + 7) / 8 * 8;
  int R = few_rows ? few_rows : 128, S = 1;
  double best = 1e30;
  for (int r : {32, 64, 96, 128, 192, 224, 256})
    for (int s = 1; s <= 8 && s <= steps; s *= 2) {
      if ((few_rows && r != few_rows) || (few_splits && s != few_splits)) continue;
      const int blocks = blocks_of(c, weights, r) * s * passes, room = s > 2 ? sms * 9 / 10 : sms, waves = (blocks + room - 1) / room;
      const double cost = waves * (r + n / 2.0 + 16) * ((steps + s - 1) / s) + (s > 1 ? double(n) * r * s / 6 : 0);
      if (cost < best) best = cost, R = r, S = s;
    }
  const int stage = (x_rows + R) * 128;
  const int stages = std::max(2, std::min(mr::most_stages, (few_shared - 1024) / stage));
  const int shared = 1024 + std::max({stages * stage, (stages - 1) * stage + BM * 128, n * (R + 8) * 4});
  const dim3 grid(blocks_of(c, weights, R) * S, passes);
#define RUN_FEW(M, N) \
  if (BM == M && R == N) run_product(mr_linear_few_##M##_##N, S, grid, 288, shared, x_rows, R, c, weights, x_rows, S, stages, int(late));
  EACH_FEW(RUN_FEW)
}
// Packed weights as they lie; blocks along k: those asked for or the cheapest.
static int packed_splits = 0;
static bf16* turned;
static void run_packed(const Call& c) {
  const int n = c.tokens, cols = c.segments[0].cols, steps = cols / 256, pass = (n + 7) / 8 * 8;
  int S = 1;
  double best = 1e30;
  for (int s = 1; s <= 8 && s <= steps; s *= 2) {
    if (packed_splits && s != packed_splits) continue;
    const int room = n > 32 && s > 2 ? sms * 9 / 10 : sms, waves = (blocks_of(c, c.segments, 128) * s + room - 1) / room;
    if (s > 1 && waves > 2 && !packed_splits) break;
    const double cost = waves * ((steps + s - 1) / s) + (s > 1);
    if (cost < best) best = cost, S = s;
  }
  if (!turned) CHECK(cudaMalloc(&turned, 64ll << 20));
  const int64_t apart = 64ll * cols;
  int slot = 0, least = 1, most = 0;
  for (auto& s : c.segments) {
    const int order = s.type == mr::Q6_K;
    slot = std::max(slot, unit_bytes(s.type) * 256 / unit_k(s.type)), least = std::min(least, order), most = std::max(most, order);
  }
  launch(mr_linear_turn, dim3((cols + 2047) / 2048, n, most - least + 1), 256, 0, c.x, cols, c.count, turned, apart, least);
  const int x_stages = n <= 32 ? 8 : 12, others = 1024 + x_stages * pass * 128 + 8 * 16 * 72;
  const int w_stages = std::min(8, ((n <= 32 ? 233472 / 2 - 1536 : 232448 - 512) - others) / (8 * slot));
  const mr::TensorMap x = tensor_map(turned, 2, cols, n, 64, pass), x6 = tensor_map(turned + apart, 2, cols, n, 64, pass);
  const auto seg = [&](int i) { return i < int(c.segments.size()) ? c.segments[i] : Weight{0, 0, 0, nullptr, {}}; };
  const Weight a = seg(0), b = seg(1), d = seg(2), e = seg(3);
  const int shared = others + w_stages * 8 * slot;
  const auto go = [&](auto kernel) {
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    launch_cluster(S, kernel, dim3(blocks_of(c, c.segments, 128) * S), 320, shared, x, x6, cols, c.y, c.y_f32, c.y_width, c.bias, c.count, c.epilogue,
                   int(mr::silu), c.epilogue == mr::gated_y ? c.y_width : 0, int(c.segments.size()), a.data, a.type, a.rows, b.data, b.type, b.rows,
                   d.data, d.type, d.rows, e.data, e.type, e.rows, pass, S, slot, w_stages, x_stages);
  };
  if (n <= 16) go(mr_linear_packed_16);
  else if (n <= 32) go(mr_linear_packed_32);
  else go(mr_linear_packed_64);
}
// tile: 1 … 64 tokens a pass: streaming; 1000 + BN: wgmma with tiles of BN rows; 2000: wgmma for few tokens; 3000: packed weights as they lie.
static uint8_t* wide;
static void run(const Call& c, int tile) {
  if (tile == 1) return run_one(c);
  if (tile == 8) return run_stream<8>(mr_linear_8, c);
  if (tile == 16) return run_stream<16>(mr_linear_16, c);
  if (tile == 32) return run_stream<32>(mr_linear_32, c);
  if (tile == 64) return run_stream<64>(mr_linear_64, c);
  if (tile == 3000) return run_packed(c);
  std::vector<Weight> weights;
  bool late = false;
  if (!wide) CHECK(cudaMalloc(&wide, 64ll << 20));
  int64_t at = 0;
  for (auto& s : c.segments) {
    if (s.type == mr::BF16) weights.push_back(s);
    else {
      const int units = (s.cols + 63) / 64, tiles = (s.rows + 15) / 16;
      launch(mr_linear_widen, dim3((units + 7) / 8, tiles), 256, 0, s.type, s.data, s.cols, wide + at);
      weights.push_back({mr::BF16, s.rows, s.cols, wide + at, {}});
      at += int64_t(units) * tiles * 2048, late = true;
    }
  }
  if (tile == 2000) run_few(c, weights, late);
  else run_gemm(tile - 1000, c, weights);
}

// y[t, r] = x[t] · w[r] in double.
static __global__ void plain(const bf16* x, const float* w, int tokens, int rows, int cols, float* y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= tokens * rows) return;
  const int t = i / rows, r = i % rows;
  double sum = 0;
  for (int k = 0; k < cols; k++) sum += double(__bfloat162float(x[int64_t(t) * cols + k])) * w[int64_t(r) * cols + k];
  y[i] = sum;
}

static int failures = 0, checks = 0;

static void check(const std::vector<Weight>& segments, int epilogue, bool with_bias, bool y_f32, int tokens, const std::vector<int>& tiles,
                  const std::function<void(const Call&, int)>& runner, bool same_bits, double bound) {
  const int cols = segments[0].cols;
  int total = 0;
  std::vector<float> all;
  for (auto& s : segments) total += s.rows, all.insert(all.end(), s.host.begin(), s.host.end());
  const bool gated = epilogue == mr::gated_y;
  const int width = gated ? total / 2 : total;
  std::vector<bf16> x(int64_t(tokens) * cols);
  for (auto& v : x) v = __float2bfloat16(uniform() * 4);
  std::vector<float> bias(total), before(int64_t(tokens) * width);
  for (auto& v : bias) v = uniform();
  for (auto& v : before) v = uniform();
  bf16* dx = upload(x);
  float *dw = upload(all), *db = upload(bias), *dref;
  CHECK(cudaMalloc(&dref, int64_t(tokens) * total * 4));
  plain<<<(tokens * total + 255) / 256, 256>>>(dx, dw, tokens, total, cols, dref);
  std::vector<float> product(int64_t(tokens) * total), want(int64_t(tokens) * width);
  CHECK(cudaMemcpy(product.data(), dref, product.size() * 4, cudaMemcpyDeviceToHost));
  for (int t = 0; t < tokens; t++)
    for (int r = 0; r < width; r++) {
      double v = product[int64_t(t) * total + r] + (with_bias ? bias[r] : 0);
      if (gated) {
        const double up = product[int64_t(t) * total + width + r] + (with_bias ? bias[width + r] : 0);
        v = v / (1 + exp(-v)) * up;
      }
      if (epilogue == mr::add_y) v += before[int64_t(t) * width + r];
      want[int64_t(t) * width + r] = v;
    }
  int* count = upload(std::vector<int>{tokens});
  float* partial;
  int* tickets;
  const int64_t partial_bytes = int64_t(total + 1024) * 64 * 8 * 4;
  CHECK(cudaMalloc(&partial, partial_bytes));
  CHECK(cudaMalloc(&tickets, (total / 16 + 64) * 4));
  CHECK(cudaMemset(tickets, 0, (total / 16 + 64) * 4));
  std::vector<uint8_t> first;
  for (int tile : tiles) {
    void* y;
    const size_t bytes = want.size() * (y_f32 ? 4 : 2);
    CHECK(cudaMalloc(&y, bytes));
    CHECK(cudaMemset(y, 0xff, bytes));
    CHECK(cudaMemset(partial, 0xff, partial_bytes));
    if (epilogue == mr::add_y) CHECK(cudaMemcpy(y, before.data(), bytes, cudaMemcpyHostToDevice));
    runner({segments, dx, y, y_f32, width, with_bias ? db : nullptr, count, epilogue, tokens, partial, tickets}, tile);
    CHECK(cudaDeviceSynchronize());
    std::vector<uint8_t> got(bytes);
    CHECK(cudaMemcpy(got.data(), y, bytes, cudaMemcpyDeviceToHost));
    double error = 0, norm = 0;
    bool nan = false;
    for (size_t i = 0; i < want.size(); i++) {
      const float v = y_f32 ? reinterpret_cast<float*>(got.data())[i] : __bfloat162float(reinterpret_cast<bf16*>(got.data())[i]);
      nan |= v != v;
      error += (v - want[i]) * (v - want[i]), norm += double(want[i]) * want[i];
    }
    error = std::sqrt(error / norm);
    const bool differs = same_bits && !first.empty() && first != got;
    if (first.empty()) first = got;
    checks++;
    if (nan || !(error < bound) || differs) {
      failures++;
      std::string types;
      for (auto& s : segments) types += std::string(names[s.type]) + ":" + std::to_string(s.rows) + " ";
      printf("{\"check\":\"linear\",\"types\":\"%s\",\"cols\":%d,\"tokens\":%d,\"tile\":%d,\"epilogue\":%d,\"f32\":%d,\"error\":%g,\"nan\":%d,\"bits_differ\":%d}\n",
             types.c_str(), cols, tokens, tile, epilogue, y_f32, error, nan, differs);
    }
    CHECK(cudaFree(y));
  }
  for (void* p : {(void*)dx, (void*)dw, (void*)db, (void*)dref, (void*)count, (void*)partial, (void*)tickets}) CHECK(cudaFree(p));
}

// Two products with a norm between them, the second in every format.
static void check_norm(int type) {
  const int d = 1024, rows = 200;
  Weight first = make(mr::BF16, d, 512, false), second = make(type, rows, d, false);
  std::vector<bf16> x(512);
  std::vector<float> y(d), weight(d), bias(rows);
  for (auto& v : x) v = __float2bfloat16(uniform());
  for (auto& v : y) v = uniform() * 30;
  for (auto& v : weight) v = 1 + uniform();
  for (auto& v : bias) v = uniform();
  std::vector<double> row(d);
  double squares = 0;
  for (int r = 0; r < d; r++) {
    row[r] = y[r];
    for (int k = 0; k < 512; k++) row[r] += double(__bfloat162float(x[k])) * first.host[int64_t(r) * 512 + k];
    squares += row[r] * row[r];
  }
  bf16 *dx = upload(x), *next;
  float *dy = upload(y), *dw = upload(weight), *db = upload(bias), *sums, *out;
  CHECK(cudaMalloc(&next, d * 2));
  CHECK(cudaMalloc(&sums, d / 16 * 4));
  CHECK(cudaMalloc(&out, rows * 4));
  int* count = upload(std::vector<int>{1});
  run_one({{first}, dx, dy, 1, d, nullptr, count, mr::add_y, 1, nullptr, nullptr}, {nullptr, 0, dw, next, sums});
  run_one({{second}, next, out, 1, rows, db, count, mr::store_y, 1, nullptr, nullptr}, {sums, d / 16});
  CHECK(cudaDeviceSynchronize());
  std::vector<float> got(rows);
  CHECK(cudaMemcpy(got.data(), out, rows * 4, cudaMemcpyDeviceToHost));
  double error = 0, norm = 0;
  for (int r = 0; r < rows; r++) {
    double want = 0;
    for (int k = 0; k < d; k++) want += row[k] / std::sqrt(squares / d + 1e-5) * weight[k] * second.host[int64_t(r) * d + k];
    want += bias[r];
    error += (got[r] - want) * (got[r] - want), norm += want * want;
  }
  error = std::sqrt(error / norm);
  checks++;
  if (!(error < 4e-3)) failures++, printf("{\"check\":\"norm\",\"type\":\"%s\",\"error\":%g}\n", names[type], error);
  for (void* p : {(void*)first.data, (void*)second.data, (void*)dx, (void*)next, (void*)dy, (void*)dw, (void*)db, (void*)sums, (void*)out, (void*)count}) CHECK(cudaFree(p));
}

static void check_streams(bool small) {
  const double tight = 2e-6, rounded = 4e-3;
  const std::vector<int> streams{8, 16, 32, 64}, gemms{1128, 1256};
  for (int type = 0; type <= mr::Q6_K; type++) {
    const int multiple = block_values(type) == 1 ? 8 : block_values(type);
    const double wide_bound = type == mr::BF16 ? tight : rounded;
    check_norm(type);
    for (auto [rows, cols] : std::vector<std::pair<int, int>>{{48, 256}, {200, multiple * 3}, {1056, 1024}}) {
      if (small && rows > 200) continue;
      Weight w = make(type, rows, cols, true), up = make(type, rows, cols, false);
      check({w}, mr::store_y, true, true, 1, {1}, run, false, tight);
      check({w}, mr::add_y, false, true, 1, {1}, run, false, tight);
      check({w, up}, mr::gated_y, true, false, 1, {1}, run, false, rounded);
      for (int tokens : {1, 3, 8, 13, 64, 100}) check({w}, mr::store_y, tokens == 3, true, tokens, streams, run, true, tight);
      check({w}, mr::add_y, false, true, 5, streams, run, true, tight);
      check({w}, mr::store_y, true, false, 9, streams, run, true, rounded);
      for (int tokens : {1, 20}) check({w, up}, mr::gated_y, tokens == 1, false, tokens, streams, run, true, rounded);
      if (rows == 1056) check({w}, mr::gated_y, false, true, 7, streams, run, true, tight);
      for (int r : {0, 32, 224}) {
        few_rows = r, few_splits = r == 32 ? 2 : 0;
        for (int tokens : {3, 16, 33, 64, 100, 128, 300}) check({w}, mr::store_y, tokens == 64, true, tokens, {2000}, run, false, wide_bound);
        check({w}, mr::add_y, false, true, 50, {2000}, run, false, wide_bound);
        for (int tokens : {30, 90}) check({w, up}, mr::gated_y, tokens == 30, tokens == 90, tokens, {2000}, run, false, 2 * rounded);
        if (rows == 1056) check({w}, mr::gated_y, false, true, 70, {2000}, run, false, 2 * rounded);
      }
      few_rows = few_splits = 0;
      for (int tokens : {5, 64, 200}) check({w}, mr::store_y, tokens == 64, true, tokens, gemms, run, false, wide_bound);
      check({w}, mr::add_y, false, true, 130, gemms, run, false, wide_bound);
      for (int tokens : {30, 300}) check({w, up}, mr::gated_y, tokens == 30, tokens == 300, tokens, gemms, run, false, 2 * rounded);
      if (cols % 256 == 0 && type >= mr::Q4_0) {
        for (int splits : {0, 4}) {
          if (splits > cols / 256) continue;
          packed_splits = splits;
          for (int tokens : {3, 16, 20, 32, 33, 64}) check({w}, mr::store_y, tokens == 64, true, tokens, {3000}, run, false, rounded);
          check({w}, mr::add_y, false, true, 25, {3000}, run, false, rounded);
          for (int tokens : {30, 60}) check({w, up}, mr::gated_y, tokens == 30, tokens == 60, tokens, {3000}, run, false, 2 * rounded);
          if (rows == 1056) check({w}, mr::gated_y, false, true, 20, {3000}, run, false, 2 * rounded);
        }
        packed_splits = 0;
        Weight sixes = make(mr::Q6_K, 96, cols, false), eights = make(mr::Q8_0, 64, cols, false);
        check({w, sixes, eights}, mr::store_y, true, false, 40, {3000}, run, false, rounded);
        CHECK(cudaFree(sixes.data));
        CHECK(cudaFree(eights.data));
      }
      if (cols % 256 == 0) {
        Weight other = make(mr::Q6_K, 96, cols, false), third = make(mr::BF16, 64, cols, false);
        check({w, other, third}, mr::store_y, true, true, 1, {1}, run, false, tight);
        check({w, other, third}, mr::store_y, true, true, 4, streams, run, true, tight);
        check({w, other, third}, mr::store_y, true, false, 150, gemms, run, false, rounded);
        check({w, other, third}, mr::store_y, true, false, 40, {2000}, run, false, rounded);
        CHECK(cudaFree(other.data));
        CHECK(cudaFree(third.data));
      }
      CHECK(cudaFree(w.data));
      CHECK(cudaFree(up.data));
    }
  }
  // Rows that are not on multiples of eight values.
  for (int type : {mr::F32, mr::F16, mr::BF16}) {
    Weight w = make(type, 37, 77, true);
    check({w}, mr::store_y, true, true, 1, {1}, run, false, tight);
    check({w}, mr::store_y, true, true, 11, streams, run, true, tight);
    CHECK(cudaFree(w.data));
  }
}

static __global__ void fill(uint32_t* p, int64_t n, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x) {
    uint32_t h = uint32_t(i) * 2654435761u + seed;
    h ^= h >> 15, h *= 2246822519u, h ^= h >> 13, h *= 3266489917u, h ^= h >> 16;
    p[i] = h & 0xbf7fbf7fu;
  }
}
static __global__ void read_all(const uint4* p, int64_t n, uint32_t* out) {
  uint32_t a = 0;
  int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (; i + 3 * step < n; i += 4 * step) {
    const uint4 u = p[i], v = p[i + step], w = p[i + 2 * step], z = p[i + 3 * step];
    a ^= u.x ^ u.y ^ u.z ^ u.w ^ v.x ^ v.y ^ v.z ^ v.w ^ w.x ^ w.y ^ w.z ^ w.w ^ z.x ^ z.y ^ z.z ^ z.w;
  }
  if (a == 0x12345) *out = a;
}

static uint8_t* pool;
static int64_t pool_bytes;

template <class F>
static double seconds(F&& body, int repeats) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  body();
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t a, b;
  CHECK(cudaEventCreate(&a));
  CHECK(cudaEventCreate(&b));
  std::vector<float> times;
  for (int i = 0; i < repeats + 2; i++) {
    CHECK(cudaEventRecord(a, stream));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaEventRecord(b, stream));
    CHECK(cudaEventSynchronize(b));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, a, b));
    if (i >= 2) times.push_back(ms);
  }
  CHECK(cudaGraphExecDestroy(exec));
  CHECK(cudaGraphDestroy(graph));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] / 1000;
}

static double roof;
static void measure_roof() {
  CHECK(cudaMalloc(&wide, 1200ll << 20));
  CHECK(cudaMalloc(&turned, 64ll << 20));
  uint32_t* out;
  CHECK(cudaMalloc(&out, 4));
  const int64_t n = 8ll << 30;
  roof = n / seconds([&] { read_all<<<sms * 8, 512, 0, stream>>>(reinterpret_cast<uint4*>(pool), n / 16, out); }, 9);
  printf("{\"roof\":\"read\",\"gbs\":%.0f}\n", roof / 1e9);
}

struct Matrix { std::vector<std::pair<int, int>> pieces; int epilogue; };  // (type, rows)

// Matrices one after the other, each with weights of its own, like a model's step.
static double time_chain(const char* name, const std::vector<std::pair<int, Matrix>>& layer, int layers, int tokens,
                         const std::function<void(const Call&, int)>& runner, int tile, int only = -1) {
  static bf16* x;
  static void* y;
  static float* partial;
  static int *tickets, *count;
  if (!x) {
    CHECK(cudaMalloc(&x, 256ll << 20));
    CHECK(cudaMalloc(&y, 4200ll << 20));
    CHECK(cudaMalloc(&partial, 512ll << 20));
    CHECK(cudaMalloc(&tickets, 1 << 20));
    CHECK(cudaMemset(tickets, 0, 1 << 20));
    CHECK(cudaMalloc(&count, 4));
    fill<<<1024, 256>>>(reinterpret_cast<uint32_t*>(x), 64ll << 20, 7);
  }
  CHECK(cudaMemcpy(count, &tokens, 4, cudaMemcpyHostToDevice));
  int64_t at = 0, bytes = 0;
  double flops = 0;
  std::vector<Call> calls;
  for (int l = 0; l < layers; l++) {
    int index = 0;
    for (auto& [cols, m] : layer) {
      if (only >= 0 && index++ != only) continue;
      Call c{{}, x, y, m.epilogue == mr::add_y, 0, nullptr, count, m.epilogue, tokens, partial, tickets};
      for (auto& [type, rows] : m.pieces) {
        const int64_t size = packed_bytes(type, rows, cols);
        if (at + size > pool_bytes) at = 0;
        c.segments.push_back({type, rows, cols, pool + at, {}});
        at += (size + 255) / 256 * 256, bytes += size, c.y_width += rows, flops += 2.0 * rows * cols * tokens;
      }
      if (m.epilogue == mr::gated_y) c.y_width /= 2;
      calls.push_back(c);
    }
  }
  const double s = seconds([&] { for (auto& c : calls) runner(c, tile); }, 7);
  printf("{\"time\":\"%s\",\"matrix\":%d,\"tokens\":%d,\"tile\":%d,\"us\":%.1f,\"us_each\":%.2f,\"gbs\":%.0f,\"roof\":%.3f,\"tflops\":%.1f}\n", name, only,
         tokens, tile, s * 1e6, s * 1e6 / calls.size(), bytes / s / 1e9, bytes / s / roof, flops / s / 1e12);
  return s;
}

using Layer = std::vector<std::pair<int, Matrix>>;
static Layer llama(int d, int kv, int ffn, int q, int k, int v, int o, int gate, int down) {
  return {{d, {{{q, d}, {k, kv}, {v, kv}}, mr::store_y}}, {d, {{{o, d}}, mr::add_y}}, {d, {{{gate, ffn}, {gate, ffn}}, mr::gated_y}}, {ffn, {{{down, d}}, mr::add_y}}};
}
static Layer plain_layer(bool big, int type) {
  return big ? llama(4096, 1024, 14336, type, type, type, type, type, type) : llama(2048, 512, 8192, type, type, type, type, type, type);
}

#include "bench_linear_main.cuh"
