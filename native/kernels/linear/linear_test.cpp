// Every linear kernel against the exact product in double, for every format, odd sizes, and both ways of batching.
#include <algorithm>
#include <cstdlib>
#include <new>

#include "kernels/embedding/embedding.h"
#include "kernels/linear/linear_test_weights.h"
#include "testing/check.h"

using namespace datong;
using namespace datong::testing;

namespace {

struct Aligned {  // 64-byte aligned memory of exactly n bytes
  uint8_t* p;
  explicit Aligned(size_t n) : p(static_cast<uint8_t*>(::operator new(n ? n : 1, std::align_val_t{64}))) {}
  ~Aligned() { ::operator delete(p, std::align_val_t{64}); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
};

struct Problem {
  int64_t out, in, tokens;
};

// Prepares as the executor does (groups of rows), then runs.
void run(const LinearKernel& k, const WeightView& w, const float* x, int64_t x_stride, int64_t tokens, int64_t begin,
         int64_t end, float* y, int64_t y_stride, const Epilogue& e) {
  const int64_t room = (tokens + kPrepareRows - 1) / kPrepareRows * kPrepareRows;
  const size_t per_token = k.prepared_bytes(w.in);
  CHECK(per_token % 64 == 0, "%s prepares %zu bytes", k.name, per_token);
  Aligned prepared(per_token * static_cast<size_t>(room));
  std::memset(prepared.p, end % 2 ? 0xff : 0x85, per_token * static_cast<size_t>(room));
  if (per_token)
    for (int64_t t = 0; t < tokens; t += kPrepareRows)
      k.prepare(x, x_stride, w.in, t, std::min(t + kPrepareRows, tokens), prepared.p);
  Aligned scratch(k.scratch_bytes ? k.scratch_bytes(w, tokens) : 0);
  k.run(w, x, x_stride, prepared.p, tokens, begin, end, y, y_stride, e, scratch.p);
}

// A weight with what the kernel packed of it, in two parts; the stored pieces are taken away.
struct Packed {
  WeightView view;
  Aligned memory;
  Packed(const LinearKernel& k, const WeightView& w) : view(w), memory(k.packed_bytes(w)) {
    const int64_t middle = w.out / 2 / k.out_multiple * k.out_multiple;
    const size_t size = k.packed_bytes(w);
    std::memset(memory.p, 0x5a, size);
    k.pack(w, 0, w.out, memory.p);
    std::vector<uint8_t> whole(memory.p, memory.p + size);
    std::memset(memory.p, 0xa5, size);
    k.pack(w, 0, middle, memory.p);
    k.pack(w, middle, w.out, memory.p);
    CHECK(std::memcmp(whole.data(), memory.p, size) == 0, "%s does not fill what it packs, or packs parts otherwise", k.name);
    view.packed = memory.p;
    view.codes = nullptr;
    view.scale = view.min = nullptr;
    view.super_scale = view.super_min = nullptr;
  }
};

// The four codes that are multiplied together with element i: of nibble formats the even or the odd ones of eight.
int64_t group_of(int64_t i, bool nibbles) { return nibbles ? i / 8 * 2 + i % 2 : i / 4; }

// Activations as the kernels see them, by the definitions of linear_prepared.h and linear_outliers.h. `steps`: what the values
// of each block are multiples of.
std::vector<double> quantised(const float* x, int64_t n, bool nibbles, std::vector<float>& steps) {
  std::vector<double> q(static_cast<size_t>(n));
  steps.clear();
  float lanes[4] = {0, 0, 0, 0};
  for (int64_t b = 0; b < n; b += 32) {
    float top = 0;
    for (int64_t i = b; i < b + 32; ++i) top = std::max(top, std::fabs(x[i]));
    lanes[b / 32 % 4] += top;
  }
  const float limit = 1.5f * (((lanes[0] + lanes[2]) + (lanes[1] + lanes[3])) / static_cast<float>(n / 32));
  for (int64_t b = 0; b < n; b += 32) {
    int64_t largest = b;
    for (int64_t i = b; i < b + 32; ++i)
      if (std::fabs(x[i]) > std::fabs(x[largest])) largest = i;
    const float top = std::fabs(x[largest]);
    float rest = 0;
    for (int64_t i = b; i < b + 32; ++i)
      if (group_of(i, nibbles) != group_of(largest, nibbles)) rest = std::max(rest, std::fabs(x[i]));
    float step = top / 127.0f, inverse = 127.0f / top;
    if (top - rest > limit) {
      step = std::max(rest / 127.0f, top / 8191.5f);
      inverse = std::min(127.0f / rest, 8191.5f / top);
    }
    if (!(top > 1e-35f)) step = inverse = 0;
    steps.push_back(step);
    for (int64_t i = b; i < b + 32; ++i) q[static_cast<size_t>(i)] = double(std::nearbyint(x[i] * inverse)) * step;
  }
  return q;
}

// `w`: the weight as it is stored, or packed.
void check(const LinearKernel& k, const TestWeight& weight, const WeightView& w, const Problem& p, bool epilogue) {
  const int64_t x_stride = p.in + 3, y_stride = p.out + 5;
  std::vector<float> x = random_floats(p.tokens * x_stride, 7);
  for (int64_t i = 0; i < std::min<int64_t>(p.in, 32); ++i) x[static_cast<size_t>(i)] = 0;  // a block of zeros
  const bool quantises = w.block > 0 && !w.tile && std::strstr(k.name, "exact") == nullptr;
  for (int64_t t = 0; quantises && t < p.tokens; ++t) {  // outliers in every second block, of neighbours often in one place
    for (int64_t b = 32 + t % 2 * 32; b + 32 <= p.in; b += 64)
      x[static_cast<size_t>(t * x_stride + b + (t % 3 ? 7 : (b / 32 * 11 + t) % 32))] *= t % 5 ? 40.0f : 4000.0f;
  }
  const std::vector<float> bias = random_floats(p.out, 8), residual = random_floats(p.tokens * (p.out + 1), 9);
  const Epilogue e = epilogue ? Epilogue{bias.data(), residual.data(), p.out + 1} : Epilogue{nullptr, nullptr, 0};
  Guarded y(p.tokens * y_stride);
  const float untouched = y[0];
  // in two parts, as two threads would
  const int64_t middle = std::min(p.out, p.out / 2 / k.out_multiple * k.out_multiple);
  run(k, w, x.data(), x_stride, p.tokens, 0, middle, y.data(), y_stride, e);
  run(k, w, x.data(), x_stride, p.tokens, middle, p.out, y.data(), y_stride, e);
  CHECK(y.intact(), "%s wrote outside y", k.name);

  const std::vector<double> dense = weight.dense();
  const bool rounds_x = std::strstr(k.name, "avx512bf16") != nullptr;  // activations rounded to bf16
  const bool nibbles = w.codes_dtype == DT_I4 || w.codes_dtype == DT_U4;
  std::vector<float> steps;
  double worst_ratio = 0;
  for (int64_t t = 0; t < p.tokens; ++t) {
    const float* a = x.data() + t * x_stride;
    const std::vector<double> q = quantises ? quantised(a, p.in, nibbles, steps) : std::vector<double>(a, a + p.in);
    for (int64_t o = 0; o < p.out; ++o) {
      double seen = 0, exact = 0, size = 0, bound = 0;
      for (int64_t i = 0; i < p.in; ++i) {
        const double wi = dense[static_cast<size_t>(o * p.in + i)];
        seen += wi * q[static_cast<size_t>(i)];
        exact += wi * a[i];
        size += weight.size_at(o, i) * std::fabs(a[i]);
      }
      // Quantising x moves each element by at most half a step.
      for (int64_t b = 0; quantises && b < p.in; b += 32) {
        double sum = 0;
        for (int64_t i = b; i < b + 32; ++i) sum += std::fabs(dense[static_cast<size_t>(o * p.in + i)]);
        bound += 0.501 * steps[static_cast<size_t>(b / 32)] * sum;
      }
      double add = 0;
      if (e.bias) add = double(e.bias[o]) + e.residual[t * e.residual_stride + o];
      const double got = y[t * y_stride + o];
      const double rounding = (rounds_x ? 1.0 / 256 : 5e-7) * size + 1e-6 * std::fabs(add) + 1e-7;
      worst_ratio = std::max(worst_ratio, std::fabs(got - seen - add) / rounding);
      CHECK(std::fabs(got - seen - add) <= rounding, "%s out %lld in %lld tokens %lld at [%lld, %lld]: %g, wanted %g",
            k.name, (long long)p.out, (long long)p.in, (long long)p.tokens, (long long)t, (long long)o, got, seen + add);
      CHECK(std::fabs(got - exact - add) <= bound + rounding, "%s: %g is off the exact %g", k.name, got, exact + add);
      if (failures > 20) return;
    }
    for (int64_t o = p.out; o < y_stride; ++o)
      CHECK(std::memcmp(&untouched, y.data() + t * y_stride + o, 4) == 0, "%s wrote between rows", k.name);
  }
  if (std::getenv("DATONG_TEST_VERBOSE")) std::printf("%-20s %g of the bound\n", k.name, worst_ratio);
}

// A token's result depends neither on its neighbours nor on packing: the same bits whatever the batch (docs/adr/0027).
void check_batching(const LinearKernel& k, const WeightView& w) {
  const int64_t tokens = 37;
  const std::vector<float> x = random_floats(tokens * w.in, 11);
  std::vector<float> all(static_cast<size_t>(tokens * w.out)), one(all.size());
  const Epilogue none{nullptr, nullptr, 0};
  run(k, w, x.data(), w.in, tokens, 0, w.out, all.data(), w.out, none);
  for (int64_t t = 0; t < tokens; ++t)
    run(k, w, x.data() + t * w.in, w.in, 1, 0, w.out, one.data() + t * w.out, w.out, none);
  int64_t other = 0;
  for (size_t i = 0; i < all.size(); ++i) other += std::memcmp(&all[i], &one[i], 4) != 0;
  CHECK(other == 0, "%s: %lld of %zu results have other bits with 37 tokens at once than one by one", k.name, (long long)other, all.size());
  if (!k.pack) return;
  const Packed packed(k, w);
  const int64_t unit = w.super_block ? w.super_block : w.block;
  std::vector<float> row(static_cast<size_t>(w.in)), again(row.size());
  for (int64_t o = 0; o < w.out; ++o) {
    embedding_row(w, o, row.data());
    for (int64_t at = 0; at < w.in; at += unit) {
      alignas(8) uint8_t room[kStoredRoom];
      embedding_row(k.stored(packed.view, o, at, unit, room), 0, again.data() + at);
    }
    CHECK(std::memcmp(row.data(), again.data(), row.size() * 4) == 0, "%s: row %lld is stored otherwise than it was", k.name, (long long)o);
  }
  for (int64_t n : {1, 2, 3, 4, 5, 37}) {
    run(k, packed.view, x.data(), w.in, n, 0, w.out, one.data(), w.out, none);
    CHECK(std::memcmp(one.data(), all.data(), static_cast<size_t>(n * w.out) * 4) == 0, "%s: packed, %lld tokens have other bits", k.name, (long long)n);
  }
}

// Of block formats all kernels but the reference round alike and sum in one order: the same bits on every processor.
void check_alike(const std::vector<LinearKernel>& kernels, const WeightView& w, int64_t tokens) {
  std::vector<float> x = random_floats(tokens * w.in, 13);
  for (int64_t i = 5; i < tokens * w.in; i += 71) x[static_cast<size_t>(i)] *= 30.0f;
  std::vector<float> first, y(static_cast<size_t>(tokens * w.out));
  const char* name = nullptr;
  for (const LinearKernel& k : kernels) {
    run(k, w, x.data(), w.in, tokens, 0, w.out, y.data(), w.out, Epilogue{nullptr, nullptr, 0});
    if (!name) first = y, name = k.name;
    CHECK(std::memcmp(first.data(), y.data(), y.size() * 4) == 0, "%s and %s differ with %lld tokens", name, k.name, (long long)tokens);
  }
}

// What is not finite is not hidden.
void check_not_finite(const LinearKernel& k, const TestWeight& weight, float bad) {
  const WeightView& w = weight.view;
  std::vector<float> x = random_floats(9 * w.in, 12);
  x[static_cast<size_t>(4 * w.in + w.in / 2)] = bad;
  std::vector<float> y(static_cast<size_t>(9 * w.out));
  run(k, w, x.data(), w.in, 9, 0, w.out, y.data(), w.out, Epilogue{nullptr, nullptr, 0});
  for (int64_t t = 0; t < 9; ++t)
    for (int64_t o = 0; o < w.out; ++o)
      CHECK(std::isfinite(y[static_cast<size_t>(t * w.out + o)]) == (t != 4), "%s hides %g, or spreads it", k.name, bad);
}

}  // namespace

int main(int argc, char** argv) {
  const CpuFeatures cpu = detect_cpu_features();
  const std::vector<Problem> block_problems = {{1, 256, 1}, {5, 512, 2},  {33, 768, 3}, {16, 256, 5},
                                               {20, 1536, 7}, {50, 512, 13}, {17, 256, 29}};
  const std::vector<Problem> small_problems = {{7, 32, 1}, {21, 64, 4}, {18, 576, 1}, {19, 576, 26}, {4, 96, 6}, {9, 160, 12}};
  const std::vector<Problem> plain_problems = {{1, 1, 1}, {3, 17, 2}, {19, 33, 5}, {34, 100, 9}, {21, 576, 4}, {18, 63, 31},
                                               {9, 2055, 75}, {6, 1100, 130}};
  std::vector<LinearKernel> kernels(linear_kernels().begin(), linear_kernels().end());
  kernels.insert(kernels.end(), exact_linear_kernels().begin(), exact_linear_kernels().end());
  kernels.insert(kernels.end(), bf16_linear_kernels().begin(), bf16_linear_kernels().end());
  int tested = 0;
  for (const char* format : kFormats) {
    const bool plain = TestWeight(format, 1, 256, 1).view.block == 0, k = format[3] == 'k';
    std::vector<Problem> problems = block_problems;
    const std::vector<Problem>& more = plain ? plain_problems : small_problems;
    if (!k) problems.insert(problems.end(), more.begin(), more.end());
    for (const Problem& p : problems) {
      const TestWeight weight(format, p.out, p.in, static_cast<uint32_t>(p.out * 1000 + p.in));
      bool reference = false;
      for (const LinearKernel& kernel : kernels) {
        if (argc > 1 && !std::strstr(kernel.name, argv[1])) continue;
        if (!kernel.usable(cpu, weight.view)) continue;
        ++tested;
        reference |= (weight.view.tile || std::strstr(kernel.name, format)) && std::strstr(kernel.name, "_ref");
        check(kernel, weight, weight.view, p, false);
        check(kernel, weight, weight.view, p, true);
        if (kernel.pack) {
          const Packed packed(kernel, weight.view);
          check(kernel, weight, packed.view, p, true);
        }
        if (p.in % 512 == 0) check_batching(kernel, weight.view);
        if (p.in == 512) check_not_finite(kernel, weight, std::nanf(""));
        if (p.in == 512) check_not_finite(kernel, weight, INFINITY);
      }
      CHECK(reference || argc > 1, "%s has no reference kernel", format);
      std::vector<LinearKernel> alike;
      for (const LinearKernel& kernel : linear_kernels())
        if (weight.view.block && !weight.view.tile && !std::strstr(kernel.name, "_ref") && kernel.usable(cpu, weight.view)) alike.push_back(kernel);
      check_alike(alike, weight.view, p.tokens);
    }
  }
  CHECK(tested > 0, "no kernel was tested");
  return result();
}
