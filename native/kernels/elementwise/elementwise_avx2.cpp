// No AVX-512 variant: these are bound by memory, 32-byte vectors already saturate it.
#include "core/simd.h"
#include "kernels/elementwise/elementwise.h"

namespace datong {

void add_avx2(const float* a, const float* b, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(a + i) + load(b + i));
  for (; i < n; ++i) y[i] = a[i] + b[i];
}

void mul_avx2(const float* a, const float* b, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(a + i) * load(b + i));
  for (; i < n; ++i) y[i] = a[i] * b[i];
}

void sigmoid_avx2(const float* a, const float*, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, 1.0f / (1.0f + exp(-load(a + i))));
  if (i < n) store_part(y + i, 1.0f / (1.0f + exp(-load_part(a + i, n - i))), n - i);
}

}  // namespace datong
