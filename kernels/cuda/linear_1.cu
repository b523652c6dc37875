// Owns: the streaming products of one token.
#include "linear_stream.cuh"

MR_LINEAR(mr_linear_1, 1, 3)
