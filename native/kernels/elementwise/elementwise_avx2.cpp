// No AVX-512 variant: these are bound by memory, 32-byte vectors already saturate it.
#include "kernels/elementwise/elementwise_simd.h"

namespace datong {

void add_avx2(const float* a, const float* b, float* y, int64_t n) { add_simd(a, b, y, n); }
void mul_avx2(const float* a, const float* b, float* y, int64_t n) { mul_simd(a, b, y, n); }
void sigmoid_avx2(const float* a, const float*, float* y, int64_t n) { sigmoid_simd(a, y, n); }
void scale_avx2(const float* a, float factor, float* y, int64_t n) { scale_simd(a, factor, y, n); }

}  // namespace datong
