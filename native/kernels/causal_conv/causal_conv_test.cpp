// Each variant against the formula in doubles: odd sizes, strides, fresh and old states, at once and token by token.
#include "kernels/causal_conv/causal_conv.h"

#include <algorithm>
#include <cmath>

#include "testing/check.h"

using namespace datong;
using namespace datong::testing;

namespace {

const CpuFeatures features = detect_cpu_features();

void check_case(const Variant<CausalConv>& variant, int64_t channels, int64_t tokens, int64_t taps, int flags) {
  const bool silu = flags & 1, fresh = flags & 2, biased = flags & 4;
  const int64_t stride = channels + 3, kept = taps - 1;
  const auto x = random_floats(tokens * stride + 1, 1, 3), weight = random_floats(taps * stride + 1, 2);
  const auto bias = random_floats(channels, 3), start = random_floats(channels * kept + 1, 4);
  for (const int64_t step : {tokens, int64_t{1}}) {
    std::vector<float> state(start.begin(), start.end());
    Guarded y(tokens * stride);
    for (int64_t i = 0; i < tokens * stride; ++i) y.data()[i] = 7;
    for (int64_t t = 0; t < tokens; t += step)
      variant.kernel({x.data() + t * stride, stride, weight.data(), stride, biased ? bias.data() : nullptr, state.data(),
                      y.data() + t * stride, stride, step, channels, taps, silu, fresh && t == 0});
    double worst = 0;
    for (int64_t c = 0; c < channels; ++c) {
      auto input = [&](int64_t t) { return t >= 0 ? x[t * stride + c] : fresh ? 0.0f : start[c * kept + kept + t]; };
      for (int64_t t = 0; t < tokens; ++t) {
        double z = biased ? bias[c] : 0;
        for (int64_t j = 0; j < taps; ++j) z += double{weight[j * stride + c]} * input(t - kept + j);
        if (silu) z /= 1 + std::exp(-z);
        worst = std::max(worst, std::fabs(y.data()[t * stride + c] - z));
      }
      for (int64_t j = 0; j < kept; ++j)
        CHECK(state[c * kept + j] == input(tokens - kept + j), "%s leaves a wrong state", variant.name);
    }
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t c = channels; c < stride; ++c) CHECK(y.data()[t * stride + c] == 7, "%s writes between rows", variant.name);
    CHECK(worst <= 2e-5 && y.intact(), "%s channels %lld tokens %lld taps %lld: %g", variant.name,
          static_cast<long long>(channels), static_cast<long long>(tokens), static_cast<long long>(taps), worst);
  }
}

}  // namespace

int main() {
  for (const auto& variant : causal_conv_variants()) {
    if (!variant.usable(features)) continue;
    for (int64_t channels : {1, 7, 8, 15, 16, 17, 33, 64})
      for (int64_t tokens : {1, 2, 3, 4, 11})
        for (int64_t taps : {1, 2, 4, 16})
          for (int flags = 0; flags < 8; ++flags) check_case(variant, channels, tokens, taps, flags);
  }
  return result();
}
