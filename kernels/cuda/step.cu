// Owns: the ends of a step: taking what the host has written for it (mr_begin), a slot's token counts, and telling the host
// that the results are there (mr_end).
#include "common.cuh"

namespace {

// What the host writes for a step, in pinned memory: 32-bit words.
struct Upload {
  int info[16];  // StepInfo
  int segments;  // copies to be made
  int token_source, updates, update_slots, update_floats, update_ints;  // word offsets, but for updates: how many
  int pad[10];
  struct {
    int source, words;
    int* to;
  } segment[1];
};

constexpr int slot_floats = 6, slot_ints = 5;
constexpr int began = 8;  // word of StepInfo's pad: when the step began

__device__ __forceinline__ unsigned long long nanoseconds() {
  unsigned long long t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}

}  // namespace

// Copies the segments; token −1−slot becomes that slot's last sample; new parameters go into their slots.
extern "C" __global__ void mr_begin(const Upload* up, int* info, int* token_ids, const int* last_token, float* floats,
                                    int* ints) {
  mr::wait();
  const int* words = reinterpret_cast<const int*>(up);
  const int at = blockIdx.x * blockDim.x + threadIdx.x, all = gridDim.x * blockDim.x;
  if (at == began) *reinterpret_cast<unsigned long long*>(info + began) = nanoseconds();
  else if (at < 16 && at != began + 1) info[at] = up->info[at];
  const int tokens = up->info[0], segments = up->segments;
  for (int i = at; i < tokens; i += all) {
    const int id = words[up->token_source + i];
    token_ids[i] = id < 0 ? last_token[-1 - id] : id;
  }
  for (int s = 0; s < segments; s++) {
    const int* from = words + up->segment[s].source;
    int* to = up->segment[s].to;
    for (int i = at; i < up->segment[s].words; i += all) to[i] = from[i];
  }
  for (int i = at; i < up->updates * slot_floats; i += all) {
    const int u = i / slot_floats, slot = words[up->update_slots + u];
    floats[slot * slot_floats + i % slot_floats] = reinterpret_cast<const float*>(words)[up->update_floats + i];
  }
  for (int i = at; i < up->updates * slot_ints; i += all) {
    const int u = i / slot_ints, slot = words[up->update_slots + u];
    ints[slot * slot_ints + i % slot_ints] = words[up->update_ints + i];
  }
}

// A slot's counts anew: bit 31 where the prompt has the id, below it how often the output has. One block.
extern "C" __global__ void mr_counts(uint32_t* counts, int vocab, const int* ids, int prompt, int output) {
  mr::wait();
  for (int i = threadIdx.x; i < vocab; i += blockDim.x) counts[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < prompt + output; i += blockDim.x) {
    if (uint32_t(ids[i]) >= uint32_t(vocab)) continue;
    if (i < prompt) atomicOr(counts + ids[i], 0x80000000u);
    else atomicAdd(counts + ids[i], 1u);
  }
}

// Results are in host memory: the flag of the ring's entry says of which step; words 2 and 4 when it began and ended.
extern "C" __global__ void mr_end(const mr::StepInfo* info, volatile int* flags) {
  mr::wait();
  volatile int* own = flags + info->ring * 16;
  volatile unsigned long long* times = reinterpret_cast<volatile unsigned long long*>(own + 2);
  times[0] = *reinterpret_cast<const unsigned long long*>(reinterpret_cast<const int*>(info) + began);
  times[1] = nanoseconds();
  __threadfence_system();
  own[0] = info->number;
}
