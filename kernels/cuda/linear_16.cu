// Owns: the streaming products of up to 16 tokens a pass.
#include "linear_stream.cuh"

MR_LINEAR(mr_linear_16, 2, 2)
