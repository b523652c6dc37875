// Owns: the streaming products of up to 32 tokens a pass.
#include "linear_stream.cuh"

MR_LINEAR(mr_linear_32, 4, 2)
