// Body of the vector variants; included by each ISA file.
#include "core/simd.h"
#include "kernels/rms_norm/rms_norm.h"

namespace datong {
namespace {

// Writes x + add to sum and gives the squares' sum; without add, of x.
float squares(const float* x, const float* add, float* sum_out, int64_t n) {
  Vec total[4] = {};  // 4 chains hide the latency of the multiply-add
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int c = 0; c < 4; ++c) {
      const int64_t j = i + c * kLanes;
      Vec v = load(x + j);
      if (add) {
        v += load(add + j);
        store(sum_out + j, v);
      }
      total[c] += v * v;
    }
  float tail = 0;
  for (; i < n; ++i) {
    float v = x[i];
    if (add) sum_out[i] = v = v + add[i];
    tail += v * v;
  }
  return sum((total[0] + total[1]) + (total[2] + total[3])) + tail;
}

void rms_norm_simd(const RmsNormArgs& a) {
  for (int64_t g = 0; g < a.groups; ++g) {
    const int64_t at = g * a.n;
    const float square = squares(a.x + at, a.add ? a.add + at : nullptr, a.sum + at, a.n);
    const float factor = 1.0f / __builtin_sqrtf(square / static_cast<float>(a.n) + a.eps);
    const float* x = (a.add ? a.sum : a.x) + at;
    float* y = a.y + at;
    int64_t i = 0;
    for (; i + kLanes <= a.n; i += kLanes) store(y + i, load(x + i) * factor * (load(a.weight + i) + a.offset));
    for (; i < a.n; ++i) y[i] = x[i] * factor * (a.weight[i] + a.offset);
  }
}

}  // namespace
}  // namespace datong
