#!/bin/sh
# Builds kernels/cuda/bench_linear.cu (Hopper only, the CUDA runtime linked in) and prints where it is.
set -e
cd "$(dirname "$0")/.."
target=build/cuda/bench_linear
mkdir -p build/cuda
if [ ! -x "$target" ] || [ -n "$(find kernels/cuda scripts/bench-cuda-linear.sh -newer "$target" -type f)" ]; then
  ${NVCC:-nvcc} -std=c++20 -O3 --expt-relaxed-constexpr -cudart static -lineinfo -gencode arch=compute_90a,code=sm_90a \
    -o "$target.$$" kernels/cuda/bench_linear.cu
  mv "$target.$$" "$target"
fi
echo "$target"
