// Body of the vector variants; included by each ISA file.
#include "core/simd.h"
#include "kernels/glu/glu.h"

namespace datong {
namespace {

// As in glu_ref.cpp.
Vec silu(Vec g) {
  const Vec h = exp(-0.5f * max(g, -g));
  return (g >= 0.0f ? g : g * h * h) / (1.0f + h * h);
}

void silu_glu_simd(const GluArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float *gate = a.gate + r * a.gate_stride, *up = a.up + r * a.up_stride;
    float* y = a.y + r * a.y_stride;
    int64_t i = 0;
    for (; i + kLanes <= a.n; i += kLanes) store(y + i, silu(load(gate + i)) * load(up + i));
    const int64_t rest = a.n - i;
    if (rest) store_part(y + i, silu(load_part(gate + i, rest)) * load_part(up + i, rest), rest);
  }
}

}  // namespace
}  // namespace datong
