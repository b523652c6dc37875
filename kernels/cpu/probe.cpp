// Owns: what this processor and its system can run; compiled without any instruction-set option, into a library of its
// own, so that asking never faults.
#include <cpuid.h>
#include <cstdint>

namespace {

uint64_t enabled_state() {
  uint32_t lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return uint64_t(hi) << 32 | lo;
}

}  // namespace

// Bit 0: the avx2 variant; bit 1: the avx512vnni variant; bit 2: the amx variant.
extern "C" __attribute__((visibility("default"))) int mr_probe() {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  const bool fma = c >> 12 & 1, xsave = c >> 27 & 1, avx = c >> 28 & 1, half = c >> 29 & 1;
  if (!xsave) return 0;
  const uint64_t state = enabled_state();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
  const bool avx2 = b >> 5 & 1, bmi = (b >> 3 & 1) && (b >> 8 & 1);
  const bool avx512 = (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1), vnni = c >> 11 & 1;
  // Tiles with bytes and bf16, and the system keeps their state.
  const bool amx = (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1) && (state & 0x60000) == 0x60000;
  const bool base = fma && avx && half && avx2 && bmi && ymm;
  const bool wide = base && avx512 && vnni && zmm;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) a = 0;
  const bool bf16 = a >> 5 & 1;
  return int(base) | int(wide) << 1 | int(wide && amx && bf16) << 2;
}
