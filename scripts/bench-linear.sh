#!/bin/sh
# Builds kernels/cpu/bench_linear.cpp with the matrix kernels, the flags as in build-native.mjs, and prints where it is:
#   scripts/bench-linear.sh [avx2|avx512vnni|amx|tiles|neon|neon-dotprod|neon-i8mm]
# tiles: AVX2 with the tile registers in plain loops, to check layouts. On another processor ARM's are cross-compiled.
set -e
cd "$(dirname "$0")/.."
isa=${1:-avx2}
flags="-mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt -mpopcnt"
avx512="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni"
compiler=${CXX:-g++} level=-O3
case $isa in
  neon*)
    [ "$(uname -m)" = aarch64 ] || [ "$(uname -m)" = arm64 ] || compiler=aarch64-linux-gnu-g++ level=-O1
    ;;
esac
case $isa in
  neon) flags="-march=armv8-a" ;;
  neon-dotprod) flags="-march=armv8.2-a+dotprod" ;;
  neon-i8mm) flags="-march=armv8.2-a+dotprod+i8mm" ;;
  avx512vnni) flags="$flags $avx512" ;;
  amx) flags="$flags $avx512 -mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16" ;;
  tiles) flags="$flags -DMR_EMULATE_TILES" ;;
esac
target=build/native/bench-linear-$isa
mkdir -p build/native
if [ ! -x "$target" ] || [ -n "$(find kernels/cpu scripts/bench-linear.sh -newer "$target" -type f)" ]; then
  $compiler -std=c++20 $level -pthread -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra \
    -Wno-uninitialized -Wno-maybe-uninitialized $flags \
    -o "$target.$$" kernels/cpu/bench_linear.cpp kernels/cpu/linear.cpp kernels/cpu/linear_*.cpp
  mv "$target.$$" "$target"
fi
echo "$target"
