// Owns: what this processor and its system can run; compiled without any instruction-set option, into a library of its
// own, so that asking never faults.
#include <cstdint>

// Bit 0: the avx2 variant; bit 1: avx512vnni; bit 2: amx; bit 3: neon; bit 4: neon-dotprod; bit 5: neon-i8mm.
#define MR_PROBE extern "C" __attribute__((visibility("default"))) int mr_probe()

#if defined(__aarch64__) && defined(__APPLE__)

#include <sys/sysctl.h>

static bool has(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

MR_PROBE {
  const bool dotprod = has("hw.optional.arm.FEAT_DotProd");
  return 8 | int(dotprod) << 4 | int(dotprod && has("hw.optional.arm.FEAT_I8MM")) << 5;
}

#elif defined(__aarch64__)

#include <sys/auxv.h>

MR_PROBE {
  const bool dotprod = getauxval(AT_HWCAP) >> 20 & 1, i8mm = getauxval(AT_HWCAP2) >> 13 & 1;
  return 8 | int(dotprod) << 4 | int(dotprod && i8mm) << 5;
}

#else

#include <cpuid.h>

namespace {

uint64_t enabled_state() {
  uint32_t lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return uint64_t(hi) << 32 | lo;
}

}  // namespace

MR_PROBE {
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

#endif
