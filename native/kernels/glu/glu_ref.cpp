#include <cmath>

#include "kernels/glu/glu.h"

namespace datong {

void silu_glu_ref(const GluArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t i = 0; i < a.n; ++i) {
      const float g = a.gate[r * a.gate_stride + i];
      a.y[r * a.y_stride + i] = g / (1.0f + std::exp(-g)) * a.up[r * a.up_stride + i];
    }
}

}  // namespace datong
