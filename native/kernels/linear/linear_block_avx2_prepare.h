// AVX2: activations to int8, in the layout of linear_prepared.h. Included by one file only.
#pragma once

#include "kernels/linear/linear_block_avx2_rows.h"

namespace datong {
namespace {

inline int32_t sum8(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

inline float max_abs32(const float* x) {  // as integers, so that a NaN is not lost
  const __m256i clear = _mm256_set1_epi32(0x7fffffff);
  __m256i top = _mm256_setzero_si256();
  UNROLL for (int i = 0; i < 4; ++i) top = _mm256_max_epu32(top, _mm256_and_si256(load256(x + 8 * i), clear));
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1))));
}

// Writes block b of one token, all but its place in nibble order: returns the codes in plain order.
template <bool kNibbles>
inline __m256i prepare_block(const float* x, int64_t b, const PreparedLayout& layout, uint8_t* out) {
  const float top = max_abs32(x);
  const __m256 inverse = _mm256_set1_ps(top > kTiny ? 127.0f / top : 0.0f);
  __m256i q[4];
  UNROLL for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse));
  const int32_t first = sum8(_mm256_add_epi32(q[0], q[1])), second = sum8(_mm256_add_epi32(q[2], q[3]));
  const float d = top <= kTiny ? 0.0f : top / 127.0f;  // a NaN passes
  reinterpret_cast<float*>(out + layout.scale)[b] = d;
  reinterpret_cast<float*>(out + layout.sums)[b] = d * static_cast<float>(first + second);
  int32_t* bias = reinterpret_cast<int32_t*>(out + layout.bias);
  if (kNibbles) {
    bias[b] = static_cast<int32_t>(-8u * static_cast<uint32_t>(first + second));
  } else {  // unsigned: the sums of an infinite block are not small
    bias[2 * b] = static_cast<int32_t>(-128u * static_cast<uint32_t>(first));
    bias[2 * b + 1] = static_cast<int32_t>(-128u * static_cast<uint32_t>(second));
  }
  const __m256i low = _mm256_packs_epi32(q[0], q[1]), high = _mm256_packs_epi32(q[2], q[3]);
  return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

template <bool kNibbles>
void prepare(const float* x, int64_t x_stride, int64_t in, int64_t row_begin, int64_t row_end, void* prepared) {
  const PreparedLayout layout(in, kNibbles);
  for (int64_t t = row_begin; t < row_end; ++t) {
    uint8_t* out = static_cast<uint8_t*>(prepared) + t * layout.size;
    memset(out + layout.blocks * 32, 0, static_cast<size_t>(layout.scale - layout.blocks * 32));
    memset(out + layout.scale, 0, static_cast<size_t>(layout.size - layout.scale));
    if (kNibbles && layout.blocks % 4) memset(out + layout.scale - 128, 0, 128);
    for (int64_t b = 0; b < layout.blocks; ++b) {
      const __m256i codes = prepare_block<kNibbles>(x + t * x_stride + b * 32, b, layout, out);
      if constexpr (kNibbles) {  // even elements to the first half of each 128, odd ones to the second
        const __m256i byte = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8, 10, 12,
                                              14, 1, 3, 5, 7, 9, 11, 13, 15);
        const __m256i split = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(codes, byte), 0xd8);
        uint8_t* p = out + b / 4 * 128 + b % 4 * 16;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(split));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 64), _mm256_extracti128_si256(split, 1));
      } else {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + b * 32), codes);
      }
    }
  }
}

}  // namespace
}  // namespace datong
