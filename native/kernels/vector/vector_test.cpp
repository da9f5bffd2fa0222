// Every variant against double precision, at odd lengths; widening bit for bit.
#include "kernels/vector/vector.h"

#include <algorithm>
#include <cstring>

#include "core/convert.h"
#include "testing/check.h"

using namespace datong;
using namespace datong::testing;

int main() {
  const CpuFeatures features = detect_cpu_features();
  for (const auto& variant : vector_variants()) {
    if (!variant.usable(features)) continue;
    for (int64_t n : {0, 1, 3, 8, 15, 16, 17, 63, 64, 65, 130, 576}) {
      const auto a = random_floats(n, 1), b = random_floats(n, 2);
      double wanted = 0, size = 0;
      for (int64_t i = 0; i < n; ++i) {
        const double p = double(a[static_cast<size_t>(i)]) * b[static_cast<size_t>(i)];
        wanted += p;
        size += std::fabs(p);
      }
      const float got = variant.kernel.dot(a.data(), b.data(), n);
      CHECK(std::fabs(got - wanted) <= 1e-6 * size, "%s dot of %lld: %g, wanted %g", variant.name, (long long)n, got, wanted);
      Guarded y(n);
      std::copy(b.begin(), b.end(), y.data());
      variant.kernel.axpy(0.7f, a.data(), y.data(), n);
      for (int64_t i = 0; i < n; ++i) {
        const size_t k = static_cast<size_t>(i);
        CHECK(std::fabs(y[i] - (b[k] + 0.7f * a[k])) <= 1e-6 * (std::fabs(b[k]) + std::fabs(a[k])), "%s axpy of %lld",
              variant.name, (long long)n);
      }
      for (bool bf16 : {false, true}) {
        std::vector<uint16_t> halves(static_cast<size_t>(n));
        for (size_t i = 0; i < halves.size(); ++i) halves[i] = bf16 ? f32_to_bf16(a[i]) : f32_to_f16(a[i]);
        variant.kernel.widen(halves.data(), bf16, y.data(), n);
        for (int64_t i = 0; i < n; ++i) {
          const float want = bf16 ? bf16_to_f32(halves[static_cast<size_t>(i)]) : f16_to_f32(halves[static_cast<size_t>(i)]);
          CHECK(std::memcmp(y.data() + i, &want, 4) == 0, "%s widens %lld of %lld wrongly", variant.name, (long long)i, (long long)n);
        }
      }
      CHECK(y.intact(), "%s writes outside", variant.name);
    }
  }
  return result();
}
