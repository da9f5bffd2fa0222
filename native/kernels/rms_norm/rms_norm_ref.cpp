#include <cmath>

#include "kernels/rms_norm/rms_norm.h"

namespace datong {

void rms_norm_ref(const RmsNormArgs& a) {
  for (int64_t g = 0; g < a.groups; ++g) {
    const float* x = a.x + g * a.n;
    if (a.add) {
      float* sum = a.sum + g * a.n;
      for (int64_t i = 0; i < a.n; ++i) sum[i] = x[i] + a.add[g * a.n + i];
      x = sum;
    }
    float squares = 0;
    for (int64_t i = 0; i < a.n; ++i) squares += x[i] * x[i];
    const float factor = 1.0f / std::sqrt(squares / static_cast<float>(a.n) + a.eps);
    for (int64_t i = 0; i < a.n; ++i) a.y[g * a.n + i] = x[i] * factor * (a.weight[i] + a.offset);
  }
}

}  // namespace datong
