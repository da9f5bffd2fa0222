#include "core/convert.h"
#include "kernels/vector/vector.h"

namespace datong {

float dot_ref(const float* a, const float* b, int64_t n) {
  constexpr int64_t kSums = 16;  // less rounding than one
  float sums[kSums] = {}, total = 0;
  for (int64_t i = 0; i < n; ++i) sums[i % kSums] += a[i] * b[i];
  for (float s : sums) total += s;
  return total;
}

void axpy_ref(float s, const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += s * x[i];
}

void widen_ref(const uint16_t* x, bool bf16, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = bf16 ? bf16_to_f32(x[i]) : f16_to_f32(x[i]);
}

}  // namespace datong
