// Owns: whole steps of one token, heads of 64.
#include "walk_kernel.cuh"

MR_WALK(f16, __half, 64)
MR_WALK(bf16, __nv_bfloat16, 64)
