// Owns: the boundary of quantize.cpp: values to a storage type's blocks, as a file holds them.
#pragma once
#include <cstdint>

#include "linear.h"

namespace mr {

// count values of `from` (F32, F16 or BF16), whole blocks of `to`, on so many threads. False: one of them is not a finite
// number; `out` is undefined then.
bool quantize(Storage from, const uint8_t* source, int64_t count, Storage to, uint8_t* out, int threads);

}  // namespace mr
