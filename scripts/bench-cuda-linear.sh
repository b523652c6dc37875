#!/bin/sh
# Builds kernels/cuda/bench_linear.cu and the linear kernels (Hopper only, the CUDA runtime linked in) and prints where it is.
set -e
cd "$(dirname "$0")/.."
out=build/cuda/bench
mkdir -p $out
objects=
for source in kernels/cuda/linear_*.cu kernels/cuda/bench_linear.cu; do
  object=$out/$(basename "$source" .cu).o
  objects="$objects $object"
  newer=$(find kernels/cuda -name '*.cuh' -newer "$object" 2>/dev/null || echo none)
  case "$source" in *gemm* | *few* | *pack*) newer=$(find kernels/cuda/hopper.cuh kernels/cuda/linear_layout.cuh kernels/cuda/linear_stream.cuh kernels/cuda/linear_widen.cuh kernels/cuda/linear_wgmma.cuh kernels/cuda/common.cuh -newer "$object" 2>/dev/null || echo none) ;; esac
  if [ ! -f "$object" ] || [ -n "$newer" ] || [ "$source" -nt "$object" ]; then
    ${NVCC:-nvcc} -std=c++20 -O3 --expt-relaxed-constexpr -lineinfo -gencode arch=compute_90a,code=sm_90a -c -o "$object" "$source"
  fi
done
${NVCC:-nvcc} -cudart static -gencode arch=compute_90a,code=sm_90a -o $out/bench_linear $objects
echo $out/bench_linear
