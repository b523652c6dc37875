// Owns: a program that checks and times the matrix kernels alone, one binary an instruction set.
//
//   scripts/bench-linear.sh [ISA]            builds build/native/bench-linear-ISA
//   bench-linear-avx2 check [TYPE|all] [quick]   every type against plain scalar code; exit status 1 if anything is off;
//                                                quick: fewer shapes, for tiles or processors in plain loops
//   bench-linear-avx2 speed [TYPE|all] [THREADS] [COLS] [rounded]   GB/s at 1–16 tokens, GOP/s at 4–512
//   bench-linear-avx2 decode [TYPE|all] [THREADS] [COLS]   GB/s at 1 token, beside the machine's own at that moment
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>
#include "linear_layout.h"
#include "simd.h"
#include "tile.h"

using namespace mr;

namespace {

struct Format {
  const char* name;
  Storage type;
  int values, bytes;
};
constexpr Format formats[] = {
    {"F32", Storage::F32, 1, 4},      {"F16", Storage::F16, 1, 2},      {"BF16", Storage::BF16, 1, 2},
    {"Q4_0", Storage::Q4_0, 32, 18},  {"Q4_1", Storage::Q4_1, 32, 20},  {"Q5_0", Storage::Q5_0, 32, 22},
    {"Q5_1", Storage::Q5_1, 32, 24},  {"Q8_0", Storage::Q8_0, 32, 34},  {"Q4_K", Storage::Q4_K, 256, 144},
    {"Q5_K", Storage::Q5_K, 256, 176}, {"Q6_K", Storage::Q6_K, 256, 210},
};

int failures = 0;
void expect(bool ok, const std::string& what) {
  if (ok) return;
  if (++failures <= 30) std::printf("FAILED %s\n", what.c_str());
}

template <class T>
struct Aligned {
  explicit Aligned(size_t n) : size(n), data(static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 127) / 64 * 64))) {}
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  size_t size;
  T* data;
};

void put_half(uint8_t* p, float x) {
  const f16 h = from_float<f16>(x);
  std::memcpy(p, &h, 2);
}
float half_at(const uint8_t* p) {
  f16 h;
  std::memcpy(&h, p, 2);
  return to_float(h);
}

// Random blocks of one row after another, with scales of a real model's size.
std::vector<uint8_t> random_rows(const Format& f, int rows, int cols, uint32_t seed) {
  std::mt19937 rng(seed);
  std::uniform_real_distribution<float> unit(-1, 1);
  std::vector<uint8_t> out(size_t(rows) * (cols / f.values) * f.bytes);
  for (size_t at = 0; at < out.size(); at += f.bytes) {
    uint8_t* b = &out[at];
    for (int i = 0; i < f.bytes; i++) b[i] = uint8_t(rng());
    const float d = unit(rng) * 0.02f, m = unit(rng) * 0.1f;
    switch (f.type) {
      case Storage::F32: std::memcpy(b, &m, 4); break;
      case Storage::F16: put_half(b, m); break;
      case Storage::BF16: {
        const bf16 h = from_float<bf16>(m);
        std::memcpy(b, &h, 2);
        break;
      }
      case Storage::Q6_K: put_half(b + 208, d / 64); break;
      case Storage::Q4_K:
      case Storage::Q5_K: put_half(b, d / 32), put_half(b + 2, m / 32); break;
      default:
        put_half(b, d);
        if (f.type == Storage::Q4_1 || f.type == Storage::Q5_1) put_half(b + 2, m);
    }
  }
  return out;
}

// The formats' own definitions, value by value.
float value(const Format& f, const uint8_t* row, int k) {
  const uint8_t* b = row + k / f.values * f.bytes;
  const int i = k % f.values;
  const auto nibbles = [&](const uint8_t* q) { return i < 16 ? q[i] & 15 : q[i - 16] >> 4; };
  const auto fifth = [&](const uint8_t* h) { return ((h[i / 8] >> i % 8) & 1) << 4; };
  switch (f.type) {
    case Storage::F32: {
      float x;
      std::memcpy(&x, b, 4);
      return x;
    }
    case Storage::F16: return half_at(b);
    case Storage::BF16: {
      bf16 h;
      std::memcpy(&h, b, 2);
      return to_float(h);
    }
    case Storage::Q4_0: return half_at(b) * float(nibbles(b + 2) - 8);
    case Storage::Q4_1: return half_at(b) * float(nibbles(b + 4)) + half_at(b + 2);
    case Storage::Q5_0: return half_at(b) * float((nibbles(b + 6) | fifth(b + 2)) - 16);
    case Storage::Q5_1: return half_at(b) * float(nibbles(b + 8) | fifth(b + 4)) + half_at(b + 2);
    case Storage::Q8_0: return half_at(b) * float(int8_t(b[2 + i]));
    case Storage::Q4_K:
    case Storage::Q5_K: {
      const int s = i / 32, l = i % 32;
      const uint8_t* c = b + 4;
      const int scale = s < 4 ? c[s] & 63 : (c[s + 4] & 15) | (c[s - 4] >> 6) << 4;
      const int min = s < 4 ? c[s + 4] & 63 : c[s + 4] >> 4 | (c[s] >> 6) << 4;
      const bool five = f.type == Storage::Q5_K;
      int q = (b[(five ? 48 : 16) + 32 * (s / 2) + l] >> 4 * (s % 2)) & 15;
      if (five) q |= ((b[16 + l] >> s) & 1) << 4;
      return half_at(b) * float(scale) * float(q) - half_at(b + 2) * float(min);
    }
    default: {
      const int h = i / 128, in = i % 128, quarter = in / 32, l = in % 32;
      const int low = (b[64 * h + 32 * (quarter % 2) + l] >> 4 * (quarter / 2)) & 15;
      const int high = (b[128 + 32 * h + l] >> 2 * quarter) & 3;
      return half_at(b + 208) * float(int8_t(b[192 + i / 16])) * float((low | high << 4) - 32);
    }
  }
}

struct Matrix {
  Matrix(const Format& f, int rows, int cols, const std::vector<uint8_t>& file)
      : groups((rows + linear_row_group() - 1) / linear_row_group()),
        bytes(size_t(groups) * linear_group_bytes(f.type, cols)),
        w{bytes.data, f.type, rows, cols, linear_act(f.type, true)} {
    const int64_t row_bytes = int64_t(cols) / f.values * f.bytes;
    linear_pack(f.type, file.data(), row_bytes, 0, nullptr, rows, cols, 0, groups, bytes.data);
  }
  int groups;
  Aligned<uint8_t> bytes;
  Weight w;
};

std::vector<float> random_input(int tokens, int cols, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(size_t(tokens) * cols);
  for (float& v : x) v = normal(rng) * (rng() % 64 == 0 ? 12.0f : 1.0f);
  return x;
}

// What the kernels multiply with: x itself, or int8 with a scale for 32 values.
std::vector<float> rounded_input(Storage type, std::vector<float> x) {
  if (linear_act(type, true) == Act::f32) return x;
  for (size_t b = 0; b < x.size(); b += 32) {
    float top = 0;
    for (int i = 0; i < 32; i++) top = std::max(top, std::fabs(x[b + i]));
    for (int i = 0; i < 32; i++) x[b + i] = top == 0 ? 0 : std::nearbyint(x[b + i] * (127 / top)) * (top / 127);
  }
  return x;
}

void check_type(const Format& f, int rows, int cols, int tokens) {
  if (!linear_supports(f.type, cols)) return;
  const std::string name = std::string(f.name) + " " + std::to_string(rows) + "x" + std::to_string(cols) + " n=" +
                           std::to_string(tokens);
  const auto file = random_rows(f, rows, cols, uint32_t(rows * 31 + cols));
  const int64_t row_bytes = int64_t(cols) / f.values * f.bytes;
  const Matrix m(f, rows, cols, file);
  std::vector<float> dense(size_t(rows) * cols), row(static_cast<size_t>(cols));
  for (int r = 0; r < rows; r++) {
    linear_unpack_row(m.w, r, row.data());
    for (int k = 0; k < cols; k++) {
      dense[size_t(r) * cols + k] = value(f, &file[r * row_bytes], k);
      expect(std::memcmp(&dense[size_t(r) * cols + k], &row[k], 4) == 0, name + " unpack");
    }
  }
  expect(int64_t(m.bytes.size) <= int64_t(m.groups) * linear_row_group() * row_bytes * 103 / 100, name + " packed size");

  const auto x = random_input(tokens, cols, 7), xq = rounded_input(f.type, x);
  const Act kind = linear_act(f.type, true);
  Aligned<uint8_t> act(size_t(linear_act_bytes(kind, tokens, cols))), one(size_t(linear_act_bytes(kind, 1, cols)));
  linear_prepare(kind, x.data(), cols, tokens, cols, 0, tokens, act.data);
  Aligned<uint8_t> scratch(size_t(linear_scratch_bytes(cols)));
  const int ldy = rows + 3;
  std::vector<float> bias = random_input(1, rows, 5), y(size_t(tokens) * ldy, 777.0f);
  linear_run(m.w, act.data, tokens, 0, tokens, 0, m.groups, y.data(), ldy, {bias.data(), false}, scratch.data);
  double worst = 0;
  for (int t = 0; t < tokens; t++) {
    for (int r = 0; r < rows; r++) {
      double exact = bias[r], size = std::fabs(bias[r]);
      for (int k = 0; k < cols; k++) {
        const double p = double(dense[size_t(r) * cols + k]) * xq[size_t(t) * cols + k];
        exact += p, size += std::fabs(p);
      }
      worst = std::max(worst, std::fabs(y[size_t(t) * ldy + r] - exact) / size);
    }
    for (int r = rows; r < ldy; r++) expect(y[size_t(t) * ldy + r] == 777.0f, name + " writes past the rows");
  }
  expect(worst < 2e-6, name + " error " + std::to_string(worst * 1e6) + "e-6 of the sum of magnitudes");

  // The same bits as each token alone, by whatever kernel that takes.
  for (int t = 0; t < tokens; t++) {
    std::vector<float> alone(size_t(rows), 0.0f);
    linear_prepare(kind, x.data() + size_t(t) * cols, cols, 1, cols, 0, 1, one.data);
    linear_run(m.w, one.data, 1, 0, 1, 0, m.groups, alone.data(), rows, {bias.data(), false}, scratch.data);
    expect(std::memcmp(alone.data(), &y[size_t(t) * ldy], size_t(rows) * 4) == 0, name + " bits of a token alone");
  }

  // The same bits however the call is cut.
  const int step_t[] = {1, 2, 3, 5, 8, 13}, step_g[] = {1, 2, 3, 7};
  for (int st : step_t)
    for (int sg : step_g) {
      std::vector<float> z(y.size(), 777.0f);
      for (int t = 0; t < tokens; t += st)
        for (int g = 0; g < m.groups; g += sg)
          linear_run(m.w, act.data, tokens, t, std::min(t + st, tokens), g, std::min(g + sg, m.groups), z.data(), ldy,
                     {bias.data(), false}, scratch.data);
      expect(std::memcmp(z.data(), y.data(), y.size() * 4) == 0,
             name + " bits change in pieces of " + std::to_string(st) + " tokens, " + std::to_string(sg) + " groups");
    }
  std::vector<float> twice = y;
  linear_run(m.w, act.data, tokens, 0, tokens, 0, m.groups, twice.data(), ldy, {bias.data(), true}, scratch.data);
  for (int t = 0; t < tokens; t++)
    for (int r = 0; r < rows; r++)
      expect(twice[size_t(t) * ldy + r] == 2 * y[size_t(t) * ldy + r], name + " accumulate");
}

// Where bits may depend on the call: x and the weights' values in bf16, in pieces of whole tiles of tokens.
void check_rounded(const Format& f, int rows, int cols, int tokens) {
  const Act kind = linear_act(f.type, false);
  if (kind == linear_act(f.type, true) || !linear_supports(f.type, cols)) return;
  const std::string name = std::string(f.name) + " in bf16 " + std::to_string(rows) + "x" + std::to_string(cols);
  const auto file = random_rows(f, rows, cols, 11);
  Matrix m(f, rows, cols, file);
  m.w.act = kind;
  const auto round = [](float x) { return to_float(from_float<bf16>(x)); };
  const auto x = random_input(tokens, cols, 7), bias = random_input(1, rows, 5);
  Aligned<uint8_t> act(size_t(linear_act_bytes(kind, tokens, cols))), scratch(size_t(linear_scratch_bytes(cols)));
  std::memset(act.data, 0xff, act.size);  // NaN, in the tokens that only fill a tile up
  linear_prepare(kind, x.data(), cols, tokens, cols, 0, tokens, act.data);
  std::vector<float> y(size_t(tokens) * rows), pieces = y;
  linear_run(m.w, act.data, tokens, 0, tokens, 0, m.groups, y.data(), rows, {bias.data(), false}, scratch.data);
  double worst = 0;
  for (int r = 0; r < rows; r++)
    for (int t = 0; t < tokens; t++) {
      double sum = bias[size_t(r)], size = std::fabs(sum);
      for (int k = 0; k < cols; k++) {
        const double p = double(round(value(f, &file[size_t(r) * (cols / f.values) * f.bytes], k))) * round(x[size_t(t) * cols + k]);
        sum += p, size += std::fabs(p);
      }
      worst = std::max(worst, std::fabs(y[size_t(t) * rows + r] - sum) / size);
    }
  expect(worst < 2e-5, name + " error " + std::to_string(worst * 1e6) + "e-6 of the sum of magnitudes");
  for (int t = 0; t < tokens; t += 23)
    for (int g = 0; g < m.groups; g++)
      linear_run(m.w, act.data, tokens, t, std::min(t + 23, tokens), g, g + 1, pieces.data(), rows, {bias.data(), false}, scratch.data);
  expect(std::memcmp(y.data(), pieces.data(), y.size() * 4) == 0, name + " bits change in pieces");
}

// The largest codes and inputs in the unluckiest arrangement: the integer sums must not saturate or wrap.
void check_extremes(const Format& f) {
  if (linear_act(f.type, true) == Act::f32) return;
  const int cols = 512, rows = 16, tokens = 9;
  for (int variant = 0; variant < 6; variant++) {
    auto file = random_rows(f, rows, cols, 3);
    std::mt19937 rng(uint32_t(variant) + 1);
    for (size_t at = 0; at < file.size(); at++)
      if (f.values == 32 ? at % f.bytes >= size_t(f.type == Storage::Q4_1 || f.type == Storage::Q5_1 ? 4 : 2)
                         : at % f.bytes >= (f.type == Storage::Q6_K ? 0u : 4u) && at % f.bytes < 208)
        file[at] = variant < 2 ? uint8_t(variant ? 0xff : 0x00) : variant == 2 ? 0x80 : rng() & 1 ? 0xff : 0x00;
    std::vector<float> x(size_t(tokens) * cols);
    for (float& v : x) v = variant == 3 || variant == 4 ? (rng() & 1 ? 3.0f : -3.0f) : variant & 1 ? 3.0f : -3.0f;
    const Matrix m(f, rows, cols, file);
    Aligned<uint8_t> act(size_t(linear_act_bytes(Act::q8, tokens, cols))), scratch(size_t(linear_scratch_bytes(cols)));
    linear_prepare(Act::q8, x.data(), cols, tokens, cols, 0, tokens, act.data);
    std::vector<float> y(size_t(tokens) * rows);
    linear_run(m.w, act.data, tokens, 0, tokens, 0, m.groups, y.data(), rows, {nullptr, false}, scratch.data);
    for (int t = 0; t < tokens; t++)
      for (int r = 0; r < rows; r++) {
        double exact = 0, size = 1e-30;
        for (int k = 0; k < cols; k++) {
          const double p = double(value(f, &file[size_t(r) * (cols / f.values) * f.bytes], k)) * x[size_t(t) * cols + k];
          exact += p, size += std::fabs(p);
        }
        expect(std::fabs(y[size_t(t) * rows + r] - exact) < 2e-6 * size,
               std::string(f.name) + " extremes, variant " + std::to_string(variant));
      }
  }
}

// A NaN or infinite scale or input reaches its own outputs and no others.
void check_not_finite(const Format& f) {
  const int cols = 512, rows = 24, tokens = 9, bad_row = 11, bad_token = 4;
  for (float bad : {__builtin_nanf(""), __builtin_inff()}) {
    auto file = random_rows(f, rows, cols, 3);
    uint8_t* at = &file[size_t(bad_row) * (cols / f.values) * f.bytes];
    if (f.type == Storage::F32) std::memcpy(at, &bad, 4);
    else if (f.type == Storage::BF16) at[0] = 0x80, at[1] = 0x7f, at[0] = std::isnan(bad) ? 0xc0 : 0x80;
    else put_half(at + (f.type == Storage::Q6_K ? 208 : 0), bad);
    auto x = random_input(tokens, cols, 9);
    x[size_t(bad_token) * cols + 77] = bad;
    const Matrix m(f, rows, cols, file);
    const Act kind = linear_act(f.type, true);
    Aligned<uint8_t> act(size_t(linear_act_bytes(kind, tokens, cols))), scratch(size_t(linear_scratch_bytes(cols)));
    linear_prepare(kind, x.data(), cols, tokens, cols, 0, tokens, act.data);
    std::vector<float> y(size_t(tokens) * rows);
    linear_run(m.w, act.data, tokens, 0, tokens, 0, m.groups, y.data(), rows, {nullptr, false}, scratch.data);
    for (int t = 0; t < tokens; t++)
      for (int r = 0; r < rows; r++)
        expect(std::isfinite(y[size_t(t) * rows + r]) == (r != bad_row && t != bad_token),
               std::string(f.name) + " not finite: token " + std::to_string(t) + " row " + std::to_string(r));
  }
}

bool asked(const Format& f, const char* only) {
  return !only || std::strcmp(only, "all") == 0 || std::strcmp(only, f.name) == 0;
}

void check(const char* only, bool thorough) {
  for (const Format& f : formats) {
    if (!asked(f, only)) continue;
    const int before = failures;
    for (int rows : thorough ? std::vector{1, 7, 16, 40, 67} : std::vector{7, 40})
      for (int cols : thorough ? std::vector{256, 512, 576, 640, 1536} : std::vector{256, 640})
        for (int tokens : thorough ? std::vector{1, 2, 3, 4, 6, 17} : std::vector{4, 6, 17}) check_type(f, rows, cols, tokens);
    check_type(f, 19, 2304, thorough ? 150 : 35);
    check_type(f, 50, 7, 5);
    for (int cols : {256, 640, 4352}) check_rounded(f, 45, cols, 70);
    check_extremes(f);
    check_not_finite(f);
    std::printf("%-5s %s\n", f.name, failures == before ? "ok" : "FAILED");
  }
}

// The best round's time of the slowest thread, in processor time: what else runs on the machine counts less.
double seconds(const std::function<void(int)>& work, int threads) {
  const auto used = [] {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
  };
  double best = 1e9;
  for (int round = 0; round < 40; round++) {
    std::vector<std::thread> pool;
    std::vector<double> took(static_cast<size_t>(threads));
    std::atomic<int> ready = 0;
    for (int i = 0; i < threads; i++)
      pool.emplace_back([&, i] {
        ready++;
        while (ready < threads) std::this_thread::yield();
        const double start = used();
        work(i);
        took[size_t(i)] = used() - start;
      });
    for (auto& t : pool) t.join();
    best = std::min(best, *std::max_element(took.begin(), took.end()));
  }
  return best;
}

// The read bandwidth of this machine, with the prefetching that the kernels use.
double read_bandwidth(int threads) {
  const size_t bytes = size_t(128) << 20;
  Aligned<uint8_t> memory(bytes);
  std::memset(memory.data, 1, bytes);
  std::atomic<int64_t> sink = 0;
  return double(bytes) / seconds([&](int i) {
           const size_t from = bytes / size_t(threads) * size_t(i), to = from + bytes / size_t(threads);
           uint64_t sum[8] = {};
           for (size_t p = from; p < to; p += 64) {
             __builtin_prefetch(memory.data + p + 1024);
             uint64_t line[8];
             std::memcpy(line, memory.data + p, 64);
             for (int j = 0; j < 8; j++) sum[j] ^= line[j];
           }
           sink += int64_t(sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7]);
         }, threads);
}

// A matrix of some 100 MB, to stream from memory, whose first rows are also timed from the cache.
struct Timing {
  Timing(const Format& f, int threads, int cols, bool exact)
      : threads(threads), cols(cols), rows(int((100 << 20) / (double(cols) / f.values * f.bytes)) / 1024 * 1024),
        packed(size_t(rows / linear_row_group()) * linear_group_bytes(f.type, cols)),
        act(size_t(linear_act_bytes(linear_act(f.type, exact), 512, cols))),
        scratch(size_t(linear_scratch_bytes(cols)) * size_t(threads)), y(size_t(16) * rows + 512 * 512),
        w{packed.data, f.type, rows, cols, linear_act(f.type, exact)}, x(random_input(512, cols, 3)) {
    const auto file = random_rows(f, 1024, cols, 1);
    std::vector<int32_t> map(static_cast<size_t>(rows));
    for (int i = 0; i < rows; i++) map[size_t(i)] = i % 1024;
    linear_pack(f.type, file.data(), int64_t(cols) / f.values * f.bytes, 0, map.data(), rows, cols, 0,
                rows / linear_row_group(), packed.data);
  }
  double run(int n, int some, int repeat) {
    const int all = some / linear_row_group();
    linear_prepare(w.act, x.data(), cols, n, cols, 0, n, act.data);
    return seconds([&](int i) {
             for (int k = 0; k < repeat; k++)
               linear_run(w, act.data, n, 0, n, all * i / threads, all * (i + 1) / threads, y.data, some,
                          {nullptr, false}, scratch.data + linear_scratch_bytes(cols) * i);
           }, threads) / repeat;
  }
  int threads, cols, rows;
  Aligned<uint8_t> packed, act, scratch;
  Aligned<float> y;
  Weight w;
  std::vector<float> x;
};

#if defined(__AMX_INT8__)
// What the tiles do with their operands in the first-level cache: 2 × 2 products, operations a second.
template <bool Bf16>
double tile_rate(int threads) {
  constexpr int turns = 20000;
  return 4.0 * turns * threads * 2 * 16 * 16 * (Bf16 ? 32 : 64) / seconds([](int) {
           alignas(64) static thread_local uint8_t data[4][1024] = {};
           TileShapes shapes;
           for (int i = 0; i < 8; i++) shapes.set(i, 16, 64);
           tiles_begin(shapes);
           tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
           const auto dots = []<int C, int A, int B>() {
             if constexpr (Bf16) tile_dot_bf16<C, A, B>();
             else tile_dot_i8<C, A, B>();
           };
           for (int i = 0; i < turns; i++) {
             tile_load<4>(data[0], 64), tile_load<5>(data[1], 64), tile_load<6>(data[2], 64), tile_load<7>(data[3], 64);
             dots.template operator()<0, 4, 6>(), dots.template operator()<1, 4, 7>();
             dots.template operator()<2, 5, 6>(), dots.template operator()<3, 5, 7>();
           }
           tiles_end();
         }, threads);
}
#endif

void speed(const char* only, int threads, int cols, bool exact) {
  std::printf("%d threads, %d columns, %s, prefetched read %.1f GB/s\n", threads, cols, exact ? "exact" : "rounded",
              read_bandwidth(threads) / 1e9);
#if defined(__AMX_INT8__)
  if (have_tiles())
    std::printf("tiles: %.0f GOP/s of bytes, %.0f of bf16\n", tile_rate<false>(threads) / 1e9, tile_rate<true>(threads) / 1e9);
#endif
  std::printf("%-5s | GB/s of weights at n = 1      2      4      8     16 | from cache 1 | GOP/s n = 4     16     64    512\n", "");
  for (const Format& f : formats) {
    if (!asked(f, only) || !linear_supports(f.type, cols)) continue;
    Timing m(f, threads, cols, exact);
    const int small = 512;
    std::printf("%-5s |                     ", f.name);
    for (int n : {1, 2, 4, 8, 16}) std::printf(" %6.1f", double(m.packed.size) / m.run(n, m.rows, 1) / 1e9);
    const double part = double(m.packed.size) * 64 / m.rows;
    std::printf(" |       %6.1f |         ", part / m.run(1, 64, 50) / 1e9);
    for (int n : {4, 16, 64, 512}) std::printf(" %6.0f", 2.0 * n * small * m.cols / m.run(n, small, 512 / n) / 1e9);
    std::printf("\n");
    std::fflush(stdout);
  }
}

void decode(const char* only, int threads, int cols) {
  for (const Format& f : formats) {
    if (!asked(f, only) || !linear_supports(f.type, cols)) continue;
    Timing m(f, threads, cols, true);
    std::printf("%-5s", f.name);
    for (int round = 0; round < 3; round++) {
      const double roof = read_bandwidth(threads), got = double(m.packed.size) / m.run(1, m.rows, 1);
      std::printf("  %5.1f of %5.1f GB/s (%3.0f %%)", got / 1e9, roof / 1e9, 100 * got / roof);
    }
    std::printf("  from cache %.1f\n", double(m.packed.size) * 64 / m.rows / m.run(1, 64, 50) / 1e9);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "check";
  const char* type = argc > 2 ? argv[2] : nullptr;
  const int threads = argc > 3 ? std::atoi(argv[3]) : 2, cols = argc > 4 ? std::atoi(argv[4]) : 2048;
  if (mode == "speed") speed(type, threads, cols, argc <= 5 || std::strcmp(argv[5], "rounded") != 0);
  else if (mode == "decode") decode(type, threads, cols);
  else check(type, !(argc > 3 && std::strcmp(argv[3], "quick") == 0));
  return failures ? 1 : 0;
}
