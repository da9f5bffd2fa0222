// Bodies of the vector variants; included by each ISA file.
#include "core/simd.h"
#include "kernels/elementwise/elementwise.h"

namespace datong {
namespace {

inline void add_simd(const float* a, const float* b, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(a + i) + load(b + i));
  for (; i < n; ++i) y[i] = a[i] + b[i];
}

inline void mul_simd(const float* a, const float* b, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(a + i) * load(b + i));
  for (; i < n; ++i) y[i] = a[i] * b[i];
}

inline void scale_simd(const float* a, float factor, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(a + i) * factor);
  for (; i < n; ++i) y[i] = a[i] * factor;
}

inline void sigmoid_simd(const float* a, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, 1.0f / (1.0f + exp(-load(a + i))));
  if (i < n) store_part(y + i, 1.0f / (1.0f + exp(-load_part(a + i, n - i))), n - i);
}

}  // namespace
}  // namespace datong
