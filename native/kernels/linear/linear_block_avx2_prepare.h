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

// Of a block, as bit patterns: the largest |x|, and the largest outside its group. Compared as integers, so that a NaN is
// the largest and is not lost.
struct Tops {
  float top, rest;
};
template <bool kNibbles>
inline Tops block_tops(const float* x) {
  const __m256i clear = _mm256_set1_epi32(0x7fffffff);
  __m256i m[4];  // of each 128 bits the lower 64: two partial maxima of four elements, or of even and odd ones
  UNROLL for (int i = 0; i < 4; ++i) {
    const __m256i v = _mm256_and_si256(load256(x + 8 * i), clear);
    m[i] = _mm256_max_epu32(v, _mm256_shuffle_epi32(v, 0x4e));
  }
  __m256i g, a = _mm256_unpacklo_epi64(m[0], m[1]), b = _mm256_unpacklo_epi64(m[2], m[3]);  // g: one group to a lane
  if constexpr (kNibbles) {
    g = _mm256_max_epu32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
  } else {
    a = _mm256_max_epu32(a, _mm256_shuffle_epi32(a, 0xb1));
    b = _mm256_max_epu32(b, _mm256_shuffle_epi32(b, 0xb1));
    g = _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0x88));
  }
  __m256i other = _mm256_shuffle_epi32(g, 0xb1);
  __m256i top = _mm256_max_epu32(g, other), rest = _mm256_min_epu32(g, other);
  const auto merge = [&](__m256i top2, __m256i rest2) {
    rest = _mm256_max_epu32(_mm256_max_epu32(rest, rest2), _mm256_min_epu32(top, top2));
    top = _mm256_max_epu32(top, top2);
  };
  merge(_mm256_shuffle_epi32(top, 0x4e), _mm256_shuffle_epi32(rest, 0x4e));
  merge(_mm256_permute2x128_si256(top, top, 1), _mm256_permute2x128_si256(rest, rest, 1));
  return {_mm256_cvtss_f32(_mm256_castsi256_ps(top)), _mm256_cvtss_f32(_mm256_castsi256_ps(rest))};
}

struct Quantised {
  __m256i codes;  // q, plain order
  float d;
  int32_t first, second;  // sum of n of each half
};

inline Quantised quantise(const float* x, float top) {
  const __m256 inverse = _mm256_set1_ps(top > kTiny ? 127.0f / top : 0.0f);
  __m256i q[4];
  UNROLL for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse));
  const __m256i low = _mm256_packs_epi32(q[0], q[1]), high = _mm256_packs_epi32(q[2], q[3]);
  const __m256i codes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  return {codes, top <= kTiny ? 0.0f : top / 127.0f, sum8(_mm256_add_epi32(q[0], q[1])), sum8(_mm256_add_epi32(q[2], q[3]))};  // a NaN passes
}

// Even elements to the first half of each 128, odd ones to the second.
inline void store_codes(__m256i codes, bool nibbles, int64_t b, uint8_t* out) {
  if (!nibbles) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + b * 32), codes);
  const __m256i byte = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8, 10, 12, 14, 1, 3,
                                        5, 7, 9, 11, 13, 15);
  const __m256i split = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(codes, byte), 0xd8);
  uint8_t* p = out + b / 4 * 128 + b % 4 * 16;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(split));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 64), _mm256_extracti128_si256(split, 1));
}

template <bool kNibbles>
void prepare_token(const float* x, const PreparedLayout& layout, uint8_t* out) {
  memset(out + layout.blocks * 32, 0, static_cast<size_t>(layout.scale - layout.blocks * 32));
  memset(out + layout.scale, 0, static_cast<size_t>(layout.group - layout.scale));
  memset(out + layout.group, kNoGroup, static_cast<size_t>(layout.size - layout.group));
  if (kNibbles && layout.blocks % 4) memset(out + layout.scale - 128, 0, 128);
  float *const scale = reinterpret_cast<float*>(out + layout.scale), *const sums = reinterpret_cast<float*>(out + layout.sums);
  int32_t* const bias = reinterpret_cast<int32_t*>(out + layout.bias);
  for (int64_t b = 0; b < layout.blocks; ++b) {  // their places keep top and rest until they are needed
    const Tops t = block_tops<kNibbles>(x + b * 32);
    scale[b] = t.top;
    sums[b] = t.rest;
  }
  const float limit = outlier_limit(scale, layout.blocks);
  for (int64_t b = 0; b < layout.blocks; ++b) {
    Quantised n;
    if (has_outlier(scale[b], sums[b], limit)) {
      OutlierBlock o;
      quantise_outlier(x + b * 32, scale[b], sums[b], kNibbles, o);
      n = {load256(o.q), o.d, o.first, o.second};
      memcpy(out + layout.extra + group_at(kNibbles, b, o.group), o.e, 4);
      out[layout.group + b] = o.group;
    } else {
      n = quantise(x + b * 32, scale[b]);
    }
    const uint32_t first = static_cast<uint32_t>(n.first), second = static_cast<uint32_t>(n.second);  // of an infinite block not small
    scale[b] = n.d;
    sums[b] = n.d * static_cast<float>(static_cast<int32_t>(first + second));
    if (kNibbles) {
      bias[b] = static_cast<int32_t>(-8u * (first + second));
    } else {
      bias[2 * b] = static_cast<int32_t>(-128u * first);
      bias[2 * b + 1] = static_cast<int32_t>(-128u * second);
    }
    store_codes(n.codes, kNibbles, b, out);
  }
}

template <bool kNibbles>
void prepare(const float* x, int64_t x_stride, int64_t in, int64_t row_begin, int64_t row_end, void* prepared) {
  const PreparedLayout layout(in, kNibbles);
  for (int64_t t = row_begin; t < row_end; ++t)
    prepare_token<kNibbles>(x + t * x_stride, layout, static_cast<uint8_t*>(prepared) + t * layout.size);
}

}  // namespace
}  // namespace datong
