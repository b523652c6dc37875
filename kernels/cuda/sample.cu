// Owns: from logits to tokens: device/reference/sample.ts is the specification. Two launches, three where something is drawn:
//   mr_logits   (stretch of the vocabulary, row): finishes the logits, applies bias, mask and penalties, and leaves each
//               stretch's largest logit, its sum of exponentials and its best candidate
//   mr_spread   (stretch, row): how the weights lie: by distance from the best where top-k or top-p cuts, else the stretch's sum
//   mr_sample   (row): joins the stretches, draws, reports, and keeps the slot's last token and counts
// Sums of exponentials and of weights run in fixed point or in f64 over fixed stretches: the same bits in every run.
#include <cfloat>

#include "common.cuh"

namespace {

using namespace mr;

constexpr int stretch = 4096;  // ids of one block of mr_logits
constexpr int threads = 1024;  // of mr_sample
constexpr int bins = 256;      // of a row's candidates, by distance from the best
constexpr int most_short = 4096;
using Mass = unsigned long long;
constexpr double mass_one = 17592186044416.0;  // 2^44: 2^18 weights of at most 1 fit
constexpr float minus_infinity = -INFINITY;

struct Partial {
  float max;   // of l
  int best;    // smallest id with it
  double sum;  // of exp(l − max)
  float a_max;
  int a_best;
  Mass mass;  // of all that may be drawn, where nothing cuts
};
static_assert(sizeof(Partial) == 32);

// A row's candidates by bin_of; zero between steps.
struct Spread {
  Mass masses[bins];
  int counts[bins];
};
static_assert(sizeof(Spread) == 3072);

// What is fixed for a program.
struct Tail {
  const StepInfo* info;
  float *l, *a;  // [rows, vocab]
  const float* bias;
  Partial* partials;  // [rows, stretches]
  const float* slot_floats;
  const int* slot_ints;
  int* last_token;
  uint32_t* counts;  // [slots, vocab]
  const int *row_slot, *targets, *positions, *waves, *row_mask, *bias_start, *bias_ids;
  const float* bias_values;
  const uint32_t* masks;
  int* results;  // host memory: the ring's entries
  Spread* spreads;
  int result_words, vocab, stretches, max_rows, max_top;
  float scale, softcap;
};

struct Slot {
  float temperature, top_p, min_p, repetition, frequency, presence;
  int top_k;
  uint32_t seed_low, seed_high;
  bool counted;
};

__device__ Slot slot_of(const Tail& p, int slot) {
  const float* f = p.slot_floats + slot * 6;
  const int* i = p.slot_ints + slot * 5;
  return {f[0], f[1], f[2], f[3], f[4], f[5], i[0], uint32_t(i[1]), uint32_t(i[2]), i[4] != 0};
}

__device__ __forceinline__ float bounded(float x) { return x != x ? minus_infinity : fminf(x, FLT_MAX); }
__device__ __forceinline__ float bounded(double x) {
  return x != x ? minus_infinity : x > double(FLT_MAX) ? FLT_MAX : float(x);
}

__device__ __forceinline__ bool better(float x, int i, float y, int j) { return x > y || (x == y && i < j); }

// Over the block: the largest value and its smallest id.
__device__ void block_best(float& x, int& id, float* values, int* ids) {
  const auto fold = [&](int lanes) {
    for (int o = lanes / 2; o > 0; o >>= 1) {
      const float y = __shfl_xor_sync(0xffffffffu, x, o);
      const int j = __shfl_xor_sync(0xffffffffu, id, o);
      if (better(y, j, x, id)) x = y, id = j;
    }
  };
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  fold(32);
  __syncthreads();
  if (lane == 0) values[warp] = x, ids[warp] = id;
  __syncthreads();
  x = lane < warps ? values[lane] : minus_infinity;
  id = lane < warps ? ids[lane] : 0x7fffffff;
  fold(32);
}

template <class T>
__device__ T block_total(T x, T* scratch) {
  for (int o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  __syncthreads();
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  x = lane < warps ? scratch[lane] : T(0);
  for (int o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
  return x;
}

// Sum of the values of all threads before this one; total: of all.
template <class T>
__device__ T block_before(T x, T* scratch, T& total) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  T upto = x;
  for (int o = 1; o < 32; o <<= 1) {
    const T y = __shfl_up_sync(0xffffffffu, upto, o);
    if (lane >= o) upto += y;
  }
  __syncthreads();
  if (lane == 31) scratch[warp] = upto;
  __syncthreads();
  T before = 0;
  total = 0;
  for (int w = 0; w < warps; w++) {
    if (w < warp) before += scratch[w];
    total += scratch[w];
  }
  return before + upto - x;
}

__device__ __forceinline__ bool adjusts(const Tail& p, int row, const Slot& s) {
  return p.bias_start[row + 1] > p.bias_start[row] || p.row_mask[row] >= 0 || s.counted;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) mr_logits(const Tail p, int wave) {
  __shared__ float values[stretch];
  __shared__ float best_values[32];
  __shared__ int best_ids[32];
  __shared__ double sums[32];
  wait();
  release();
  const int row = blockIdx.y;
  if (row >= p.info->rows || (wave >= 0 && p.waves[row] != wave)) return;
  const int from = blockIdx.x * stretch, n = min(stretch, p.vocab - from);
  float* l = p.l + int64_t(row) * p.vocab + from;
  const bool plain = p.scale == 1 && !p.bias && !(p.softcap > 0);
  float max = minus_infinity;
  int best = from;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    float x = l[i];
    if (!plain) {
      x = p.scale * x + (p.bias ? p.bias[from + i] : 0.0f);
      if (p.softcap > 0) x = p.softcap * tanhf(x / p.softcap);
    }
    const float z = bounded(x);
    if (!plain || !(z == x)) l[i] = z;
    x = z;
    values[i] = x;
    if (x > max) max = x, best = from + i;
  }
  if (max == minus_infinity) best = threadIdx.x < n ? from + int(threadIdx.x) : 0x7fffffff;
  block_best(max, best, best_values, best_ids);
  double sum = 0;
  if (max > minus_infinity)
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += exp(double(values[i]) - double(max));
  sum = block_total(sum, sums);
  Partial out{max, best, sum, max, best, 0};
  const Slot s = slot_of(p, p.row_slot[row]);
  if (p.targets[row] < 0 && adjusts(p, row, s)) {
    __syncthreads();
    // Bias: whoever holds an id's first entry applies all of its entries in order.
    const int b0 = p.bias_start[row], b1 = p.bias_start[row + 1];
    for (int j = b0 + threadIdx.x; j < b1; j += blockDim.x) {
      const int id = p.bias_ids[j] - from;
      if (id < 0 || id >= n) continue;
      bool first = true;
      for (int i = b0; i < j && first; i++) first = p.bias_ids[i] != p.bias_ids[j];
      if (!first) continue;
      for (int i = j; i < b1; i++)
        if (p.bias_ids[i] == p.bias_ids[j]) values[id] = bounded(double(values[id]) + p.bias_values[i]);
    }
    __syncthreads();
    const uint32_t* mask = p.row_mask[row] >= 0 ? p.masks + int64_t(p.row_mask[row]) * ((p.vocab + 31) / 32) : nullptr;
    const uint32_t* counts = s.counted ? p.counts + int64_t(p.row_slot[row]) * p.vocab + from : nullptr;
    float* a = p.a + int64_t(row) * p.vocab + from;
    max = minus_infinity, best = from;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
      float x = values[i];
      const int id = from + i;
      if (mask && !(mask[id / 32] >> (id % 32) & 1)) x = minus_infinity;
      const uint32_t count = counts ? counts[i] : 0;
      if (count) {
        const int output = int(count & 0x7fffffffu);
        const double z = x, r = z > 0 ? z / s.repetition : z * s.repetition;
        x = bounded(r - double(s.frequency) * output - (output > 0 ? double(s.presence) : 0.0));
      }
      a[i] = x;
      if (x > max) max = x, best = id;
    }
    if (max == minus_infinity) best = threadIdx.x < n ? from + int(threadIdx.x) : 0x7fffffff;
    block_best(max, best, best_values, best_ids);
    out.a_max = max, out.a_best = best;
  }
  if (threadIdx.x == 0) p.partials[int64_t(row) * p.stretches + blockIdx.x] = out;
}

namespace {

// Philox4x32-10; src/base/philox.ts is the specification.
__device__ double draw_uniform(uint32_t seed_low, uint32_t seed_high, uint32_t position) {
  uint32_t c0 = position, c1 = 0, c2 = 0, c3 = 0, k0 = seed_low, k1 = seed_high;
  for (int round = 0; round < 10; round++) {
    const uint32_t a = 0xd2511f53u, b = 0xcd9e8d57u;
    const uint32_t n0 = __umulhi(b, c2) ^ c1 ^ k0, n1 = b * c2, n2 = __umulhi(a, c0) ^ c3 ^ k1, n3 = a * c0;
    c0 = n0, c1 = n1, c2 = n2, c3 = n3;
    k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
  }
  return (double(c0) * 2097152.0 + double(c1 >> 11)) / 9007199254740992.0;
}

// Ascending with the value.
__device__ __forceinline__ uint32_t key_of(float x) {
  const uint32_t u = __float_as_uint(x);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

__device__ __forceinline__ bool cuts(const Tail& p, const Slot& s) {
  return s.top_p < 1 || (s.top_k > 0 && s.top_k < p.vocab);
}

// Weights below it are not drawn.
__device__ __forceinline__ Mass least_mass(const Slot& s) {
  return s.min_p > 0 ? Mass(ceil(double(s.min_p) * mass_one - 0.5)) : 0;
}

struct Weights {
  const float* a;
  int n;
  double best, temperature;
  __device__ Mass operator()(float x) const {
    return x == minus_infinity ? 0 : Mass(exp((double(x) - best) / temperature) * mass_one + 0.5);
  }
  // Eighths of a temperature from the best; what is further than 31 temperatures is in the last.
  __device__ int bin_of(float x) const {
    return int(fmin((best - double(x)) / temperature * 8.0, double(bins - 1)));
  }
};

// Candidates: ids whose key is over `key`, and the first `ties` (by id) of those that have it.
struct Cut {
  uint32_t key;
  int ties;
};

struct Shared {
  union {
    struct {
      int counts[2048];
      Mass masses[2048];
    };
    Mass list[most_short];
  };
  double doubles[32];
  Mass totals[32];
  int ints[32];
  float values[32];
  uint32_t prefix;
  int above;
  Mass above_mass;
  int winner;
};

// The id after which the running count (or mass) of the candidates reaches `wanted`, from the largest on: three digits of
// the key from the top, a histogram each. by_mass: masses, else counts.
__device__ Cut find_cut(Shared& s, const Weights& w, bool by_mass, int wanted_count, Mass wanted_mass, bool limited, Cut limit) {
  uint32_t prefix = 0, known = 0;
  int above = 0;
  Mass above_mass = 0;
  const int shifts[3] = {21, 10, 0}, bits[3] = {11, 11, 10};
  for (int digit = 0; digit < 3; digit++) {
    const int bins = 1 << bits[digit];
    for (int i = threadIdx.x; i < bins; i += blockDim.x) s.counts[i] = 0, s.masses[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < w.n; i += blockDim.x) {
      const float x = w.a[i];
      const uint32_t key = key_of(x);
      if (x == minus_infinity || (key & known) != prefix || (limited && key < limit.key)) continue;
      const int bin = int(key >> shifts[digit]) & (bins - 1);
      atomicAdd(&s.counts[bin], 1);
      if (by_mass) atomicAdd(&s.masses[bin], w(x));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int bin = bins - 1, last = -1;
      for (; bin >= 0; bin--) {
        if (s.counts[bin] == 0) continue;
        last = bin;
        const bool reached = by_mass ? above_mass + s.masses[bin] >= wanted_mass : above + s.counts[bin] >= wanted_count;
        if (reached) break;
        above += s.counts[bin], above_mass += s.masses[bin];
      }
      if (bin < 0 && last >= 0) {  // all of them: the smallest there is
        bin = last;
        above -= s.counts[bin], above_mass -= s.masses[bin];
      }
      s.prefix = prefix | uint32_t(max(bin, 0)) << shifts[digit];
      s.above = above, s.above_mass = above_mass;
      s.ints[0] = bin < 0 ? 0 : s.counts[bin];
    }
    __syncthreads();
    prefix = s.prefix, above = s.above, above_mass = s.above_mass;
    known |= uint32_t(bins - 1) << shifts[digit];
  }
  int ties = s.ints[0];
  __syncthreads();
  if (limited && prefix == limit.key) ties = min(ties, limit.ties);
  if (!by_mass) return {prefix, min(ties, wanted_count - above)};
  // Equal values have equal weights.
  const uint32_t bitsOf = prefix & 0x80000000u ? prefix & 0x7fffffffu : ~prefix;
  const Mass each = w(__uint_as_float(bitsOf));
  const Mass short_of = wanted_mass > above_mass ? wanted_mass - above_mass : 0;
  const Mass need = each > 0 ? (short_of + each - 1) / each : Mass(ties);
  const int least = above == 0 ? 1 : 0;
  return {prefix, int(min(Mass(ties), max(need, Mass(least))))};
}

// Walks the candidates of [first, end) by ascending id, a thousand ids at a time; f(id, mass, mass of the candidates before it)
// sees each.
template <class F>
__device__ Mass walk(Shared& s, const Weights& w, int first, int end, bool limited, Cut cut, Mass least, F f) {
  Mass running = 0;
  int ties = 0;
  for (int from = first; from < end; from += threads) {
    const int i = from + threadIdx.x;
    const float x = i < end ? w.a[i] : minus_infinity;
    const uint32_t key = key_of(x);
    bool in = x > minus_infinity && (!limited || key >= cut.key);
    if (limited) {
      const int tie = in && key == cut.key;
      if (__syncthreads_or(tie)) {
        int all;
        const int before = ties + block_before(tie, s.ints, all);
        if (tie && before >= cut.ties) in = false;
        ties += all;
      }
    }
    Mass mass = in ? w(x) : 0;
    if (mass < least) in = false, mass = 0;
    Mass all = 0;
    if (!__syncthreads_or(in)) continue;
    const Mass before = running + block_before(mass, s.totals, all);
    if (in && f(i, mass, before)) s.winner = i;
    running += all;
  }
  __syncthreads();
  return running;
}

// Where nothing cuts: the stretch in which the running sum gets over the bar, then the id.
__device__ int draw_uncut(const Tail& p, const Slot& slot, const Weights& w, const Partial* partials, double u, Shared& s) {
  const int mine = threadIdx.x;
  const Mass mass = mine < p.stretches ? partials[mine].mass : 0;
  Mass sum;
  const Mass before = block_before(mass, s.totals, sum);
  const double bar = u * double(sum);
  if (threadIdx.x == 0) s.winner = -1, s.above = -1;
  __syncthreads();
  if (double(before) <= bar && double(before + mass) > bar) s.above = mine, s.above_mass = before;
  __syncthreads();
  if (s.above < 0) return -1;
  const int from = s.above * stretch;
  const Mass base = s.above_mass;
  walk(s, w, from, min(from + stretch, w.n), false, Cut{0, 0}, least_mass(slot),
       [&](int, Mass m, Mass b) { return double(base + b) <= bar && double(base + b + m) > bar; });
  return s.winner;
}

// Ascending, `n` a power of two from 2 to most_short.
__device__ void sort_list(Mass* list, int n) {
  for (int size = 2; size <= n; size *= 2) {
    for (int apart = size / 2; apart > 0; apart /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < n / 2; i += threads) {
        const int a = 2 * i - (i & (apart - 1)), b = a + apart;
        const Mass x = list[a], y = list[b];
        if ((x > y) == ((a & size) == 0)) list[a] = y, list[b] = x;
      }
    }
  }
  __syncthreads();
}

__device__ __forceinline__ float value_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Top-k and top-p where few candidates are near enough to the best: those are listed, sorted and cut. false: they are too many.
__device__ bool draw_short(const Tail& p, const Slot& slot, const Weights& w, Spread& spread, double u, Shared& s, int& token) {
  // The bin in which the count or the mass is reached.
  const int bin = threadIdx.x, k = slot.top_k > 0 && slot.top_k < p.vocab ? slot.top_k : 0;
  const int count = bin < bins ? spread.counts[bin] : 0;
  const Mass mass = bin < bins ? spread.masses[bin] : 0;
  __syncthreads();
  if (bin < bins) spread.counts[bin] = 0, spread.masses[bin] = 0;
  int all;
  Mass total;
  const int count_before = block_before(count, s.ints, all);
  const Mass mass_before = block_before(mass, s.totals, total);
  const auto wanted_of = [&](Mass total) { return max(Mass(1), Mass(ceil(double(slot.top_p) * double(total)))); };
  Mass wanted = wanted_of(total);
  if (threadIdx.x == 0) s.above = bins - 1, s.winner = 0;
  __syncthreads();
  const bool reached = k ? count_before < k && count_before + count >= k : mass_before < wanted && mass_before + mass >= wanted;
  if (reached) s.above = bin;
  __syncthreads();
  const int last = s.above;
  __syncthreads();
  if (bin == last) s.above = count_before + count;
  __syncthreads();
  int n = s.above;
  if (n > most_short || n == 0) return false;

  // Most are further away by any rounding.
  const float far = last == bins - 1 ? INFINITY : 1.0001f * float((last + 1) / 8.0 * w.temperature), best = float(w.best);
#pragma unroll 4
  for (int from = 0; from < w.n; from += threads) {
    const int i = from + threadIdx.x;
    const float x = i < w.n ? w.a[i] : minus_infinity;
    if (x > minus_infinity && !(best - x > far) && w.bin_of(x) <= last) s.list[atomicAdd(&s.winner, 1)] = Mass(~key_of(x)) << 32 | uint32_t(i);
  }
  int room = 2;
  while (room < n) room *= 2;
  for (int i = n + threadIdx.x; i < room; i += threads) s.list[i] = ~0ull;
  sort_list(s.list, room);  // by value descending, then by id

  // A thread's neighbours: from `first` on.
  constexpr int own = most_short / threads;
  const int first = own * threadIdx.x;
  const auto mass_at = [&](int i, int n, int shift) { return i < n ? w(value_of(shift ? ~uint32_t(s.list[i] >> 32) : uint32_t(s.list[i]))) : 0; };
  if (k) n = min(n, k);
  Mass masses[own], sum = 0;
#pragma unroll
  for (int j = 0; j < own; j++) sum += masses[j] = mass_at(first + j, n, 32);
  Mass upto = block_before(sum, s.totals, total), below;
  if (k) wanted = wanted_of(total);
  int kept = 0;
  const Mass least = least_mass(slot);
#pragma unroll
  for (int j = 0; j < own; j++) {
    const bool in = first + j < n && (slot.top_p >= 1 || upto < wanted || first + j == 0) && masses[j] >= least;
    kept += in, upto += masses[j];
  }
  n = block_total(kept, s.ints);

  // What is left, by id.
  uint32_t keys[own], ids[own];
#pragma unroll
  for (int j = 0; j < own; j++) keys[j] = ~uint32_t(s.list[first + j] >> 32), ids[j] = uint32_t(s.list[first + j]);
  room = 2;
  while (room < n) room *= 2;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < own; j++)
    if (first + j < room) s.list[first + j] = first + j < n ? Mass(ids[j]) << 32 | keys[j] : ~0ull;
  sort_list(s.list, room);
  sum = 0;
#pragma unroll
  for (int j = 0; j < own; j++) sum += masses[j] = mass_at(first + j, n, 0);
  below = block_before(sum, s.totals, total);
  const double bar = u * double(total);
  if (threadIdx.x == 0) s.winner = -1;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < own; j++) {
    if (first + j < n && double(below) <= bar && double(below + masses[j]) > bar) s.winner = int(s.list[first + j] >> 32);
    below += masses[j];
  }
  __syncthreads();
  token = s.winner;
  return true;
}

// Top-k and top-p among any number of candidates.
__device__ int draw_long(const Tail& p, const Slot& slot, const Weights& w, double u, Shared& s) {
  Cut cut{0, 0};
  bool limited = false;
  if (slot.top_k > 0 && slot.top_k < p.vocab) {
    cut = find_cut(s, w, false, slot.top_k, 0, false, cut);
    limited = true;
  }
  if (slot.top_p < 1) {
    const Mass total = walk(s, w, 0, w.n, limited, cut, 0, [](int, Mass, Mass) { return false; });
    cut = find_cut(s, w, true, 0, Mass(ceil(double(slot.top_p) * double(total))), limited, cut);
    limited = true;
  }
  const Mass least = least_mass(slot);
  const Mass sum = walk(s, w, 0, w.n, limited, cut, least, [](int, Mass, Mass) { return false; });
  const double bar = u * double(sum);
  if (threadIdx.x == 0) s.winner = -1;
  __syncthreads();
  walk(s, w, 0, w.n, limited, cut, least,
       [&](int, Mass mass, Mass before) { return double(before) <= bar && double(before + mass) > bar; });
  return s.winner;
}

__device__ int draw(const Tail& p, int row, const Slot& slot, const float* a, float best, Shared& s) {
  const Weights w{a, p.vocab, double(best), double(slot.temperature)};
  const double u = draw_uniform(slot.seed_low, slot.seed_high, uint32_t(p.positions[row]));
  if (!cuts(p, slot)) return draw_uncut(p, slot, w, p.partials + int64_t(row) * p.stretches, u, s);
  int token = -1;
  if (draw_short(p, slot, w, p.spreads[row], u, s, token)) return token;
  return draw_long(p, slot, w, u, s);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) mr_spread(const Tail p, int wave) {
  __shared__ int counts[bins];
  __shared__ Mass masses[bins];
  __shared__ Mass totals[32];
  __shared__ float values[32];
  __shared__ int ids[32];
  static_assert(bins == 256);
  wait();
  release();
  const int row = blockIdx.y;
  if (row >= p.info->rows || (wave >= 0 && p.waves[row] != wave) || p.targets[row] >= 0) return;
  const Slot slot = slot_of(p, p.row_slot[row]);
  if (slot.temperature == 0) return;
  Partial* partials = p.partials + int64_t(row) * p.stretches;
  float best = minus_infinity;
  int id = 0;
  for (int i = threadIdx.x; i < p.stretches; i += blockDim.x) best = fmaxf(best, partials[i].a_max);
  block_best(best, id, values, ids);
  if (best == minus_infinity) return;
  const float* a = (adjusts(p, row, slot) ? p.a : p.l) + int64_t(row) * p.vocab;
  const Weights w{a, p.vocab, double(best), double(slot.temperature)};
  const int from = blockIdx.x * stretch, end = min(from + stretch, p.vocab);
  if (!cuts(p, slot)) {
    const Mass least = least_mass(slot);
    Mass sum = 0;
    for (int i = from + threadIdx.x; i < end; i += blockDim.x) {
      const Mass mass = w(a[i]);
      sum += mass >= least ? mass : 0;
    }
    sum = block_total(sum, totals);
    if (threadIdx.x == 0) partials[blockIdx.x].mass = sum;
    return;
  }
  counts[threadIdx.x] = 0, masses[threadIdx.x] = 0;
  __syncthreads();
  for (int i = from + threadIdx.x; i < end; i += blockDim.x) {
    const float x = a[i];
    if (x == minus_infinity) continue;
    const int bin = w.bin_of(x);
    atomicAdd(counts + bin, 1);
    atomicAdd(masses + bin, w(x));
  }
  __syncthreads();
  if (counts[threadIdx.x] == 0) return;
  atomicAdd(p.spreads[row].counts + threadIdx.x, counts[threadIdx.x]);
  atomicAdd(p.spreads[row].masses + threadIdx.x, masses[threadIdx.x]);
}

extern "C" __global__ void __launch_bounds__(threads) mr_sample(const Tail p, int wave) {
  extern __shared__ uint8_t shared_bytes[];
  Shared& s = *reinterpret_cast<Shared*>(shared_bytes);
  wait();
  release();
  const int row = blockIdx.x;
  if (row >= p.info->rows || (wave >= 0 && p.waves[row] != wave)) return;
  const Partial* partials = p.partials + int64_t(row) * p.stretches;
  float max = minus_infinity, a_max = minus_infinity;
  int best = 0x7fffffff, a_best = 0x7fffffff;
  for (int i = threadIdx.x; i < p.stretches; i += threads) {
    const Partial& q = partials[i];
    if (better(q.max, q.best, max, best)) max = q.max, best = q.best;
    if (better(q.a_max, q.a_best, a_max, a_best)) a_max = q.a_max, a_best = q.a_best;
  }
  block_best(max, best, s.values, s.ints);
  __syncthreads();
  block_best(a_max, a_best, s.values, s.ints);
  double sum = 0;
  for (int i = threadIdx.x; i < p.stretches; i += threads)
    if (partials[i].max > minus_infinity) sum += partials[i].sum * exp(double(partials[i].max) - double(max));
  sum = block_total(sum, s.doubles);
  const double log_z = sum > 0 ? log(sum) : 0;

  const float* l = p.l + int64_t(row) * p.vocab;
  const int slot_index = p.row_slot[row], target = p.targets[row];
  const Slot slot = slot_of(p, slot_index);
  int token = target;
  if (target < 0) {
    const float* a = adjusts(p, row, slot) ? p.a + int64_t(row) * p.vocab : l;
    if (a_max == minus_infinity) token = best;
    else if (slot.temperature == 0) token = a_best;
    else token = draw(p, row, slot, a, a_max, s);
    if (token < 0) token = a_best;
  }
  __syncthreads();
  const float x = l[token];
  int rank = 0;
  if (token != best) {
    int ahead = 0;
    for (int i = threadIdx.x; i < p.vocab; i += threads) ahead += better(l[i], i, x, token);
    rank = block_total(ahead, s.ints);
  }
  const auto logprob = [&](float z) { return z == minus_infinity ? minus_infinity : float(double(z) - max - log_z); };

  // token, logprob, rank of every row, then each row's top ids and logprobs.
  int* out = p.results + int64_t(p.info->ring) * p.result_words;
  if (threadIdx.x == 0) {
    out[row] = token;
    out[p.max_rows + row] = __float_as_int(logprob(x));
    out[2 * p.max_rows + row] = rank;
    if (target < 0) {
      p.last_token[slot_index] = token;
      if (slot.counted) p.counts[int64_t(slot_index) * p.vocab + token]++;
    }
  }
  // The next best after the last one, again and again.
  const int top = min(p.info->top, p.max_top);
  int* top_out = out + 3 * p.max_rows + int64_t(row) * 2 * top;
  float last = INFINITY;
  int last_id = -1;
  for (int j = 0; j < top; j++) {
    float next = minus_infinity;
    int id = 0x7fffffff;
    for (int i = threadIdx.x; i < p.vocab; i += threads) {
      const float z = l[i];
      if (z > minus_infinity && better(last, last_id, z, i) && better(z, i, next, id)) next = z, id = i;
    }
    __syncthreads();
    block_best(next, id, s.values, s.ints);
    last = next, last_id = id;
    if (threadIdx.x == 0) {
      top_out[j] = id == 0x7fffffff ? -1 : id;
      top_out[top + j] = __float_as_int(logprob(next));
    }
  }
  if (threadIdx.x == 0) __threadfence_system();
}
