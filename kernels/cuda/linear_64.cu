// Owns: the streaming products of up to 64 tokens a pass.
#include "linear_stream.cuh"

MR_LINEAR(mr_linear_64, 8, 2)
