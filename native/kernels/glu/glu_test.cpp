// Each variant against _ref, and that against the formulas: odd sizes, strides, in place; large, infinite and NaN gates.
#include "kernels/glu/glu.h"

#include <algorithm>
#include <limits>

#include "testing/check.h"

using namespace datong;
using namespace datong::testing;

namespace {

constexpr float kLimit = 0.75f, kAlpha = 1.702f;
const CpuFeatures features = detect_cpu_features();

double logistic(double x) { return 1 / (1 + std::exp(-x)); }
double clip(double x) { return std::min(std::max(x, double{-kLimit}), double{kLimit}); }

double definition(GluKind kind, double g, double u) {
  const double h = std::min(g, double{kLimit});
  switch (kind) {
    case GluKind::silu: return g * logistic(g) * u;
    case GluKind::gelu_tanh: return 0.5 * g * (1 + std::tanh(std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g))) * u;
    case GluKind::silu_clamp: return std::min(g * logistic(g), double{kLimit}) * clip(u);
    default: return h * logistic(kAlpha * h) * (clip(u) + 1);
  }
}

void check_kind(GluKind kind) {
  const char* name = kGluKinds[static_cast<int>(kind)];
  const Glu ref = glu_variants(kind).back().kernel;
  const int64_t count = 500;
  const auto gates = random_floats(count, 5, 3), others = random_floats(count, 6);
  std::vector<float> want(count), y(count);
  for (size_t i = 0; i < count; ++i) want[i] = static_cast<float>(definition(kind, gates[i], others[i]));
  ref({gates.data(), count, others.data(), count, y.data(), count, 1, count, kLimit, kAlpha});
  CHECK(nmse(y.data(), want.data(), count) <= 1e-12, "%s: %g", name, nmse(y.data(), want.data(), count));
  for (const auto& variant : glu_variants(kind)) {
    if (!variant.usable(features)) continue;
    for (int64_t n : {1, 7, 8, 15, 16, 17, 31, 33, 64, 65, 1000}) {
      const int64_t rows = 3, stride = n + 5;
      auto gate = random_floats(rows * stride, 1, 20), up = random_floats(rows * stride, 2);
      Guarded want(rows * stride), got(rows * stride);
      ref({gate.data(), stride, up.data(), stride, want.data(), stride, rows, n, kLimit, kAlpha});
      variant.kernel({gate.data(), stride, up.data(), stride, got.data(), stride, rows, n, kLimit, kAlpha});
      CHECK(nmse(got.data(), want.data(), rows * stride) <= 1e-12, "%s %s n %lld", name, variant.name, static_cast<long long>(n));
      for (int64_t i = n; i < stride; ++i)
        CHECK(std::memcmp(got.data() + i, want.data() + i, 4) == 0, "%s %s writes between rows", name, variant.name);
      CHECK(got.intact(), "%s %s writes outside", name, variant.name);
      variant.kernel({gate.data(), stride, up.data(), stride, gate.data(), stride, rows, n, kLimit, kAlpha});
      CHECK(nmse(gate.data(), want.data(), n) <= 1e-12, "%s %s in place", name, variant.name);
    }
    const float nan = std::nanf(""), one = 1;
    float of_gate = 0, of_up = 0;
    variant.kernel({&nan, 1, &one, 1, &of_gate, 1, 1, 1, kLimit, kAlpha});
    variant.kernel({&one, 1, &nan, 1, &of_up, 1, 1, 1, kLimit, kAlpha});
    CHECK(std::isnan(of_gate) && std::isnan(of_up), "%s %s of NaN: %g %g", name, variant.name, of_gate, of_up);
  }
}

}  // namespace

int main() {
  for (GluKind kind : {GluKind::silu, GluKind::gelu_tanh, GluKind::silu_clamp, GluKind::oai}) check_kind(kind);
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  for (const auto& variant : glu_variants(GluKind::silu)) {
    if (!variant.usable(features)) continue;
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
