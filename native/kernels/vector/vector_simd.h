// Bodies of the vector variants; included by each ISA file.
#include "core/simd.h"
#include "kernels/vector/vector.h"

namespace datong {
namespace {

inline float dot_simd(const float* a, const float* b, int64_t n) {
  Vec s0{}, s1{}, s2{}, s3{};  // 4 chains hide the latency of the multiply-add
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    s0 += load(a + i) * load(b + i);
    s1 += load(a + i + kLanes) * load(b + i + kLanes);
    s2 += load(a + i + 2 * kLanes) * load(b + i + 2 * kLanes);
    s3 += load(a + i + 3 * kLanes) * load(b + i + 3 * kLanes);
  }
  for (; i + kLanes <= n; i += kLanes) s0 += load(a + i) * load(b + i);
  if (i < n) s1 += load_part(a + i, n - i) * load_part(b + i, n - i);
  return sum((s0 + s1) + (s2 + s3));
}

inline void axpy_simd(float s, const float* x, float* y, int64_t n) {
  const Vec factor = splat(s);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(y + i) + factor * load(x + i));
  if (i < n) store_part(y + i, load_part(y + i, n - i) + factor * load_part(x + i, n - i), n - i);
}

inline void widen_simd(const uint16_t* x, bool bf16, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load_half(x + i, bf16));
  uint16_t rest[kLanes] = {};
  if (i == n) return;
  for (int64_t k = i; k < n; ++k) rest[k - i] = x[k];
  store_part(y + i, load_half(rest, bf16), n - i);
}

}  // namespace
}  // namespace datong

#define DATONG_VECTOR_BODIES(isa)                                                                                    \
  float datong::dot_##isa(const float* a, const float* b, int64_t n) { return dot_simd(a, b, n); }                   \
  void datong::axpy_##isa(float s, const float* x, float* y, int64_t n) { axpy_simd(s, x, y, n); }                   \
  void datong::widen_##isa(const uint16_t* x, bool bf16, float* y, int64_t n) { widen_simd(x, bf16, y, n); }
