// Owns: the end of a step: logits of the wanted rows, some rows at a time, and their sampling. Full logits exist for one
// tile of rows only.
#pragma once
#include "program.h"
#include "sample.h"

namespace mr {

struct Tail {
  // [x, stride, width, tile rows, tile x, logits, scale, softcap, bias, acts (kind, offset)…, segments…]
  Tail(Program& p, Reader& r);
  void run(Program& p, const int32_t* which, int count, const uint32_t* masks, const Results& results);

  struct Act {
    mr::Act kind;
    void* at;
  };
  const float* x;
  int64_t stride;
  int width, tile_rows;
  float *tile_x, *logits;
  float scale, softcap;
  const float* bias;
  std::vector<Act> acts;
  std::vector<Segment> segments;
  int64_t groups = 0;
  std::vector<SampleScratch> scratch;  // by thread
};

}  // namespace mr
