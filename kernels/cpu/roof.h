// Owns: the boundary of roof.cpp: what this machine can do at most, measured.
#pragma once

namespace mr {

// Bytes a second that so many threads read from memory together, in the best of a few patterns.
double roof_read(int threads);
// Operations a second (a multiply and an add are two) in registers: products of 8-bit integers as the kernels make them,
// and f32 multiply-adds.
double roof_int8(int threads);
double roof_f32(int threads);

}  // namespace mr
