// Each variant against _ref: odd sizes, strides, in place; large, infinite and NaN gates.
#include "kernels/glu/glu.h"

#include <limits>

#include "testing/check.h"

using namespace datong;
using namespace datong::testing;

int main() {
  const float one = 1;
  float y = 0;
  silu_glu_ref({&one, 1, &one, 1, &y, 1, 1, 1});
  CHECK(std::fabs(y - 0.7310586f) < 1e-6f, "silu(1) = %g", y);
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  const CpuFeatures features = detect_cpu_features();
  for (const auto& variant : silu_glu_variants()) {
    if (!variant.usable(features)) continue;
    for (int64_t n : {1, 7, 8, 15, 16, 17, 31, 33, 64, 65, 1000}) {
      const int64_t rows = 3, stride = n + 5;
      auto gate = random_floats(rows * stride, 1, 20), up = random_floats(rows * stride, 2);
      Guarded want(rows * stride), got(rows * stride);
      silu_glu_ref({gate.data(), stride, up.data(), stride, want.data(), stride, rows, n});
      variant.kernel({gate.data(), stride, up.data(), stride, got.data(), stride, rows, n});
      CHECK(nmse(got.data(), want.data(), rows * stride) <= 1e-12, "%s n %lld", variant.name, static_cast<long long>(n));
      for (int64_t i = n; i < stride; ++i)
        CHECK(std::memcmp(got.data() + i, want.data() + i, 4) == 0, "%s writes between rows", variant.name);
      CHECK(got.intact(), "%s writes outside", variant.name);
      variant.kernel({gate.data(), stride, up.data(), stride, gate.data(), stride, rows, n});
      CHECK(nmse(gate.data(), want.data(), n) <= 1e-12, "%s in place", variant.name);
    }
    const float special[] = {inf, -100.0f, -88.8f, 100.0f, nan, 0.0f, -0.0f, -3e38f};
    float ups[8], got[8];
    for (float& u : ups) u = 2;
    variant.kernel({special, 8, ups, 8, got, 8, 1, 8});
    CHECK(got[0] == inf && got[1] < 0 && got[1] > -1e-35f && got[3] == 200.0f && std::isnan(got[4]) && got[5] == 0 &&
              got[6] == 0 && got[7] == 0,
          "%s: %g %g %g %g %g", variant.name, got[0], got[1], got[3], got[4], got[7]);
  }
  return result();
}
