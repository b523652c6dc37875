#!/bin/sh
# Builds kernels/cpu/bench_linear.cpp with the matrix kernels, the flags as in build-native.mjs, and prints where it is:
#   scripts/bench-linear.sh [avx2|avx512vnni|amx|tiles]     tiles: AVX2 with the tile registers in plain loops, to check layouts
set -e
cd "$(dirname "$0")/.."
isa=${1:-avx2}
flags="-mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt -mpopcnt"
avx512="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni"
case $isa in
  avx512vnni) flags="$flags $avx512" ;;
  amx) flags="$flags $avx512 -mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16" ;;
  tiles) flags="$flags -DMR_EMULATE_TILES" ;;
esac
target=build/native/bench-linear-$isa
mkdir -p build/native
if [ ! -x "$target" ] || [ -n "$(find kernels/cpu scripts/bench-linear.sh -newer "$target" -type f)" ]; then
  ${CXX:-g++} -std=c++20 -O3 -pthread -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra \
    -Wno-uninitialized -Wno-maybe-uninitialized $flags \
    -o "$target.$$" kernels/cpu/bench_linear.cpp kernels/cpu/linear.cpp kernels/cpu/linear_*.cpp
  mv "$target.$$" "$target"
fi
echo "$target"
