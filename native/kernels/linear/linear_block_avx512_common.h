// What the AVX-512 block kernels share: scales of a row, transposition, sums. Included by one file only.
#pragma once

#include <immintrin.h>

#include "kernels/linear/linear_formats.h"
#include "kernels/linear/linear_outliers.h"

namespace datong {
namespace {

#define UNROLL _Pragma("GCC unroll 32")

inline __mmask16 first16(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : (1u << n) - 1); }
inline __mmask64 first64(int64_t n) { return n >= 64 ? ~0ull : (1ull << n) - 1; }

// Values of blocks [b, b + 16) of one row, of which those in `m` exist: a scale or min, both levels multiplied.
// `one` and `super` are the row's; b is a multiple of 16.
template <Fmt F>
inline __m512 levels16(const uint8_t* one, const uint8_t* super, int64_t b, __mmask16 m) {
  if constexpr (!Traits<F>::two_level) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, one + 2 * b));
  } else if constexpr (F == Fmt::q6_k) {  // 16 blocks to a super block
    const __m512 d = _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_maskz_loadu_epi16(1, super + b / 8)));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(m, one + b))), d);
  } else {  // 8 blocks to a super block: two of them, the second perhaps absent
    const __m512i halves = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m128 two = _mm_cvtph_ps(_mm_maskz_loadu_epi16(m >> 8 ? 3 : 1, super + b / 4));
    const __m512 d = _mm512_permutexvar_ps(halves, _mm512_castps128_ps512(two));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, one + b))), d);
  }
}

template <Fmt F>
inline __m512 add_min(__m512 acc, __m512 min, __m512 sums) {
  return Traits<F>::min_sign > 0 ? _mm512_fmadd_ps(min, sums, acc) : _mm512_fnmadd_ps(min, sums, acc);
}

// v[i] lane j  <->  v[j] lane i, of 32-bit lanes.
inline void transpose16(__m512i v[16]) {
  __m512i a[16];
  UNROLL for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  UNROLL for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  UNROLL for (int i = 0; i < 4; ++i) {
    a[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
    a[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
    a[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
    a[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
  }
  UNROLL for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0x88);
    v[i + 8] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd);
    v[i + 4] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0x88);
    v[i + 12] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0xdd);
  }
}

// Writes lanes m of v to y[t, o...] with the epilogue.
inline void store16(__m512 v, __mmask16 m, int64_t t, int64_t o, float* y, int64_t y_stride, const Epilogue& e) {
  if (e.bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(m, e.bias + o));
  if (e.residual) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(m, e.residual + t * e.residual_stride + o));
  _mm512_mask_storeu_ps(y + t * y_stride + o, m, v);
}

}  // namespace
}  // namespace datong
