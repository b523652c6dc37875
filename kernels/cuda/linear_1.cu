// Owns: the products of one token.
#include "linear_one.cuh"

MR_LINEAR_ONE(mr_linear_1, 3)
