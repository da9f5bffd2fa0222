#include <cmath>

#include "kernels/glu/glu.h"

namespace datong {

void silu_glu_ref(const GluArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t i = 0; i < a.n; ++i) {
      // h = exp(-|g| / 2): neither overflows nor vanishes where silu(g) is still a number
      const float g = a.gate[r * a.gate_stride + i], h = std::exp(-0.5f * std::fabs(g));
      const float silu = (g >= 0 ? g : g * h * h) / (1.0f + h * h);
      a.y[r * a.y_stride + i] = silu * a.up[r * a.up_stride + i];
    }
}

}  // namespace datong
