#include "kernels/causal_conv/causal_conv.h"

#include <cmath>

namespace datong {

void causal_conv_ref(const CausalConvArgs& a) {
  const int64_t kept = a.taps - 1;
  for (int64_t c = 0; c < a.channels; ++c) {
    float line[kMostTaps] = {};  // the last `taps` inputs, oldest first
    for (int64_t j = 0; j < kept; ++j) line[j + 1] = a.fresh ? 0.0f : a.state[c * kept + j];
    for (int64_t t = 0; t < a.tokens; ++t) {
      for (int64_t j = 0; j < kept; ++j) line[j] = line[j + 1];
      line[kept] = a.x[t * a.x_stride + c];
      float z = a.bias ? a.bias[c] : 0.0f;
      for (int64_t j = 0; j < a.taps; ++j) z += a.weight[j * a.weight_stride + c] * line[j];
      a.y[t * a.y_stride + c] = a.silu ? z / (1.0f + std::exp(-z)) : z;
    }
    for (int64_t j = 0; j < kept; ++j) a.state[c * kept + j] = line[j + 1];
  }
}

}  // namespace datong
