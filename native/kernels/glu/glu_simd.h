// Bodies of the vector variants; included by each ISA file. As in glu_ref.cpp.
#include "core/simd.h"
#include "kernels/glu/glu.h"

namespace datong {
namespace {

inline Vec gated(Vec g, Vec x) {
  const Vec h = exp(-0.5f * max(x, -x));
  return (x >= 0.0f ? g : g * h * h) / (1.0f + h * h);
}

inline Vec clip(Vec x, float limit) { return max(splat(-limit), min(splat(limit), x)); }  // in this order a NaN passes

template <GluKind kind>
inline Vec unit(Vec g, Vec u, float limit, float alpha) {
  switch (kind) {
    case GluKind::silu: return gated(g, g) * u;
    case GluKind::gelu_tanh: return gated(g, 1.5957691216f * (g + 0.044715f * g * g * g)) * u;
    case GluKind::silu_clamp: return min(splat(limit), gated(g, g)) * clip(u, limit);
    case GluKind::oai: {
      const Vec h = min(splat(limit), g);
      return gated(h, alpha * h) * (clip(u, limit) + 1.0f);
    }
  }
}

template <GluKind kind>
void glu_simd(const GluArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float *gate = a.gate + r * a.gate_stride, *up = a.up + r * a.up_stride;
    float* y = a.y + r * a.y_stride;
    int64_t i = 0;
    for (; i + kLanes <= a.n; i += kLanes) store(y + i, unit<kind>(load(gate + i), load(up + i), a.limit, a.alpha));
    const int64_t rest = a.n - i;
    if (rest)
      store_part(y + i, unit<kind>(load_part(gate + i, rest), load_part(up + i, rest), a.limit, a.alpha), rest);
  }
}

}  // namespace
}  // namespace datong

#define DATONG_GLU_VARIANTS(isa)                                                                   \
  void datong::silu_glu_##isa(const GluArgs& a) { glu_simd<GluKind::silu>(a); }                    \
  void datong::gelu_tanh_glu_##isa(const GluArgs& a) { glu_simd<GluKind::gelu_tanh>(a); }          \
  void datong::silu_clamp_glu_##isa(const GluArgs& a) { glu_simd<GluKind::silu_clamp>(a); }        \
  void datong::oai_glu_##isa(const GluArgs& a) { glu_simd<GluKind::oai>(a); }
