// Owns: the experts' products where most experts have few tokens.
#include "moe.cuh"

MR_MOE(mr_moe_8, 8, 2)
