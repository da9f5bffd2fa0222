#include <cmath>

#include "kernels/glu/glu.h"

namespace datong {
namespace {

// g * sigmoid(x), x of the sign of g. h = exp(-|x| / 2): neither overflows nor vanishes where the result is a number.
float gated(float g, float x) {
  const float h = std::exp(-0.5f * std::fabs(x));
  return (x >= 0 ? g : g * h * h) / (1.0f + h * h);
}

// The smaller; NaN of NaN.
float at_most(float limit, float x) { return limit < x ? limit : x; }
float clip(float x, float limit) { return -limit > x ? -limit : at_most(limit, x); }

template <class F>
void each(const GluArgs& a, F f) {
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t i = 0; i < a.n; ++i)
      a.y[r * a.y_stride + i] = f(a.gate[r * a.gate_stride + i], a.up[r * a.up_stride + i]);
}

}  // namespace

void silu_glu_ref(const GluArgs& a) {
  each(a, [](float g, float u) { return gated(g, g) * u; });
}

// 0.5 (1 + tanh(z)) = sigmoid(2 z)
void gelu_tanh_glu_ref(const GluArgs& a) {
  each(a, [](float g, float u) { return gated(g, 1.5957691216f * (g + 0.044715f * g * g * g)) * u; });
}

void silu_clamp_glu_ref(const GluArgs& a) {
  each(a, [&](float g, float u) { return at_most(a.limit, gated(g, g)) * clip(u, a.limit); });
}

void oai_glu_ref(const GluArgs& a) {
  each(a, [&](float g, float u) {
    const float h = at_most(a.limit, g);
    return gated(h, a.alpha * h) * (clip(u, a.limit) + 1.0f);
  });
}

}  // namespace datong
