// Vectors of f32 as wide as the flags of the including file allow, with the compiler's vector extension: one source
// serves AVX-512 (16), AVX2 (8), NEON and anything else (4). For ISA files only: everything has internal linkage.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "core/convert.h"

namespace datong {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4)));

inline Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }
// `Vec{} + f` would be an addition: 0 + -0 is 0.
inline Vec splat(float f) {
#if defined(__AVX512F__)
  return (Vec)_mm512_set1_ps(f);
#elif defined(__AVX2__)
  return (Vec)_mm256_set1_ps(f);
#elif defined(__aarch64__)
  return (Vec)vdupq_n_f32(f);
#else
  return Vec{f, f, f, f};
#endif
}
inline VecI splat_int(int32_t i) { return VecI{} + i; }
inline Vec as_float(VecI v) { return reinterpret_cast<Vec>(v); }
inline VecI as_int(Vec v) { return reinterpret_cast<VecI>(v); }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }

inline Vec sqrt(Vec v) {
#if defined(__AVX512F__)
  return (Vec)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
  return (Vec)_mm256_sqrt_ps((__m256)v);
#elif defined(__aarch64__)
  return (Vec)vsqrtq_f32((float32x4_t)v);
#else
  for (int i = 0; i < kLanes; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

constexpr int32_t kIotaValues[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
inline VecI iota() {
  VecI v;
  memcpy(&v, kIotaValues, sizeof v);
  return v;
}

// Lanes fold onto each other by halves.
inline float sum(Vec v) {
  for (int half = kLanes / 2; half; half /= 2) v += __builtin_shuffle(v, iota() ^ half);
  return v[0];
}
inline float largest(Vec v) {
  for (int half = kLanes / 2; half; half /= 2) v = max(v, __builtin_shuffle(v, iota() ^ half));
  return v[0];
}

// 0 <= n < kLanes values, the rest 0.
inline Vec load_part(const float* p, int64_t n) {
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
inline void store_part(float* p, Vec v, int64_t n) {
  float lanes[kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// kLanes values of f16 or bf16.
inline Vec load_half(const uint16_t* p, bool bf16) {
#if defined(__AVX512F__)
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  if (bf16) return (Vec)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  return (Vec)_mm512_cvtph_ps(h);
#elif defined(__AVX2__)
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  if (bf16) return (Vec)_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  return (Vec)_mm256_cvtph_ps(h);
#elif defined(__aarch64__)
  const uint16x4_t h = vld1_u16(p);
  if (bf16) return (Vec)vreinterpretq_f32_u32(vshll_n_u16(h, 16));
  return (Vec)vcvt_f32_f16(vreinterpret_f16_u16(h));
#else
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = bf16 ? bf16_to_f32(p[i]) : f16_to_f32(p[i]);
  return v;
#endif
}

inline uint16_t to_f16(float f) {
#if defined(__F16C__)
  return static_cast<uint16_t>(_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
  return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(f))), 0);
#else
  return f32_to_f16(f);
#endif
}

// e^x to within 2 units in the last place; 0 below -87.3, e^88.7 above 88.7; NaN of NaN.
// Cephes expf: x = n ln2 + r, polynomial of degree 5 in r, scaled by 2^n through the exponent bits.
inline Vec exp(Vec argument) {
#if defined(__AVX512F__)  // the same, where rounding and scaling are instructions of units that multiply nothing
  const __m512 a = (__m512)argument, bounded = _mm512_max_ps(_mm512_set1_ps(-87.33f), _mm512_min_ps(_mm512_set1_ps(88.7f), a));
  const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(bounded, _mm512_set1_ps(1.44269504f)), 0);
  const __m512 part = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.12194440e-4f), _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), bounded));
  __m512 sum = _mm512_set1_ps(1.9875691500e-4f);
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.3981999507e-3f));
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(8.3334519073e-3f));
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(4.1665795894e-2f));
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.6666665459e-1f));
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(5.0000001201e-1f));
  sum = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(part, part), sum, part), _mm512_set1_ps(1.0f));
  return (Vec)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(a, _mm512_set1_ps(-87.33f), _CMP_NLT_UQ), sum, whole);
#else
  const Vec x = max(splat(-87.33f), min(splat(88.7f), argument));  // in this order a NaN passes
  const Vec shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec n = (x * 1.44269504f + shifter) - shifter;
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln2 in two parts
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const Vec y = p * r * r + r + 1.0f;
  const VecI power = (__builtin_convertvector(n, VecI) + 127) << 23;
  return argument < -87.33f ? Vec{} : y * as_float(power);
#endif
}

}  // namespace
}  // namespace datong
