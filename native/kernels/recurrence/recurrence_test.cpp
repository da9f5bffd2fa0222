// Each variant against the formula in doubles: odd sizes, strides, fresh and old states, with and without the delta rule,
// all tokens at once and one by one.
#include "kernels/recurrence/recurrence.h"

#include <cmath>

#include "testing/check.h"

using namespace datong;
using namespace datong::testing;

namespace {

const CpuFeatures features = detect_cpu_features();

struct Case {
  int64_t keys, columns, tokens;
  bool fresh, delta;
};

void check_case(const Variant<Recurrence>& variant, const Case& c) {
  const int64_t stride = c.columns + 3, wide = c.keys + 2;
  const auto q = random_floats(c.tokens * wide + 1, 1), v = random_floats(c.tokens * stride + 1, 3);
  auto k = random_floats(c.tokens * wide + 1, 2);
  for (float& x : k) x /= std::sqrt(static_cast<float>(c.keys));
  std::vector<float> decay, beta;
  for (int64_t t = 0; t <= c.tokens; ++t) {
    decay.push_back(0.5f + 0.4f * std::sin(static_cast<float>(t)));
    beta.push_back(0.5f + 0.3f * std::cos(static_cast<float>(t)));
  }
  const auto start = random_floats(c.keys * stride + 1, 4);
  std::vector<double> state(static_cast<size_t>(c.keys * stride)), y(static_cast<size_t>(c.tokens * stride));
  for (size_t i = 0; i < state.size(); ++i) state[i] = c.fresh ? 0 : start[i];
  for (int64_t t = 0; t < c.tokens; ++t)
    for (int64_t n = 0; n < c.columns; ++n) {
      double seen = 0, u = v[t * stride + n];
      for (int64_t i = 0; i < c.keys; ++i) seen += double{k[t * wide + i]} * decay[t] * state[i * stride + n];
      if (c.delta) u = beta[t] * (u - seen);
      for (int64_t i = 0; i < c.keys; ++i) {
        double& s = state[i * stride + n];
        s = decay[t] * s + k[t * wide + i] * u;
        y[t * stride + n] += q[t * wide + i] * s;
      }
    }
  for (const int64_t step : {c.tokens, int64_t{1}}) {
    std::vector<float> got(start.begin(), start.end());
    Guarded out(c.tokens * stride);
    for (int64_t i = 0; i < c.tokens * stride; ++i) out.data()[i] = 7;
    for (int64_t t = 0; t < c.tokens; t += std::max<int64_t>(1, step))
      variant.kernel({got.data(), stride, c.keys, c.columns, step, q.data() + t * wide, k.data() + t * wide,
                      v.data() + t * stride, wide, wide, stride, decay.data() + t, 1, c.delta ? beta.data() + t : nullptr, 1,
                      out.data() + t * stride, stride, c.fresh && t == 0});
    double worst = 0, scale = 1e-9;
    for (int64_t t = 0; t < c.tokens; ++t)
      for (int64_t n = 0; n < stride; ++n) {
        const double want = n < c.columns ? y[t * stride + n] : 7;
        worst = std::max(worst, std::fabs(out.data()[t * stride + n] - want));
        scale = std::max(scale, std::fabs(want));
      }
    for (int64_t i = 0; c.tokens && i < c.keys; ++i)
      for (int64_t n = 0; n < stride; ++n) {
        const double want = n < c.columns ? state[i * stride + n] : start[i * stride + n];
        worst = std::max(worst, std::fabs(got[i * stride + n] - want));
        scale = std::max(scale, std::fabs(want));
      }
    CHECK(worst <= 3e-6 * scale, "%s keys %lld columns %lld tokens %lld by %lld: %g of %g", variant.name,
          static_cast<long long>(c.keys), static_cast<long long>(c.columns), static_cast<long long>(c.tokens),
          static_cast<long long>(step), worst, scale);
    CHECK(out.intact(), "%s writes outside", variant.name);
  }
}

}  // namespace

int main() {
  for (const auto& variant : recurrence_variants()) {
    if (!variant.usable(features)) continue;
    for (int64_t keys : {1, 7, 16, 64, 128})
      for (int64_t columns : {1, 5, 8, 16, 17, 31, 33, 48, 63, 64})
        for (int64_t tokens : {1, 2, 3, 9})
          for (bool fresh : {false, true})
            for (bool delta : {false, true}) check_case(variant, {keys, columns, tokens, fresh, delta});
  }
  return result();
}
