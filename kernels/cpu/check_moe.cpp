// Owns: mixtures of experts through the C ABI, held against plain loops in double precision: which experts a token goes to
// and what they make of it, weights in f32 and in 8 bits side by side; and that no bit depends on how the tokens were cut
// into calls. Part of check_program.cpp's program.
#include <algorithm>
#include <cstring>

#include "api.h"
#include "check.h"
#include "program.h"

namespace {

using mr::Storage;
using std::vector;

constexpr int vocab = 64, experts = 6, used = 2, cols = 64, hidden = 96, tokens = 41, silu = 0;

// Of gate and up, and of down.
struct Kinds {
  std::string name;
  Storage gate, up, down;
  // Inputs of 8-bit products are rounded to 127ths of the largest.
  double bound;
};

struct Driver {
  void* program = nullptr;
  int64_t x, chosen, shares, middle, out, y;

  Driver(const Kinds& kinds, const vector<float>& table) {
    const vector<Storage> types{kinds.gate, kinds.up};
    const auto act = [](Storage type) { return mr_act(int(type), 1); };
    vector<int> inputs{act(kinds.gate)};
    if (act(kinds.up) != inputs[0]) inputs.push_back(act(kinds.up));
    const int most = tokens * used;
    Areas a;
    x = a.take(tokens * cols), chosen = a.take(most), shares = a.take(most);
    middle = a.take(int64_t(most) * 2 * hidden), out = a.take(int64_t(most) * cols), y = a.take(tokens * cols);
    const auto prepared = [&](int kind, int width) {
      return double(a.take(int64_t(mr_act_bytes(kind, most, width)) / 4 + 16));
    };
    vector<double> moe{double(x), cols, double(chosen), double(shares), used, cols, hidden, silu, double(middle), double(out)};
    moe.insert(moe.end(), {double(act(kinds.down)), prepared(act(kinds.down), hidden), double(inputs.size())});
    for (int kind : inputs) moe.insert(moe.end(), {double(kind), prepared(kind, cols)});
    moe.push_back(experts);
    for (int e = 0; e < experts; e++) moe.insert(moe.end(), {3.0 * e + 1, 3.0 * e + 2, 3.0 * e + 3});

    // Scores are the first numbers of x.
    vector<vector<double>> ops;
    const auto op = [&](int code, vector<double> numbers) {
      numbers.insert(numbers.begin(), {double(code), 0, double(numbers.size())});
      ops.push_back(std::move(numbers));
    };
    op(mr::code_embed, {0, double(x), cols, 1, 1, 0});
    op(mr::code_route, {double(x), cols, experts, used, -1, double(chosen), double(shares), 1, 1, 1.5});
    op(mr::code_moe, moe);
    op(mr::code_moe_sum, {double(y), cols});

    vector<double> d{2, 1, tokens, tokens, vocab, 0, 1, double(a.end), 64, 0, 0, 1 + 3 * experts, 0, vocab, cols};
    for (int e = 0; e < experts; e++) {
      d.insert(d.end(), {double(int(kinds.gate)), hidden, cols, double(int(kinds.up)), hidden, cols});
      d.insert(d.end(), {double(int(kinds.down)), cols, hidden});
    }
    d.push_back(double(ops.size()));
    for (const auto& numbers : ops) d.insert(d.end(), numbers.begin(), numbers.end());
    char message[256] = "";
    program = mr_create(d.data(), double(d.size()), message, sizeof message);
    expect(program != nullptr, "a program of experts: " + std::string(message));
    if (!program) return;
    mr_pack(program, 0, reinterpret_cast<const uint8_t*>(table.data()), 4 * cols, 0, 0, nullptr);
    Random r{11};
    for (int e = 0; e < experts; e++) {
      pack(r, 3 * e + 1, kinds.gate, hidden, cols), pack(r, 3 * e + 2, kinds.up, hidden, cols);
      pack(r, 3 * e + 3, kinds.down, cols, hidden);
    }
  }
  Driver(const Driver&) = delete;
  ~Driver() {
    if (program) mr_destroy(program);
  }
  void pack(Random& r, int weight, Storage type, int rows, int width) const {
    const vector<float> values = r.floats(rows * width, 0.3);
    vector<uint8_t> bytes(values.size() * 4);
    const auto* source = reinterpret_cast<const uint8_t*>(values.data());
    if (type == Storage::F32)
      std::memcpy(bytes.data(), source, bytes.size());
    else
      mr_quantize(int(Storage::F32), source, double(values.size()), int(type), bytes.data(), 1);
    const double row_bytes = type == Storage::F32 ? 4.0 * width : 34.0 * width / 32;
    mr_pack(program, weight, bytes.data(), row_bytes, 0, 0, nullptr);
  }
  // As the program keeps it: rounded, where it is.
  vector<vector<float>> unpacked(int weight, int rows, int width) const {
    vector<vector<float>> out(size_t(rows), vector<float>(static_cast<size_t>(width)));
    for (int row = 0; row < rows; row++) mr_unpack_row(program, weight, row, out[size_t(row)].data());
    return out;
  }
  // One sequence's tokens [from, to), appended to all three.
  void call(int from, int to, vector<int32_t>& to_experts, vector<float>& to_shares, vector<float>& to_y) const {
    const int n = to - from;
    vector<int32_t> ids(static_cast<size_t>(n));
    for (int t = 0; t < n; t++) ids[size_t(t)] = (from + t) * 5 % vocab;
    const int32_t counts[5] = {n, 1, 0, 0, 0}, zero[2] = {0, 0}, start[2] = {0, n}, at[1] = {from};
    const float none = 0;
    expect(mr_run(program, counts, ids.data(), zero, start, at, zero, zero, zero, zero, zero, zero, zero, zero, &none) == 0,
           "a step of experts runs");
    const auto append = [&](int64_t area, int each, auto& to) {
      vector<float> got(size_t(n) * size_t(each));
      mr_read_workspace(program, double(area), got.data(), double(got.size()));
      const size_t old = to.size();
      to.resize(old + got.size());
      std::memcpy(to.data() + old, got.data(), 4 * got.size());
    };
    append(chosen, used, to_experts), append(shares, used, to_shares), append(y, cols, to_y);
  }
};

void check(const Kinds& kinds) {
  Random r{5};
  const vector<float> table = r.floats(vocab * cols);
  const Driver d(kinds, table);
  if (!d.program) return;
  vector<int32_t> chosen, cut_chosen;
  vector<float> shares, y, cut_shares, cut_y;
  d.call(0, tokens, chosen, shares, y);

  vector<double> want_shares, want_y;
  for (int t = 0; t < tokens; t++) {
    const float* x = table.data() + int64_t(t * 5 % vocab) * cols;
    vector<int> order(experts);
    for (int e = 0; e < experts; e++) order[size_t(e)] = e;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return x[a] > x[b]; });
    double sum = 0;
    for (int j = 0; j < used; j++) sum += std::exp(double(x[order[size_t(j)]]));
    vector<double> row(cols, 0.0);
    for (int j = 0; j < used; j++) {
      const int e = order[size_t(j)];
      expect(chosen[size_t(t * used + j)] == e, kinds.name + ": token " + std::to_string(t) + " goes to its experts");
      const double share = 1.5 * std::exp(double(x[e])) / sum;
      want_shares.push_back(share);
      const auto gate = d.unpacked(3 * e + 1, hidden, cols), up = d.unpacked(3 * e + 2, hidden, cols);
      const auto down = d.unpacked(3 * e + 3, cols, hidden);
      vector<double> middle(hidden);
      for (size_t i = 0; i < hidden; i++) {
        double g = 0, u = 0;
        for (size_t k = 0; k < cols; k++) g += double(gate[i][k]) * x[k], u += double(up[i][k]) * x[k];
        middle[i] = g / (1 + std::exp(-g)) * u;
      }
      for (size_t i = 0; i < cols; i++)
        for (size_t k = 0; k < hidden; k++) row[i] += share * double(down[i][k]) * middle[k];
    }
    want_y.insert(want_y.end(), row.begin(), row.end());
  }
  near(want_shares, shares, 1e-6, kinds.name + ", shares");
  near(want_y, y, kinds.bound, kinds.name + ", sums");

  for (int at = 0, piece = 1; at < tokens; at += piece, piece += 4)
    d.call(at, std::min(at + piece, tokens), cut_chosen, cut_shares, cut_y);
  expect(chosen == cut_chosen && std::memcmp(shares.data(), cut_shares.data(), 4 * shares.size()) == 0 &&
             std::memcmp(y.data(), cut_y.data(), 4 * y.size()) == 0,
         kinds.name + ": bits do not depend on the calls");
}

}  // namespace

void check_moe() {
  check({"experts in f32", Storage::F32, Storage::F32, Storage::F32, 1e-5});
  check({"experts in f32 and 8 bits", Storage::F32, Storage::Q8_0, Storage::Q8_0, 0.06});
}
