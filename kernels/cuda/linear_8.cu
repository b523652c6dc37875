// Owns: the streaming products of up to 8 tokens a pass.
#include "linear_stream.cuh"

MR_LINEAR(mr_linear_8, 1, 3)
