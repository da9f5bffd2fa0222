// AVX-512: activations to int8, for few tokens as in linear_prepared.h, for many in groups. Included by one file only.
//
// From kGemmTokens on, tokens are interleaved by eights, so that a tile of the GEMM walks over one stretch of memory
// and finds everything at constant distances (with a pointer per token the compiler ran out of registers). Per half group
// of 8 tokens and block of 32, kEight<nibbles> bytes:
//
//   codes  [8 tokens][8][4] i8   in the order of the panel: fours of even and odd elements in turn, or plain
//   scale  [8 tokens] f32        as in linear_prepared.h
//   sums   [8 tokens] f32
//   bias   [8 tokens] i32        byte order: [3][8 tokens], of the block and of each half of it
#pragma once

#include "kernels/linear/linear_block_avx512_common.h"

namespace datong {
namespace {

// From this many tokens on, unpacking a panel pays. Measured on Zen 4, 1536x576 in the cache, by rows | by panels, GOP/s:
// q4_1 with 4 tokens 144 | 135, 5: 132 | 153; q8_0 with 3 tokens 126 | 115, 4: 98 | 139.
template <bool kNibbles>
constexpr int64_t kGemmTokens = kNibbles ? 5 : 4;

template <bool kNibbles>
constexpr int64_t kEight = 256 + 32 + 32 + (kNibbles ? 32 : 96);
constexpr int64_t kScaleAt = 256, kSumsAt = 288, kBiasAt = 320;

template <bool kNibbles>
inline int64_t half_group_bytes(int64_t in) {
  return in / kBlock * kEight<kNibbles>;
}

// Bytes per token that serve both orders.
template <bool kNibbles>
size_t prepared_bytes_either(int64_t in) {
  const int64_t plain = PreparedLayout(in, kNibbles).size, interleaved = round_up(in / kBlock * kEight<kNibbles> / 8, 64);
  return static_cast<size_t>(plain > interleaved ? plain : interleaved);
}

inline __m512i abs_bits(__m512 v) { return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff)); }

inline __m128i max_to128(__m512i v) {
  const __m256i half = _mm256_max_epu32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
  return _mm_max_epu32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// Bit patterns of max|x| of four blocks. Compared as integers, a NaN is the largest and is not lost.
inline __m128 max_abs4(const __m512 v[8]) {
  __m128i m[4];
  UNROLL for (int i = 0; i < 4; ++i) m[i] = max_to128(_mm512_max_epu32(abs_bits(v[2 * i]), abs_bits(v[2 * i + 1])));
  const __m128i ab = _mm_max_epu32(_mm_unpacklo_epi32(m[0], m[1]), _mm_unpackhi_epi32(m[0], m[1]));
  const __m128i cd = _mm_max_epu32(_mm_unpacklo_epi32(m[2], m[3]), _mm_unpackhi_epi32(m[2], m[3]));
  return _mm_castsi128_ps(_mm_max_epu32(_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd)));
}

struct Four {          // four quantised blocks
  __m512i codes[2];    // plain order
  __m128 scale, sums;  // one for each block
  __m128i first, second;  // sum of codes of each half block
};

// 128 elements, of which `count` exist.
inline Four quantise4(const float* x, int64_t count) {
  __m512 v[8];
  UNROLL for (int i = 0; i < 8; ++i)
    v[i] = _mm512_maskz_loadu_ps(first16(count - 16 * i < 0 ? 0 : count - 16 * i), x + 16 * i);
  const __m128 top = max_abs4(v), d = _mm_div_ps(top, _mm_set1_ps(127.0f));
  const __mmask8 normal = _mm_cmp_ps_mask(top, _mm_set1_ps(kTiny), _CMP_GT_OQ);
  const __m128 inverse = _mm_maskz_div_ps(normal, _mm_set1_ps(127.0f), top);
  // A block of tiny values gets d = 0; a NaN stays in d.
  const __m128 scale = _mm_maskz_mov_ps(_mm_cmp_ps_mask(top, _mm_set1_ps(kTiny), _CMP_NLE_UQ), d);
  __m128i q[8];
  UNROLL for (int i = 0; i < 4; ++i) {
    const __m512 k = _mm512_permutexvar_ps(_mm512_set1_epi32(i), _mm512_castps128_ps512(inverse));
    q[2 * i] = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v[2 * i], k)));
    q[2 * i + 1] = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v[2 * i + 1], k)));
  }
  Four f;
  __m512i s[2];  // sums of 16 in every lane of their quarter
  UNROLL for (int i = 0; i < 2; ++i) {
    const __m256i lo = _mm256_set_m128i(q[4 * i + 1], q[4 * i]), hi = _mm256_set_m128i(q[4 * i + 3], q[4 * i + 2]);
    f.codes[i] = _mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1);
    const __m512i four = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), f.codes[i]);
    const __m512i eight = _mm512_add_epi32(four, _mm512_shuffle_epi32(four, _MM_PERM_CDAB));
    s[i] = _mm512_add_epi32(eight, _mm512_shuffle_epi32(eight, _MM_PERM_BADC));
  }
  const __m512i evens = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 16, 8, 0);  // first half of a block
  const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(4));
  f.first = _mm512_castsi512_si128(_mm512_permutex2var_epi32(s[0], evens, s[1]));
  f.second = _mm512_castsi512_si128(_mm512_permutex2var_epi32(s[0], odds, s[1]));
  f.scale = scale;
  f.sums = _mm_mul_ps(scale, _mm_cvtepi32_ps(_mm_add_epi32(f.first, f.second)));
  return f;
}

inline __m128i minus_shifted(__m128i v, int bits) { return _mm_sub_epi32(_mm_setzero_si128(), _mm_slli_epi32(v, bits)); }

template <bool kNibbles>
inline void store_plain(const Four& f, int64_t b, const PreparedLayout& layout, uint8_t* out) {
  _mm_storeu_ps(reinterpret_cast<float*>(out + layout.scale) + b, f.scale);
  _mm_storeu_ps(reinterpret_cast<float*>(out + layout.sums) + b, f.sums);
  __m128i* bias = reinterpret_cast<__m128i*>(out + layout.bias + b * (kNibbles ? 4 : 8));
  if constexpr (kNibbles) {
    UNROLL for (int half = 0; half < 2; ++half) {
      const __m256i a = _mm512_cvtepi16_epi8(half ? _mm512_srli_epi16(f.codes[0], 8) : f.codes[0]);
      const __m256i c = _mm512_cvtepi16_epi8(half ? _mm512_srli_epi16(f.codes[1], 8) : f.codes[1]);
      _mm512_storeu_si512(out + b * 32 + half * 64, _mm512_inserti64x4(_mm512_castsi256_si512(a), c, 1));
    }
    _mm_storeu_si128(bias, minus_shifted(_mm_add_epi32(f.first, f.second), 3));
  } else {
    _mm512_storeu_si512(out + b * 32, f.codes[0]);
    _mm512_storeu_si512(out + b * 32 + 64, f.codes[1]);
    _mm_storeu_si128(bias, minus_shifted(_mm_unpacklo_epi32(f.first, f.second), 7));
    _mm_storeu_si128(bias + 1, minus_shifted(_mm_unpackhi_epi32(f.first, f.second), 7));
  }
}

// `out`: the token's codes in the half group. Only the first `blocks` of the four exist.
template <bool kNibbles>
inline void store_interleaved(const Four& f, int64_t blocks, int64_t token, uint8_t* out) {
  const __m128i split = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  alignas(64) uint8_t codes[128];
  alignas(16) int32_t words[5][4];  // scale, sums, bias; of bytes also the bias of each half
  UNROLL for (int i = 0; i < 2; ++i)
    _mm512_store_si512(codes + 64 * i,
                       kNibbles ? _mm512_shuffle_epi8(f.codes[i], _mm512_broadcast_i32x4(split)) : f.codes[i]);
  _mm_store_si128(reinterpret_cast<__m128i*>(words[0]), _mm_castps_si128(f.scale));
  _mm_store_si128(reinterpret_cast<__m128i*>(words[1]), _mm_castps_si128(f.sums));
  const __m128i all = _mm_add_epi32(f.first, f.second);
  _mm_store_si128(reinterpret_cast<__m128i*>(words[2]), minus_shifted(all, kNibbles ? 3 : 7));
  _mm_store_si128(reinterpret_cast<__m128i*>(words[3]), minus_shifted(f.first, 7));
  _mm_store_si128(reinterpret_cast<__m128i*>(words[4]), minus_shifted(f.second, 7));
  for (int64_t b = 0; b < blocks; ++b, out += kEight<kNibbles>) {
    memcpy(out + token * 32, codes + b * 32, 32);
    for (int64_t k = 0; k < (kNibbles ? 3 : 5); ++k) memcpy(out + kScaleAt + 32 * k + 4 * token, &words[k][b], 4);
  }
}

template <bool kNibbles>
void prepare(const float* x, int64_t x_stride, int64_t in, int64_t row_begin, int64_t row_end, void* prepared) {
  const PreparedLayout layout(in, kNibbles);
  const bool interleaved = row_begin > 0 || row_end >= kGemmTokens<kNibbles>;  // the whole is at least row_end tokens
  for (int64_t t = row_begin; t < row_end; ++t) {
    uint8_t* base = static_cast<uint8_t*>(prepared);
    uint8_t* out = interleaved ? base + t / 8 * half_group_bytes<kNibbles>(in) : base + t * layout.size;
    int64_t b = 0;
    for (; b < layout.blocks; b += 4) {
      // The next row may lie in another core's cache, which wrote it.
      UNROLL for (int i = 0; i < 8; ++i) _mm_prefetch(x + (t + 1) * x_stride + b * 32 + 16 * i, _MM_HINT_T0);
      const Four f = quantise4(x + t * x_stride + b * 32, in - b * 32);
      if (interleaved) store_interleaved<kNibbles>(f, layout.blocks - b < 4 ? layout.blocks - b : 4, t % 8, out + b * kEight<kNibbles>);
      else store_plain<kNibbles>(f, b, layout, out);
    }
    for (; !interleaved && b < round_up(layout.blocks, 16); b += 4) {  // padding
      memset(out + layout.scale + b * 4, 0, 16);
      memset(out + layout.sums + b * 4, 0, 16);
      memset(out + layout.bias + b * (kNibbles ? 4 : 8), 0, kNibbles ? 16 : 32);
    }
  }
}

}  // namespace
}  // namespace datong
