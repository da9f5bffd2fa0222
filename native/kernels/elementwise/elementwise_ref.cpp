#include <cmath>

#include "kernels/elementwise/elementwise.h"

namespace datong {

void add_ref(const float* a, const float* b, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = a[i] + b[i];
}

void mul_ref(const float* a, const float* b, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = a[i] * b[i];
}

void sigmoid_ref(const float* a, const float*, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = 1.0f / (1.0f + std::exp(-a[i]));
}

void scale_ref(const float* a, float factor, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = a[i] * factor;
}

}  // namespace datong
