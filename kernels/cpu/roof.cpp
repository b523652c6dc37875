// Owns: measuring the machine's limits, against which `bench ops` holds the kernels and a plan's time is predicted.
#include "roof.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "simd.h"

namespace mr {

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Seconds that `work(thread)` takes on all threads, from a common start to the last one's end.
template <class F>
double together(int threads, F&& work) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> others;
  for (int i = 1; i < threads; i++)
    others.emplace_back([&, i] {
      ready++;
      while (!go) std::this_thread::yield();
      work(i);
    });
  while (ready < threads - 1) std::this_thread::yield();
  const auto start = Clock::now();
  go = true;
  work(0);
  for (std::thread& t : others) t.join();
  return since(start);
}

#if defined(__ARM_NEON)
using words = uint64_t __attribute__((vector_size(16)));
#else
using words = uint64_t __attribute__((vector_size(4 * VL)));
#endif

// `streams` places of a stretch read side by side, each asked for a kilobyte ahead.
template <int streams>
uint64_t read(const uint8_t* from, int64_t bytes) {
  const int64_t each = bytes / streams / 64 * 64;
  words sum[streams] = {};
  for (int64_t at = 0; at < each; at += 64)
    for (int s = 0; s < streams; s++) {
      const uint8_t* p = from + s * each + at;
      __builtin_prefetch(p + 1024);
      for (int i = 0; i < 64; i += int(sizeof(words))) {
        words x;
        std::memcpy(&x, p + i, sizeof x);
        sum[s] ^= x;
      }
    }
  uint64_t all = 0;
  for (const words& v : sum) all ^= v[0];
  return all;
}

constexpr int64_t stretch = 96 << 20;  // a thread's: more than its share of any cache
constexpr double long_enough = 0.05;   // seconds

std::atomic<uint64_t> sink;

// Chains of independent operations; the empty asm keeps each from being thought away or regrouped. Every loop over them is
// unrolled: one that is not would keep them in memory, and their stores would be what is measured.
constexpr int chains = 10;
#define EACH_CHAIN _Pragma("GCC unroll 10")

#if defined(__ARM_NEON)
inline void keep(vf& v) { asm volatile("" : "+w"(v.a), "+w"(v.b)); }
#else
inline void keep(vf& v) { asm volatile("" : "+x"(v)); }
#endif

void many_f32(int64_t turns) {
  vf a[chains];
  EACH_CHAIN for (int i = 0; i < chains; i++) a[i] = vset(float(i));
  const vf x = vset(0.999f), y = vset(0.001f);
  for (int64_t t = 0; t < turns; t++)
    EACH_CHAIN for (int i = 0; i < chains; i++) {
      a[i] = vfma(a[i], x, y);
      keep(a[i]);
    }
  vf sum = vzero();
  EACH_CHAIN for (int i = 0; i < chains; i++) sum = vadd(sum, a[i]);
  float out[VL];
  vstore(out, sum);
  sink += uint64_t(std::fabs(out[0]));
}

// Operations of one turn of a chain.
#if defined(__ARM_NEON)
#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr double int8_operations = 2 * 32;
#else
constexpr double int8_operations = 2 * 16;
#endif

void many_int8(int64_t turns) {
  int32x4_t a[chains];
  EACH_CHAIN for (int i = 0; i < chains; i++) a[i] = vdupq_n_s32(0);
  int8x16_t x = vdupq_n_s8(3), y = vdupq_n_s8(5);
  for (int64_t t = 0; t < turns; t++)
    EACH_CHAIN for (int i = 0; i < chains; i++) {
      int32x4_t& v = a[i];
      asm volatile("" : "+w"(x));
#if defined(__ARM_FEATURE_MATMUL_INT8)
      v = vmmlaq_s32(v, x, y);
#elif defined(__ARM_FEATURE_DOTPROD)
      v = vdotq_s32(v, x, y);
#else
      v = vpadalq_s16(v, vpaddq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(y)), vmull_high_s8(x, y)));
#endif
      asm volatile("" : "+w"(v));
    }
  EACH_CHAIN for (int i = 0; i < chains; i++) sink += uint64_t(vgetq_lane_s32(a[i], 0));
}
#else
constexpr double int8_operations = 2 * sizeof(vi);

void many_int8(int64_t turns) {
  vi a[chains];
  EACH_CHAIN for (int i = 0; i < chains; i++) a[i] = vi{};
#if defined(__AVX512F__)
  vi x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(5);
#else
  vi x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(5);
#endif
  for (int64_t t = 0; t < turns; t++)
    EACH_CHAIN for (int i = 0; i < chains; i++) {
      vi& v = a[i];
      asm volatile("" : "+x"(x));
#if defined(__AVX512VNNI__)
      v = _mm512_dpbusd_epi32(v, x, y);
#else
      // As the kernels do: products of pairs, summed in 16 bits.
      vi p = _mm256_maddubs_epi16(x, y);
      asm volatile("" : "+x"(p));
      v = _mm256_add_epi16(v, p);
#endif
      asm volatile("" : "+x"(v));
    }
  EACH_CHAIN for (int i = 0; i < chains; i++) sink += uint64_t(a[i][0]);
}
#endif

// Operations a second of `work(turns)`, which makes `each` operations a turn: the best of three.
template <class F>
double rate(int threads, double each, F&& work) {
  const auto seconds = [&](int64_t turns) { return together(threads, [&](int) { work(turns); }); };
  int64_t turns = 1 << 16;
  double least = seconds(turns);
  while (least <= long_enough) least = seconds(turns *= 4);
  for (int i = 0; i < 2; i++) least = std::min(least, seconds(turns));
  return each * double(turns) * threads / least;
}

}  // namespace

double roof_read(int threads) {
  std::vector<uint8_t> memory(size_t(stretch) * threads, 1);
  double best = 0;
  for (auto pattern : {read<1>, read<2>, read<4>, read<8>})
    for (int round = 0; round < 2; round++) {
      const double s = together(threads, [&](int i) { sink += pattern(memory.data() + i * stretch, stretch); });
      best = std::max(best, double(stretch) * threads / s);
    }
  return best;
}

double roof_int8(int threads) { return rate(threads, chains * int8_operations, many_int8); }
double roof_f32(int threads) { return rate(threads, 2.0 * chains * VL, many_f32); }

}  // namespace mr
