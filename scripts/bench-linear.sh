#!/bin/sh
# Builds kernels/cpu/bench_linear.cpp with the matrix kernels: scripts/bench-linear.sh [avx2|avx512vnni].
set -e
cd "$(dirname "$0")/.."
isa=${1:-avx2}
flags="-mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt -mpopcnt"
[ "$isa" = avx512vnni ] && flags="$flags -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -Wno-uninitialized -Wno-maybe-uninitialized"
mkdir -p build/native
${CXX:-g++} -std=c++20 -O3 -pthread -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra $flags \
  -o "build/native/bench-linear-$isa" kernels/cpu/bench_linear.cpp kernels/cpu/linear.cpp kernels/cpu/linear_*.cpp
echo "build/native/bench-linear-$isa"
