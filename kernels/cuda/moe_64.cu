// Owns: the experts' products of long prompts.
#include "moe.cuh"

MR_MOE(mr_moe_64, 64, 2)
