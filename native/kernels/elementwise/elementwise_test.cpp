// Each variant against _ref: odd sizes, in place; NaN and infinities of sigmoid.
#include "kernels/elementwise/elementwise.h"

#include <limits>

#include "testing/check.h"

using namespace datong;
using namespace datong::testing;

static void compare(const char* op, std::span<const Variant<Elementwise>> variants, double bound) {
  const CpuFeatures features = detect_cpu_features();
  const Elementwise ref = variants.back().kernel;
  for (const auto& variant : variants) {
    if (!variant.usable(features)) continue;
    for (int64_t n : {0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 64, 1000}) {
      auto a = random_floats(n, 1, 10);
      const auto b = random_floats(n, 2);
      std::vector<float> want(static_cast<size_t>(n));
      ref(a.data(), b.data(), want.data(), n);
      Guarded got(n);
      variant.kernel(a.data(), b.data(), got.data(), n);
      CHECK(nmse(got.data(), want.data(), n) <= bound, "%s %s n %lld", op, variant.name, static_cast<long long>(n));
      CHECK(got.intact(), "%s %s writes outside", op, variant.name);
      variant.kernel(a.data(), b.data(), a.data(), n);
      CHECK(nmse(a.data(), want.data(), n) <= bound, "%s %s in place", op, variant.name);
    }
  }
}

static void compare_scale() {
  const CpuFeatures features = detect_cpu_features();
  for (const auto& variant : scale_variants()) {
    if (!variant.usable(features)) continue;
    for (int64_t n : {0, 1, 7, 8, 9, 17, 1000}) {
      auto a = random_floats(n, 3, 10);
      Guarded got(n);
      variant.kernel(a.data(), -0.7f, got.data(), n);
      for (int64_t i = 0; i < n; ++i) CHECK(got.data()[i] == a[static_cast<size_t>(i)] * -0.7f, "scale %s", variant.name);
      CHECK(got.intact(), "scale %s writes outside", variant.name);
    }
  }
}

int main() {
  compare_scale();
  compare("add", add_variants(), 0);
  compare("mul", mul_variants(), 0);
  compare("sigmoid", sigmoid_variants(), 1e-12);
  const float a[] = {1, 2}, b[] = {3, -4};
  float y[2];
  add_ref(a, b, y, 2);
  CHECK(y[0] == 4 && y[1] == -2);
  mul_ref(a, b, y, 2);
  CHECK(y[0] == 3 && y[1] == -8);
  const float inf = std::numeric_limits<float>::infinity();
  const CpuFeatures features = detect_cpu_features();
  for (const auto& variant : sigmoid_variants()) {
    if (!variant.usable(features)) continue;
    const float x[] = {inf, -inf, 0, std::nanf(""), 1, 1000, -1000, -0.0f};
    float s[8];
    variant.kernel(x, x, s, 8);
    CHECK(s[0] == 1 && s[1] < 1e-37f && s[2] == 0.5f && std::isnan(s[3]) && std::fabs(s[4] - 0.7310586f) < 1e-6f &&
              s[5] == 1 && s[6] < 1e-37f && s[7] == 0.5f,
          "%s: %g %g %g %g %g", variant.name, s[0], s[1], s[2], s[3], s[4]);
  }
  return result();
}
