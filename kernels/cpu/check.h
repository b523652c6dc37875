// Owns: what the programs that check the C ABI share: their random numbers, places in a workspace, and how they complain.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

inline int failures = 0;
inline void expect(bool ok, const std::string& what) {
  if (!ok && ++failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

// The same numbers everywhere: std's distributions differ between libraries.
struct Random {
  uint64_t state;
  double next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return double(state >> 40) / double(1 << 24) * 2 - 1;
  }
  std::vector<float> floats(int n, double scale = 1) {
    std::vector<float> out(static_cast<size_t>(n));
    for (float& x : out) x = float(next() * scale);
    return out;
  }
};

// The tensors of the program, [tokens, …] each, in the workspace.
struct Areas {
  int64_t end = 0;
  int64_t take(int64_t floats) {
    const int64_t at = end;
    end += (floats * 4 + 63) / 64 * 64;
    return at;
  }
};

inline void near(const std::vector<double>& want, const std::vector<float>& got, double bound, const std::string& what) {
  double worst = 0;
  for (size_t i = 0; i < want.size(); i++) {
    const double off = std::fabs(want[i] - double(got[i])) / (1 + std::fabs(want[i]));
    if (!(off <= worst)) worst = off;
  }
  expect(want.size() == got.size() && worst <= bound, what + ": off by " + std::to_string(worst));
}

// check_moe.cpp
void check_moe();
