// Each variant against _ref: odd sizes, with and without the addition, in place.
#include "kernels/rms_norm/rms_norm.h"

#include "testing/check.h"

using namespace datong;
using namespace datong::testing;

static void compare(const Variant<RmsNorm>& variant, int64_t groups, int64_t n, bool add, bool alias) {
  const int64_t count = groups * n;
  const auto x = random_floats(count, 1), b = random_floats(count, 2), w = random_floats(n, 3);
  std::vector<float> sum(static_cast<size_t>(count)), y(static_cast<size_t>(count));
  RmsNormArgs want{x.data(), add ? b.data() : nullptr, add ? sum.data() : nullptr, w.data(), y.data(), groups, n, 1e-5f, 1};
  rms_norm_ref(want);
  Guarded got_sum(count), got_y(count);
  for (int64_t i = 0; i < count; ++i) got_y.data()[i] = x[static_cast<size_t>(i)];
  RmsNormArgs got = want;
  got.y = got_y.data();
  if (add) got.sum = got_sum.data();
  if (alias) got.x = got_y.data();
  variant.kernel(got);
  CHECK(nmse(got_y.data(), y.data(), count) <= 1e-12, "%s groups %lld n %lld", variant.name, static_cast<long long>(groups),
        static_cast<long long>(n));
  if (add) CHECK(worst(got_sum.data(), sum.data(), count) == 0, "%s: sums are exact", variant.name);
  CHECK(got_y.intact() && got_sum.intact(), "%s n %lld writes outside", variant.name, static_cast<long long>(n));
}

int main() {
  // by hand: mean of squares of (3, 4) is 12.5
  const float x[] = {3, 4}, w[] = {1, 2};
  float y[2];
  rms_norm_ref({x, nullptr, nullptr, w, y, 1, 2, 1e-12f, 0});
  CHECK(std::fabs(y[0] - 3 / std::sqrt(12.5f)) < 1e-6f && std::fabs(y[1] - 8 / std::sqrt(12.5f)) < 1e-6f);
  const CpuFeatures features = detect_cpu_features();
  for (const auto& variant : rms_norm_variants()) {
    if (!variant.usable(features)) continue;
    for (int64_t n : {1, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 576, 4099})
      for (int64_t groups : {0, 1, 3})
        for (bool add : {false, true})
          for (bool alias : {false, true}) compare(variant, groups, n, add, alias);
  }
  return result();
}
