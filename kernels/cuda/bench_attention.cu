// Checks and times the attention kernels by themselves: every kernel against a plain one in double precision, equal bits
// where they are promised, then GB/s and TFLOP/s beside what the device can do. One JSON line a result.
//   nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a bench_attention.cu -o bench_attention
//   bench_attention [check] [speed] [small]      small: shapes for compute-sanitizer
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <cuda.h>

#include "attention.cu"

#define CHECK(call)                                                                                     \
  do {                                                                                                  \
    const cudaError_t error_ = (call);                                                                       \
    if (error_ != cudaSuccess) {                                                                           \
      std::fprintf(stderr, "%s:%d %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_));       \
      std::exit(2);                                                                                     \
    }                                                                                                   \
  } while (0)

namespace {

enum Kv { BF16, F16, F32 };
const char* kv_names[] = {"bf16", "f16", "f32"};

struct Shape {
  int heads, kv_heads, head_dim, v_head_dim;
  Kv kv;
  int window;
  float softcap;
  bool sinks, causal;
};
struct Sequence {
  int kv_start, n;
};

template <class T>
T* device(size_t count) {
  void* p;
  CHECK(cudaMalloc(&p, std::max<size_t>(count, 1) * sizeof(T)));
  return static_cast<T*>(p);
}
template <class T>
T* upload(const std::vector<T>& x) {
  T* p = device<T>(x.size());
  CHECK(cudaMemcpy(p, x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}

__device__ uint32_t hashed(uint64_t x) {
  x ^= x >> 33, x *= 0xff51afd7ed558ccdull, x ^= x >> 33, x *= 0xc4ceb9fe1a85ec53ull, x ^= x >> 33;
  return uint32_t(x);
}
// About normal: sums of four bytes.
__device__ float random_value(uint64_t i) {
  const uint32_t h = hashed(i);
  return ((h & 255) + (h >> 8 & 255) + (h >> 16 & 255) + (h >> 24) - 510.0f) / 147.8f;
}
template <class T>
__global__ void fill_random(T* x, int64_t n, uint64_t seed, float by) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x)
    x[i] = T(random_value(seed + i) * by);
}

struct World {  // the sequences' pages, as the engine gives them
  Shape shape;
  std::vector<Sequence> sequences;
  int tokens = 0, eb;
  int64_t page_bytes, v_at, layer_bytes;
  int pages = 0;
  uint8_t* pool;
  __nv_bfloat16 *q, *y;
  float *sinks = nullptr, *partial;
  int *token_starts, *kv_starts, *page_starts, *page_firsts, *page_ids, *plan, *arrived, *token_sequence;
  mr::StepInfo* step;
  int64_t tiles_at;
  int max_tiles, room = 1024, layers;
  std::vector<int> h_token_starts;

  World(const Shape& s, const std::vector<Sequence>& q_, int layers_ = 1, uint64_t seed = 1, bool share = false, bool pages_together = true)
      : shape(s), sequences(q_), layers(layers_) {
    eb = s.kv == F32 ? 4 : 2;
    const int64_t k_bytes = int64_t(s.kv_heads) * 64 * s.head_dim * eb, v_bytes = int64_t(s.kv_heads) * 64 * s.v_head_dim * eb;
    std::vector<int> ts{0}, ks, ps{0}, pf, ids;
    int most_pages = 0;
    for (const Sequence& x : sequences) {
      ts.push_back(ts.back() + x.n), ks.push_back(x.kv_start);
      const int first = s.window > 0 ? std::max(0, x.kv_start - s.window + 1) / 64 : 0;
      const int end = (x.kv_start + x.n + 63) / 64;
      pf.push_back(first), ps.push_back(ps.back() + end - first), most_pages = std::max(most_pages, end);
    }
    tokens = ts.back(), h_token_starts = ts;
    pages = share ? most_pages : ps.back();
    std::vector<int> order(pages + 3);
    for (size_t i = 0; i < order.size(); i++) order[i] = int(i);
    std::shuffle(order.begin(), order.end(), std::mt19937(unsigned(seed)));
    for (size_t i = 0; i < sequences.size(); i++)
      for (int p = ps[i]; p < ps[i + 1]; p++) ids.push_back(order[share ? pf[i] + p - ps[i] : p]);
    pages = int(order.size());
    // By layer, or all layers of a page together: the kernels take any arrangement.
    page_bytes = k_bytes + v_bytes, v_at = k_bytes, layer_bytes = page_bytes * pages;
    if (pages_together) layer_bytes = page_bytes, page_bytes *= layers;
    const size_t all = size_t(pages) * layers * (k_bytes + v_bytes);
    pool = device<uint8_t>(all);
    CHECK(cudaMemset(pool, 0xff, all));  // NaN: what nobody wrote
    token_starts = upload(ts), kv_starts = upload(ks), page_starts = upload(ps), page_firsts = upload(pf), page_ids = upload(ids);
    mr::StepInfo h_step = {};
    h_step.tokens = tokens, h_step.sequences = int(sequences.size());
    step = upload(std::vector<mr::StepInfo>{h_step});
    std::vector<int> whose;
    for (size_t i = 0; i < sequences.size(); i++) whose.insert(whose.end(), sequences[i].n, int(i));
    token_sequence = upload(whose);
    q = device<__nv_bfloat16>(size_t(tokens) * s.heads * s.head_dim);
    y = device<__nv_bfloat16>(size_t(tokens) * s.heads * s.v_head_dim);
    fill_random<<<512, 256>>>(q, int64_t(tokens) * s.heads * s.head_dim, seed << 40, 1.5f);
    if (s.sinks) {
      std::vector<float> x(s.heads);
      for (int i = 0; i < s.heads; i++) x[i] = 0.5f * i - 1;
      sinks = upload(x);
    }
    const int group = s.heads / s.kv_heads;
    max_tiles = tokens * group / 64 + int(sequences.size());
    const int max_runs = 8192 + int(sequences.size()) * (group / 16 + 1);
    tiles_at = mr::attn::plan_header + int64_t(max_runs) * 16;
    plan = device<int>(tiles_at + int64_t(max_tiles) * 8);
    const size_t rows = sequences.size() * (group / 16 + 1) * s.kv_heads;
    arrived = device<int>(rows);
    CHECK(cudaMemset(arrived, 0, rows * 4));
    partial = device<float>(size_t(room) * s.kv_heads * 16 * (s.v_head_dim + 2));
    fill_pages(seed);
    CHECK(cudaDeviceSynchronize());
  }
  void fill_pages(uint64_t seed);
  ~World() {
    for (void* p : {(void*)pool, (void*)q, (void*)y, (void*)sinks, (void*)partial, (void*)token_starts, (void*)kv_starts,
                    (void*)page_starts, (void*)page_firsts, (void*)page_ids, (void*)plan, (void*)arrived, (void*)step, (void*)token_sequence})
      CHECK(cudaFree(p));
  }
  std::vector<uint16_t> output() const {
    std::vector<uint16_t> r(size_t(tokens) * shape.heads * shape.v_head_dim);
    CHECK(cudaMemcpy(r.data(), y, r.size() * 2, cudaMemcpyDeviceToHost));
    return r;
  }
};

// Positions that are in the cache; the same (page, row) gets the same value whoever has it.
template <class T>
__global__ void fill_rows(uint8_t* pool, int64_t page_bytes, int64_t v_at, int64_t layer_bytes, int layers, int kv_heads, int head_dim,
                          int v_head_dim, const int* starts, const int* firsts, const int* ids, const int* kv_starts,
                          const int* token_starts, uint64_t seed) {
  const int s = blockIdx.x, length = kv_starts[s] + token_starts[s + 1] - token_starts[s];
  for (int p = starts[s] + blockIdx.y; p < starts[s + 1]; p += gridDim.y) {
    const int position0 = (firsts[s] + p - starts[s]) * 64, rows = min(64, length - position0);
    uint8_t* page = pool + ids[p] * page_bytes;
    for (int lh = 0; lh < layers * kv_heads; lh++) {
      uint8_t* layer = page + lh / kv_heads * layer_bytes;
      T* k = reinterpret_cast<T*>(layer) + int64_t(lh % kv_heads) * 64 * head_dim;
      T* v = reinterpret_cast<T*>(layer + v_at) + int64_t(lh % kv_heads) * 64 * v_head_dim;
      const uint64_t at = (seed << 44) + (uint64_t(ids[p]) * 4096 + lh) * 65536;
      for (int i = threadIdx.x; i < rows * head_dim; i += blockDim.x) k[i] = T(random_value(at * 2 + i));
      for (int i = threadIdx.x; i < rows * v_head_dim; i += blockDim.x) v[i] = T(random_value(at * 2 + 65536 + i));
    }
  }
}
void World::fill_pages(uint64_t seed) {
  const dim3 grid(unsigned(sequences.size()), 256);
  const auto go = [&](auto zero) {
    using T = decltype(zero);
    fill_rows<T><<<grid, 256>>>(pool, page_bytes, v_at, layer_bytes, layers, shape.kv_heads, shape.head_dim, shape.v_head_dim, page_starts,
                                page_firsts, page_ids, kv_starts, token_starts, seed);
  };
  if (shape.kv == BF16) go(__nv_bfloat16());
  else if (shape.kv == F16) go(__half());
  else go(float());
}

// One thread block a token and head, double precision, no tricks.
template <class T>
__global__ void plain(const __nv_bfloat16* q, float* y, const uint8_t* pool, int64_t page_bytes, int64_t v_at, int heads,
                      int kv_heads, int D, int DV, float scale, float softcap, int window, int causal, const float* sinks,
                      const int* token_starts, const int* kv_starts, const int* starts, const int* firsts, const int* ids,
                      double* scratch, int most) {
  const int token = blockIdx.x, head = blockIdx.y, kvh = head / (heads / kv_heads);
  int s = 0;
  while (token_starts[s + 1] <= token) s++;
  const int n = token_starts[s + 1] - token_starts[s], position = kv_starts[s] + token - token_starts[s];
  const int last = causal ? position : kv_starts[s] + n - 1, first = window > 0 ? max(0, position - window + 1) : 0;
  double* w = scratch + (int64_t(blockIdx.y) * gridDim.x + blockIdx.x) * most;
  const auto at = [&](int p) { return pool + ids[starts[s] + p / 64 - firsts[s]] * page_bytes; };
  for (int p = first + threadIdx.x; p <= last; p += blockDim.x) {
    const T* k = reinterpret_cast<const T*>(at(p)) + (int64_t(kvh) * 64 + p % 64) * D;
    double x = 0;
    for (int i = 0; i < D; i++) x += double(float(q[(int64_t(token) * heads + head) * D + i])) * double(float(k[i]));
    x *= scale;
    w[p - first] = softcap > 0 ? softcap * tanh(x / softcap) : x;
  }
  __syncthreads();
  __shared__ double m, l;
  if (threadIdx.x == 0) {
    m = sinks ? sinks[head] : -1e300;
    for (int p = first; p <= last; p++) m = fmax(m, w[p - first]);
    l = sinks ? exp(sinks[head] - m) : 0;
    for (int p = first; p <= last; p++) l += w[p - first] = exp(w[p - first] - m);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < DV; i += blockDim.x) {
    double o = 0;
    for (int p = first; p <= last; p++)
      o += w[p - first] * double(float((reinterpret_cast<const T*>(at(p) + v_at) + (int64_t(kvh) * 64 + p % 64) * DV)[i]));
    y[(int64_t(token) * heads + head) * DV + i] = float(o / l);
  }
}

int sms = 0;

struct Launcher {
  cudaStream_t stream = nullptr;
  void go(const void* kernel, dim3 grid, int block, int bytes, std::vector<void*> args) {
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = bytes, config.stream = stream;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute, config.numAttrs = 1;
    CHECK(cudaLaunchKernelExC(&config, kernel, args.data()));
  }
};

struct Kernels {
  const void *decode, *boxes, *prefill, *exact;
  int decode_bytes, blocks, boxes_bytes, boxes_blocks, prefill_bytes, exact_bytes, prefill_rows, exact_rows, prefill_threads, exact_threads;
};
template <int D, int SLOTS, int BLOCKS, int BSLOTS, int BBLOCKS, int WARPS, int MT, int XWARPS, int XMT>
Kernels sized(const void* d, const void* b, const void* p, const void* x) {
  using A = mr::attn::PrefillShared<D, WARPS, MT, false>;
  using B = mr::attn::PrefillShared<D, XWARPS, XMT, true>;
  return {d, b, p, x, mr::attn::DecodeShared<D, SLOTS>::bytes, BLOCKS, mr::attn::DecodeShared<D, BSLOTS>::bytes, BBLOCKS, A::bytes, B::bytes, A::rows, B::rows, WARPS * 32, XWARPS * 32};
}
Kernels kernels(Kv kv, int D) {
#define NAMES(name, D, boxes) (void*)mr_attention_decode_##name##_##D, boxes, (void*)mr_attention_prefill_##name##_##D, (void*)mr_attention_prefill_exact_##name##_##D
#define PICK(name)                                                                                                          \
  if (D == 64) return sized<64, 3, 4, 3, 4, 4, 2, 8, 1>(NAMES(name, 64, (void*)mr_attention_decode_boxes_##name##_64));       \
  if (D == 96) return sized<96, 2, 3, 2, 3, 4, 2, 8, 1>(NAMES(name, 96, nullptr));                                            \
  if (D == 128) return sized<128, 3, 2, 3, 2, 4, 2, 8, 1>(NAMES(name, 128, (void*)mr_attention_decode_boxes_##name##_128));   \
  return sized<256, 2, 1, 3, 1, 8, 1, 4, 1>(NAMES(name, 256, (void*)mr_attention_decode_boxes_##name##_256));
  if (kv == BF16) { PICK(bf16) }
  PICK(f16)
}

struct Options {
  bool exact = false;
  int want = 0;  // blocks that the plan is told of; 0: the true number
  bool plan = true;
  int layer = 0;
  bool prefill = true, decode = true, boxes = true;
};

// A layer's keys or values as [pages][kv heads · 64][D], in boxes of 64 × 64.
mr::attn::TensorMap tensor_map(const World& w, const uint8_t* at) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                              const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                              CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* found;
    cudaDriverEntryPointQueryResult result;
    CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result));
    return reinterpret_cast<Encode>(found);
  }();
  alignas(64) CUtensorMap map;
  const Shape& s = w.shape;
  const cuuint64_t dims[] = {cuuint64_t(s.head_dim), cuuint64_t(s.kv_heads) * 64, 1 << 24}, strides[] = {cuuint64_t(s.head_dim) * 2, cuuint64_t(w.page_bytes)};
  const cuuint32_t box[] = {64, 64, 1}, ones[] = {1, 1, 1};
  const CUresult e = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 3, const_cast<uint8_t*>(at), dims, strides, box, ones,
                            CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                            CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (e != CUDA_SUCCESS) std::fprintf(stderr, "cuTensorMapEncodeTiled: %d\n", int(e)), std::exit(2);
  mr::attn::TensorMap r;
  std::memcpy(&r, &map, sizeof r);
  return r;
}

void attend(const World& w, Launcher& to, const Options& o) {
  const Shape& s = w.shape;
  const Kernels k = kernels(s.kv, s.head_dim);
  const bool boxes = o.boxes && k.boxes;
  int blocks = (boxes ? k.boxes_blocks : k.blocks) * sms, want = o.want > 0 ? o.want : blocks;
  int rows = o.exact ? k.exact_rows : k.prefill_rows, window = s.window, causal = s.causal, room = w.room;
  int heads = s.heads, kv_heads = s.kv_heads;
  int64_t tiles_at = w.tiles_at, page_bytes = w.page_bytes;
  if (o.plan) {
    const int* p = w.plan;
    to.go((void*)mr_attention_plan, 1, mr::attn::plan_threads, 0,
          {&p, &tiles_at, &heads, &kv_heads, &window, &causal, &rows, &want, &room, (void*)&w.step, (void*)&w.token_starts,
           (void*)&w.kv_starts, (void*)&w.page_starts, (void*)&w.page_firsts, (void*)&w.page_ids});
  }
  const uint8_t *keys = w.pool + o.layer * w.layer_bytes, *values = keys + w.v_at;
  float scale = 1 / std::sqrt(float(s.head_dim)), softcap = s.softcap;
  std::vector<void*> args = {(void*)&w.q, (void*)&w.y, &keys, &values, &page_bytes, (void*)&w.plan, &tiles_at,
                                   (void*)&w.page_ids, (void*)&w.partial, (void*)&w.arrived, (void*)&w.sinks, &heads, &kv_heads,
                                   &scale, &softcap, &window, &causal};
  if (o.decode && boxes) {
    mr::attn::TensorMap maps[2] = {tensor_map(w, keys), tensor_map(w, values)};
    args.push_back(&maps[0]), args.push_back(&maps[1]);
    to.go(k.boxes, blocks, mr::attn::decode_threads, k.boxes_bytes, args);
    args.resize(args.size() - 2);
  } else if (o.decode) {
    to.go(k.decode, blocks, mr::attn::decode_threads, k.decode_bytes, args);
  }
  if (o.prefill)
    to.go(o.exact ? k.exact : k.prefill, dim3(w.max_tiles, kv_heads), o.exact ? k.exact_threads : k.prefill_threads,
          o.exact ? k.exact_bytes : k.prefill_bytes, args);
}

void attend_any(const World& w, Launcher& to) {
  const Shape& s = w.shape;
  int window = s.window, causal = s.causal, heads = s.heads, kv_heads = s.kv_heads, D = s.head_dim, DV = s.v_head_dim;
  int64_t page_bytes = w.page_bytes;
  const uint8_t *keys = w.pool, *values = w.pool + w.v_at;
  float scale = 1 / std::sqrt(float(s.head_dim)), softcap = s.softcap;
  const void* kernel = s.kv == BF16 ? (void*)mr_attention_any_bf16 : s.kv == F16 ? (void*)mr_attention_any_f16 : (void*)mr_attention_any_f32;
  to.go(kernel, dim3(w.tokens, heads), mr::attn::any_threads, mr::attn::any_shared_bytes(D),
        {(void*)&w.q, (void*)&w.y, &keys, &values, &page_bytes, (void*)&w.page_ids, (void*)&w.sinks, &heads, &kv_heads, &scale,
         &softcap, &window, &causal, &D, &DV, (void*)&w.step, (void*)&w.token_sequence, (void*)&w.token_starts, (void*)&w.kv_starts, (void*)&w.page_starts,
         (void*)&w.page_firsts});
}

float value(uint16_t bits) {
  const uint32_t x = uint32_t(bits) << 16;
  float f;
  std::memcpy(&f, &x, 4);
  return f;
}

int failures = 0, checks = 0;
void report(bool good, const std::string& what) {
  checks++;
  if (good) return;
  failures++;
  std::printf("{\"failed\": \"%s\"}\n", what.c_str());
}

std::string describe(const Shape& s, const std::vector<Sequence>& q) {
  char text[256];
  std::snprintf(text, sizeof text, "%d/%d heads of %d/%d %s%s%s%s%s, %zu sequences", s.heads, s.kv_heads, s.head_dim, s.v_head_dim,
                kv_names[s.kv], s.window ? " window" : "", s.softcap ? " softcap" : "", s.sinks ? " sinks" : "",
                s.causal ? "" : " both ways", q.size());
  std::string r = text;
  for (size_t i = 0; i < std::min<size_t>(q.size(), 6); i++) r += " " + std::to_string(q[i].kv_start) + "+" + std::to_string(q[i].n);
  return r;
}

std::vector<float> truth(const World& w) {
  const Shape& s = w.shape;
  int most = 0;
  for (const Sequence& x : w.sequences) most = std::max(most, x.kv_start + x.n);
  float* y = device<float>(size_t(w.tokens) * s.heads * s.v_head_dim);
  double* scratch = device<double>(size_t(w.tokens) * s.heads * most);
  const auto go = [&](auto zero) {
    using T = decltype(zero);
    plain<T><<<dim3(w.tokens, s.heads), 128>>>(w.q, y, w.pool, w.page_bytes, w.v_at, s.heads, s.kv_heads, s.head_dim, s.v_head_dim,
                                               1 / std::sqrt(float(s.head_dim)), s.softcap, s.window, s.causal, w.sinks, w.token_starts,
                                               w.kv_starts, w.page_starts, w.page_firsts, w.page_ids, scratch, most);
  };
  if (s.kv == BF16) go(__nv_bfloat16());
  else if (s.kv == F16) go(__half());
  else go(float());
  CHECK(cudaGetLastError());
  std::vector<float> r(size_t(w.tokens) * s.heads * s.v_head_dim);
  CHECK(cudaMemcpy(r.data(), y, r.size() * 4, cudaMemcpyDeviceToHost));
  CHECK(cudaFree(y));
  CHECK(cudaFree(scratch));
  return r;
}

double worst_error[3] = {0, 0, 0};
void compare(const World& w, const std::vector<float>& want, int kind, const std::string& what) {
  const std::vector<uint16_t> got = w.output();
  double squares = 0, off = 0, worst = 0;
  for (size_t i = 0; i < got.size(); i++) {
    const double d = std::fabs(double(value(got[i])) - want[i]);
    if (!(d <= worst)) worst = d;
    off += d * d, squares += double(want[i]) * want[i];
  }
  const double relative = std::sqrt(off / squares), rms = std::sqrt(squares / got.size());
  worst_error[kind] = std::max(worst_error[kind], relative);
  // bf16 out: 2^-9 / √3 · … of each value; weights in bf16 (tensor cores): about as much again
  const bool good = relative < (kind == 2 ? 2e-3 : 4e-3) && worst < 0.1 * rms + 0.02;
  char text[160];
  std::snprintf(text, sizeof text, ": relative error %.3g, worst %.3g of rms %.3g", relative, worst, rms);
  report(good, what + text);
}

void poison(const World& w) { CHECK(cudaMemset(w.y, 0xff, size_t(w.tokens) * w.shape.heads * w.shape.v_head_dim * 2)); }

void check_case(const Shape& s, const std::vector<Sequence>& q, uint64_t seed) {
  World w(s, q, 1, seed);
  const std::vector<float> want = truth(w);
  Launcher to;
  const std::string name = describe(s, q);
  const bool tensor = s.kv != F32 && s.head_dim == s.v_head_dim &&
                      (s.head_dim == 64 || s.head_dim == 96 || s.head_dim == 128 || s.head_dim == 256);
  if (tensor) {
    for (int exact = 0; exact < 2; exact++) {
      std::vector<uint16_t> first;
      for (int wants : {0, 1, 100000, -1}) {
        poison(w);
        Options o = {exact == 1, std::max(wants, 0)};
        o.boxes = wants >= 0;
        attend(w, to, o);
        CHECK(cudaDeviceSynchronize());
        const std::string what = (exact ? "exact, " : "") + name + " want " + std::to_string(wants);
        compare(w, want, exact, what);
        const std::vector<uint16_t> got = w.output();
        if (first.empty()) first = got;
        else report(first == got, what + ": other bits than with another cut");
      }
    }
  }
  poison(w);
  attend_any(w, to);
  CHECK(cudaDeviceSynchronize());
  compare(w, want, 2, "any, " + name);
}

void check_combinations(bool small) {
  uint64_t seed = 1;
  const std::vector<std::vector<Sequence>> mixes =
      small ? std::vector<std::vector<Sequence>>{{{0, 5}, {0, 1}, {70, 40}, {150, 1}}, {{1300, 1}}}
            : std::vector<std::vector<Sequence>>{{{0, 5}, {0, 1}, {0, 33}},
                                                 {{63, 1}, {64, 1}, {65, 2}, {2500, 1}, {0, 130}, {200, 77}, {1000, 3}},
                                                 {{5000, 1}},
                                                 {{1, 300}, {17, 1}}};
  for (int D : {64, 96, 128, 256})
    for (Kv kv : {BF16, F16})
      for (const auto& [heads, kv_heads] : std::vector<std::pair<int, int>>{{4, 4}, {8, 2}, {9, 3}, {5, 1}, {24, 1}}) {
        if (small && (heads == 9 || heads == 4)) continue;
        for (int variant = 0; variant < (small ? 2 : 7); variant++) {
          Shape s = {heads, kv_heads, D, D, kv, 0, 0, false, true};
          if (variant == 1) s.window = 100, s.sinks = true;
          if (variant == 2) s.softcap = 5;
          if (variant == 3) s.sinks = true;
          if (variant == 4) s.causal = false;
          if (variant == 5) s.causal = false, s.window = 20;
          if (variant == 6) s.window = 1024, s.softcap = 30;
          if (!small && kv == F16 && variant > 1) continue;
          for (const auto& mix : mixes) check_case(s, mix, seed++);
        }
      }
  for (const auto& [D, DV] : std::vector<std::pair<int, int>>{{8, 8}, {32, 32}, {80, 80}, {192, 128}, {576, 512}})
    for (Kv kv : {BF16, F16, F32}) check_case({6, 2, D, DV, kv, 0, 0, D == 80, true}, mixes[1], seed++);
  std::printf("{\"name\": \"against a plain kernel\", \"checks\": %d, \"failures\": %d, \"worst_relative_error\": {\"default\": %.3g, \"exact\": %.3g, \"any\": %.3g}}\n",
              checks, failures, worst_error[0], worst_error[1], worst_error[2]);
}

// The rows of token `from` on, `count` of them.
std::vector<uint16_t> rows(const World& w, const std::vector<uint16_t>& y, int from, int count) {
  const size_t width = size_t(w.shape.heads) * w.shape.v_head_dim;
  return {y.begin() + from * width, y.begin() + (from + count) * width};
}

// Bits: a piece of a prompt as the whole; a token alone as in a batch; exact: a token alone as in its prompt.
void check_bits(bool small) {
  const int before = failures, n = small ? 300 : 2700, cut = small ? 130 : 1111;
  for (int D : {64, 128, 256})
    for (int window : {0, 200}) {
      const Shape s = {8, 2, D, D, BF16, window, 0, false, true};
      Launcher to;
      std::vector<uint16_t> whole[2];
      std::vector<__nv_bfloat16> h_q(size_t(n) * 8 * D);
      for (int exact = 0; exact < 2; exact++) {
        World w(s, {{0, n}}, 1, 7);
        CHECK(cudaMemcpy(h_q.data(), w.q, h_q.size() * 2, cudaMemcpyDeviceToHost));
        attend(w, to, {exact == 1});
        whole[exact] = w.output();
      }
      const auto with_q = [&](World& w, const std::vector<int>& tokens) {  // the prompt's queries for these tokens
        for (size_t i = 0; i < tokens.size(); i++)
          CHECK(cudaMemcpy(w.q + i * 8 * D, h_q.data() + size_t(tokens[i]) * 8 * D, 8 * D * 2, cudaMemcpyHostToDevice));
      };
      const std::string name = "D " + std::to_string(D) + " window " + std::to_string(window);
      for (int exact = 0; exact < 2; exact++) {
        // the same pages in the same places: shared pages, tables of one prompt
        Shape all = s;
        all.window = 0;
        World w(all, {{cut, n - cut}, {n - 1, 1}, {cut, 70}}, 1, 7, true);
        w.shape.window = window;
        std::vector<int> tokens;
        for (int i = cut; i < n; i++) tokens.push_back(i);
        tokens.push_back(n - 1);
        for (int i = cut; i < cut + 70; i++) tokens.push_back(i);
        with_q(w, tokens);
        attend(w, to, {exact == 1});
        const auto y = w.output();
        World ref(s, {{0, n}}, 1, 7);
        report(rows(w, y, 0, n - cut) == rows(ref, whole[exact], cut, n - cut), name + ": a piece of a prompt, exact " + std::to_string(exact));
        report(rows(w, y, n - cut + 1, 70) == rows(ref, whole[exact], cut, 70), name + ": a piece beside others, exact " + std::to_string(exact));
        if (exact) report(rows(w, y, n - cut, 1) == rows(ref, whole[exact], n - 1, 1), name + ": a token alone");
      }
      // tokens alone and in a batch
      std::vector<Sequence> many;
      std::vector<int> tokens;
      for (int i = 0; i < 40; i++) tokens.push_back((n - 1) * (i + 1) / 40), many.push_back({tokens.back(), 1});
      Shape all = s;
      all.window = 0;
      World w(all, many, 1, 7, true);
      w.shape.window = window;
      with_q(w, tokens);
      attend(w, to, {true});
      const auto y = w.output();
      World ref(s, {{0, n}}, 1, 7);
      for (size_t i = 0; i < tokens.size(); i++)
        report(rows(w, y, int(i), 1) == rows(ref, whole[1], tokens[i], 1), name + ": token " + std::to_string(tokens[i]) + " alone and in its prompt");
    }
  std::printf("{\"name\": \"equal bits\", \"failures\": %d}\n", failures - before);
}

// ---- speed

__global__ void read_all(const uint4* x, int64_t n, uint32_t* out) {
  uint32_t sum = 0;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  for (; i + 7 * stride < n; i += 8 * stride) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = __ldcs(x + i + j * stride);
#pragma unroll
    for (int j = 0; j < 8; j++) sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (sum == 0x12345) *out = sum;
}
__global__ void __launch_bounds__(256) multiply_all(float* out, uint32_t seed) {
  float c[8][4] = {};
  uint32_t a[4] = {seed ^ threadIdx.x, seed + threadIdx.x, seed * 3, seed}, b[2] = {seed * 7 + threadIdx.x, seed};
  for (int i = 0; i < 4096; i++)
#pragma unroll
    for (int j = 0; j < 8; j++) mr::attn::multiply<__nv_bfloat16>(c[j], a, b[0], b[1]);
  float sum = 0;
  for (int j = 0; j < 8; j++) sum += c[j][0] + c[j][1] + c[j][2] + c[j][3];
  if (sum == 12345) *out = sum;
}

template <class F>
double seconds(F&& f, int rounds) {
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  f(stream);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t e[2];
  for (auto& x : e) CHECK(cudaEventCreate(&x));
  std::vector<float> times;
  for (int i = 0; i < rounds + 2; i++) {
    CHECK(cudaEventRecord(e[0], stream));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaEventRecord(e[1], stream));
    CHECK(cudaEventSynchronize(e[1]));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, e[0], e[1]));
    if (i >= 2) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  CHECK(cudaGraphExecDestroy(exec));
  CHECK(cudaGraphDestroy(graph));
  CHECK(cudaStreamDestroy(stream));
  return times[times.size() / 2] / 1e3;
}

double read_roof, multiply_roof;
void roofs() {
  const int64_t bytes = int64_t(4) << 30;
  uint8_t* x = device<uint8_t>(bytes);
  fill_random<<<2048, 256>>>(reinterpret_cast<float*>(x), bytes / 4, 3, 1.0f);
  uint32_t* out = device<uint32_t>(1);
  read_roof = 0;
  for (int blocks : {1, 2, 4, 8})
    read_roof = std::max(read_roof, bytes / seconds([&](cudaStream_t s) { read_all<<<sms * blocks, 512, 0, s>>>((uint4*)x, bytes / 16, out); }, 5));
  multiply_roof = 0;
  for (int blocks : {1, 2, 4})
    multiply_roof = std::max(multiply_roof, sms * blocks * 8 * 4096 * 8 * 4096.0 /
                                                seconds([&](cudaStream_t s) { multiply_all<<<sms * blocks, 256, 0, s>>>((float*)out, 0x3f803f81); }, 5));
  CHECK(cudaFree(x));
  CHECK(cudaFree(out));
  std::printf("{\"name\": \"roofs\", \"read_gbs\": %.0f, \"mma_sync_tflops\": %.0f}\n", read_roof / 1e9, multiply_roof / 1e12);
}

void time_decode(const char* name, const Shape& s, const std::vector<Sequence>& q, const std::vector<int>& wants, bool together = false) {
  double positions = 0;
  for (const Sequence& x : q) positions += std::min(x.kv_start + x.n, s.window > 0 ? s.window : 1 << 30);
  const double layer_bytes = positions * s.kv_heads * s.head_dim * 2 * 2;
  // At least 600 MB in all, so that nothing comes from the second-level cache
  const int layers = std::max(1, std::min(64, int(6e8 / layer_bytes) + 1)), launches = std::max(layers, 16);
  World w(s, q, layers, 5, false, together);
  for (int want : wants) {
    Launcher to;
    to.stream = nullptr;
    attend(w, to, {false, want});
    CHECK(cudaDeviceSynchronize());
    int counts[2];
    CHECK(cudaMemcpy(counts, w.plan, 8, cudaMemcpyDeviceToHost));
    const double time = seconds(
        [&](cudaStream_t stream) {
          Launcher l;
          l.stream = stream;
          for (int i = 0; i < launches; i++) attend(w, l, {false, want, false, i % layers, false, true});
        },
        9) / launches;
    const double copies = seconds(
        [&](cudaStream_t stream) {
          Launcher l;
          l.stream = stream;
          for (int i = 0; i < launches; i++) attend(w, l, {false, want, false, i % layers, false, true, false});
        },
        9) / launches;
    const double plan = seconds(
        [&](cudaStream_t stream) {
          Launcher l;
          l.stream = stream;
          for (int i = 0; i < 16; i++) attend(w, l, {false, want, true, 0, false, false});
        },
        5) / 16;
    std::printf("{\"name\": \"decode %s\", \"want\": %d, \"runs\": %d, \"us\": %.2f, \"gbs\": %.0f, \"of_roof\": %.3f, \"without_boxes_us\": %.2f, \"plan_us\": %.2f}\n", name, want,
                counts[0] * s.kv_heads, time * 1e6, layer_bytes / time / 1e9, layer_bytes / time / read_roof, copies * 1e6, plan * 1e6);
  }
}

void time_prefill(const char* name, const Shape& s, const std::vector<Sequence>& q) {
  World w(s, q, 1, 6);
  double pairs = 0;
  for (const Sequence& x : q)
    for (int i = 0; i < x.n; i++) pairs += std::min(s.causal ? x.kv_start + i + 1 : x.kv_start + x.n, s.window > 0 ? s.window : 1 << 30);
  const double flops = pairs * s.heads * 4.0 * s.head_dim;
  for (int exact = 0; exact < 2; exact++) {
    Launcher to;
    attend(w, to, {exact == 1});
    CHECK(cudaDeviceSynchronize());
    const double time = seconds(
        [&](cudaStream_t stream) {
          Launcher l;
          l.stream = stream;
          for (int i = 0; i < 2; i++) attend(w, l, {exact == 1, 0, false, 0, true, false});
        },
        5) / 2;
    std::printf("{\"name\": \"prefill %s\", \"exact\": %d, \"us\": %.1f, \"tflops\": %.0f, \"of_mma_sync\": %.3f}\n", name, exact, time * 1e6,
                flops / time / 1e12, flops / time / multiply_roof);
  }
}

// A few launches, for a profiler.
void profile() {
  const Shape llama8 = {32, 8, 128, 128, BF16, 0, 0, false, true};
  for (const auto& q : {std::vector<Sequence>(1, {2047, 1}), std::vector<Sequence>(1, {32767, 1}), std::vector<Sequence>(64, {999, 1})}) {
    World w(llama8, q, 2, 5, false, false);
    Launcher to;
    attend(w, to, {false, 0, true, 0, false, true});
    attend(w, to, {false, 0, false, 1, false, true});
    CHECK(cudaDeviceSynchronize());
  }
  World w(llama8, {{0, 4096}});
  Launcher to;
  attend(w, to, {false, 0, true, 0, true, false});
  CHECK(cudaDeviceSynchronize());
}

void speed() {
  roofs();
  const Shape llama8 = {32, 8, 128, 128, BF16, 0, 0, false, true}, llama1 = {32, 8, 64, 64, BF16, 0, 0, false, true};
  const Shape gemma1 = {4, 1, 256, 256, BF16, 0, 0, false, true};
  Shape gemma_local = gemma1;
  gemma_local.window = 512;
  const auto even = [](int count, int length) { return std::vector<Sequence>(count, Sequence{length - 1, 1}); };
  for (int length : {128, 384, 1024, 2048, 4096, 8192, 16384, 32768, 131072})
    time_decode(("8b 1 x " + std::to_string(length)).c_str(), llama8, even(1, length), {0});
  for (int count : {8, 32, 64}) time_decode(("8b " + std::to_string(count) + " x 1000").c_str(), llama8, even(count, 1000), {0});
  time_decode("8b 8 x 32768", llama8, even(8, 32768), {0});
  std::vector<Sequence> mixed;
  std::mt19937 random(3);
  for (int i = 0; i < 64; i++) mixed.push_back({128 << (random() % 9), 1});
  time_decode("8b 64 mixed 128 to 32k", llama8, mixed, {0});
  for (int length : {384, 32768}) time_decode(("1b 1 x " + std::to_string(length)).c_str(), llama1, even(1, length), {0});
  time_decode("1b 64 x 1000", llama1, even(64, 1000), {0});
  time_decode("gemma 1b 1 x 8192", gemma1, even(1, 8192), {0});
  time_decode("gemma 1b local 1 x 8192", gemma_local, even(1, 8192), {0});
  time_prefill("8b 8192", llama8, {{0, 8192}});
  time_prefill("8b 128", llama8, {{0, 128}});
  time_prefill("8b 2048 after 30720", llama8, {{30720, 2048}});
  time_prefill("8b 16 x 512", llama8, std::vector<Sequence>(16, {0, 512}));
  time_prefill("1b 8192", llama1, {{0, 8192}});
  time_prefill("gemma 1b 8192", gemma1, {{0, 8192}});
  time_prefill("gemma 1b local 8192", gemma_local, {{0, 8192}});
}

}  // namespace

int main(int argc, char** argv) {
  bool small = false, check = false, fast = false, profiled = false;
  for (int i = 1; i < argc; i++) small |= !std::strcmp(argv[i], "small"), check |= !std::strcmp(argv[i], "check"), fast |= !std::strcmp(argv[i], "speed"), profiled |= !std::strcmp(argv[i], "profile");
  cudaDeviceProp properties;
  CHECK(cudaGetDeviceProperties(&properties, 0));
  sms = properties.multiProcessorCount;
  std::printf("{\"device\": \"%s\", \"sms\": %d}\n", properties.name, sms);
  if (check) check_combinations(small), check_bits(small);
  if (fast) speed();
  if (profiled) profile();
  return failures > 0;
}
