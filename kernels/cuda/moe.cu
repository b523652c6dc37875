// Owns: what stands around the products of a mixture of experts. A token and one of its experts are an assignment; sorted by
// expert it has a place:
//
//   mr_route → mr_moe_sort → mr_moe_gather → gate and up, by expert → down, by expert → mr_moe_sum
//
// The order within an expert is whichever came first: no value depends on it.
#include "common.cuh"

using namespace mr;

// A warp a token: scores, then the best that is left, `used` times; plan/ops/moe.ts is the specification. Shared memory:
// a double an expert (2048 at most).
extern "C" __global__ void __launch_bounds__(32) mr_route(const StepInfo* info, int rows, const void* logits, int wide,
                                                         int num_experts, const float* bias, int used, int softmax,
                                                         int normalize, float scale, int* experts, float* weights) {
  extern __shared__ double scores[];
  wait();
  release();
  const int t = blockIdx.x, lane = threadIdx.x;
  if (t >= (rows ? info->rows : info->tokens)) return;
  const int64_t at = int64_t(t) * num_experts;
  const auto logit = [&](int i) {
    return wide ? static_cast<const float*>(logits)[at + i] : load(static_cast<const bf16*>(logits) + at + i);
  };
  float most = -INFINITY;
  for (int i = lane; i < num_experts; i += 32) most = fmaxf(most, logit(i));
  most = warp_max(most);
  double sum = 0;
  for (int i = lane; i < num_experts; i += 32) {
    const double x = logit(i);
    sum += scores[i] = softmax ? exp(x - double(most)) : 1 / (1 + exp(-x));
  }
  for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
  if (softmax)
    for (int i = lane; i < num_experts; i += 32) scores[i] /= sum;
  __syncwarp();
  unsigned long long taken = 0;  // of the lane's own
  double chosen_sum = 0;
  for (int j = 0; j < used; j++) {
    double best = -INFINITY;
    int id = 0x7fffffff;
    for (int i = lane, own = 0; i < num_experts; i += 32, own++) {
      if (taken >> own & 1) continue;
      double rank = scores[i] + (bias ? double(bias[i]) : 0.0);
      if (!(rank > -INFINITY)) rank = -INFINITY;  // not a number
      if (rank > best || id == 0x7fffffff) best = rank, id = i;
    }
    for (int o = 16; o > 0; o >>= 1) {
      const double other = __shfl_xor_sync(0xffffffffu, best, o);
      const int other_id = __shfl_xor_sync(0xffffffffu, id, o);
      if (other > best || (other == best && other_id < id)) best = other, id = other_id;
    }
    if (id % 32 == lane) taken |= 1ull << (id / 32);
    chosen_sum += scores[id];
    if (lane == 0) experts[int64_t(t) * used + j] = id;
  }
  __syncwarp();
  for (int j = lane; j < used; j += 32) {
    const int64_t to = int64_t(t) * used + j;
    weights[to] = float(double(scale) * scores[experts[to]] / (normalize ? chosen_sum : 1.0));
  }
}

// counts [experts], start [experts + 1]: an expert's assignments have the places start[e] …; place [assignments]; items: how
// many, then (expert, pass of `tokens` of its assignments) of each. One block; shared memory: two ints an expert.
extern "C" __global__ void __launch_bounds__(1024) mr_moe_sort(const StepInfo* info, int rows, const int* experts, int used,
                                                              int num_experts, int tokens, int* counts, int* start,
                                                              int* place, int* items) {
  extern __shared__ int of_expert[];
  int* next = of_expert;
  int* first_item = of_expert + num_experts;
  wait();
  release();
  const int n = (rows ? info->rows : info->tokens) * used;
  for (int e = threadIdx.x; e < num_experts; e += blockDim.x) next[e] = 0;
  __syncthreads();
  for (int a = threadIdx.x; a < n; a += blockDim.x) atomicAdd(next + experts[a], 1);
  __syncthreads();
  for (int e = threadIdx.x; e < num_experts; e += blockDim.x) counts[e] = next[e];
  __syncthreads();
  if (threadIdx.x == 0) {
    int at = 0, item = 0;
    for (int e = 0; e < num_experts; e++) {
      const int count = next[e];
      next[e] = at, first_item[e] = item;
      at += count, item += (count + tokens - 1) / tokens;
    }
    start[num_experts] = at;
    items[0] = item;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < num_experts; e += blockDim.x) {
    start[e] = next[e];
    const int end = e + 1 < num_experts ? first_item[e + 1] : items[0];
    for (int i = first_item[e]; i < end; i++) items[1 + 2 * i] = e, items[2 + 2 * i] = i - first_item[e];
  }
  __syncthreads();
  for (int a = threadIdx.x; a < n; a += blockDim.x) place[a] = atomicAdd(next + experts[a], 1);
}

// to[place[a]] = x[a / used]. One block an assignment.
extern "C" __global__ void mr_moe_gather(const StepInfo* info, int rows, const bf16* x, int cols, int used, const int* place,
                                         bf16* to) {
  wait();
  release();
  const int a = blockIdx.x;
  if (a >= (rows ? info->rows : info->tokens) * used) return;
  const bf16* from = x + int64_t(a / used) * cols;
  bf16* row = to + int64_t(place[a]) * cols;
  if (cols % 8 == 0) {
    for (int i = threadIdx.x; i < cols / 8; i += blockDim.x)
      reinterpret_cast<uint4*>(row)[i] = reinterpret_cast<const uint4*>(from)[i];
  } else {
    for (int i = threadIdx.x; i < cols; i += blockDim.x) row[i] = from[i];
  }
}

// y[t] = Σ weights[t, j] · out[place[t, j]], in the order in which the experts were chosen. grid: (columns / 256, tokens)
extern "C" __global__ void __launch_bounds__(256) mr_moe_sum(const StepInfo* info, int rows, const float* out, int cols,
                                                            int used, const int* place, const float* weights, void* y,
                                                            int y_wide) {
  wait();
  release();
  const int t = blockIdx.y, i = blockIdx.x * 256 + threadIdx.x;
  if (t >= (rows ? info->rows : info->tokens) || i >= cols) return;
  float sum = 0;
  for (int j = 0; j < used; j++) {
    const int64_t a = int64_t(t) * used + j;
    sum += weights[a] * out[int64_t(place[a]) * cols + i];
  }
  const int64_t at = int64_t(t) * cols + i;
  if (y_wide) static_cast<float*>(y)[at] = sum;
  else store(static_cast<bf16*>(y) + at, sum);
}
