// AVX2, few tokens: four rows x T tokens at once, the vector along the row. Included by one file only.
//
// 32 stored bytes are 64 nibbles (2 blocks) or 32 bytes (1 block, 2 of q6_k), so each half of a vector of products belongs
// to one block. Its lanes are added up as integers, of four rows together: so two blocks of four rows are one vector, whose
// float sums go as linear_formats.h says.
//
// vpmaddubsw multiplies unsigned by signed bytes and adds two products in 16 bits. Nibbles fit: 4 * 15 * 127 < 2^15.
// Byte codes do not (2 * 255 * 127), so they are made signed first (u8 minus 128), and the product is |w| * (x with the
// sign of w): 2 * 128 * 127 fits. `bias` of linear_prepared.h then gives back what the change of sign took.
#pragma once

#include <immintrin.h>

#include "kernels/linear/linear_formats.h"
#include "kernels/linear/linear_outliers.h"

namespace datong {
namespace {

#define UNROLL _Pragma("GCC unroll 32")

inline __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// The first `count` (1 to 7) halves at p, the others zero. `after`: 16 bytes before p + 2 * count may be read, which is
// quick; byte by byte, the load waits for the stores.
inline __m128i load_halves(const uint8_t* p, int64_t count, bool after) {
  if (after) {
    alignas(32) static const uint8_t kShift[32] = {0,   1,   2,   3,   4,   5,   6,   7,   8,   9,   10,
                                                   11,  12,  13,  14,  15,  128, 128, 128, 128, 128, 128,
                                                   128, 128, 128, 128, 128, 128, 128, 128, 128, 128};
    return _mm_shuffle_epi8(load128(p + 2 * count - 16), load128(kShift + 16 - 2 * count));
  }
  uint8_t copy[16] = {};
  for (int64_t i = 0; i < 2 * count; ++i) copy[i] = p[i];
  return load128(copy);
}

inline float half_at(const uint8_t* p) {
  return _cvtsh_ss(static_cast<unsigned short>(p[0] | p[1] << 8));
}

// Values of blocks [b, b + 8) of one row (b a multiple of 8): a scale or min, both levels multiplied.
template <Fmt F, bool kFull>
inline __m256 levels8(const uint8_t* one, const uint8_t* super, int64_t b, int64_t count) {
  if constexpr (!Traits<F>::two_level) {
    return _mm256_cvtph_ps(kFull ? load128(one + 2 * b) : load_halves(one + 2 * b, count, b > 0));
  } else {  // whole super blocks: 8 blocks always exist
    constexpr int64_t kPerSuper = Traits<F>::super / Traits<F>::block;
    const __m128i k = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(one + b));
    const __m256i wide = F == Fmt::q6_k ? _mm256_cvtepi8_epi32(k) : _mm256_cvtepu8_epi32(k);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(wide), _mm256_set1_ps(half_at(super + b / kPerSuper * 2)));
  }
}

struct Token {
  const uint8_t* codes;
  const float *scale, *sums;
  const int32_t* bias;
  const uint8_t *extra, *group;
  Token() = default;
  Token(const uint8_t* p, const PreparedLayout& l)
      : codes(p), scale(floats_at(p, l.scale)), sums(floats_at(p, l.sums)), bias(ints_at(p, l.bias)), extra(p + l.extra),
        group(p + l.group) {}
};

// a in the lower half, b in the upper one.
inline __m256 halves(const float* a, const float* b) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_broadcast_ss(a)), _mm_broadcast_ss(b), 1);
}

// Of weight blocks b and b + 1, a half each; b is even.
template <Fmt F>
inline __m256 token_scales(const Token& x, int64_t b) {
  return Traits<F>::block == 16 ? _mm256_broadcast_ss(x.scale + b / 2) : halves(x.scale + b, x.scale + b + 1);
}

// 32 stored bytes are this many blocks: 64 nibbles, or 32 bytes.
template <Fmt F>
constexpr int64_t kChunkBlocks = Traits<F>::nibbles || Traits<F>::block == 16 ? 2 : 1;

// What has to be added to the products of a chunk: i4 and u8 codes were shifted by 8 and -128.
template <Fmt F>
inline __m256i chunk_bias(const Token& x, int64_t chunk) {
  const __m128i two = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x.bias + 2 * chunk));
  const __m256i spread = _mm256_cvtepu32_epi64(two);             // b0 0 b1 0 - - - -
  const __m256i apart = _mm256_permute4x64_epi64(spread, 0x10);  // b0 0 . . b1 0 . . with . = b0 0
  const __m256i first = _mm256_setr_epi32(-1, 0, 0, 0, -1, 0, 0, 0);
  const __m256i v = _mm256_and_si256(apart, first);
  return Traits<F>::nibbles ? v : _mm256_sub_epi32(_mm256_setzero_si256(), v);
}

// Does a chunk have outliers?
template <Fmt F>
inline bool chunk_outliers(const Token& x, int64_t chunk) {
  if (!Traits<F>::nibbles) return x.group[chunk] != kNoGroup;
  return x.group[2 * chunk] != kNoGroup || x.group[2 * chunk + 1] != kNoGroup;
}

// Products of one chunk of codes with bytes of activations, of nibbles the even ones and the odd ones; four (nibbles: eight)
// to a 32-bit lane.
template <Fmt F>
inline __m256i products(__m256i codes, const uint8_t* even_or_all, const uint8_t* odd_bytes) {
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (Traits<F>::nibbles) {
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i even = _mm256_and_si256(codes, low), odd = _mm256_and_si256(_mm256_srli_epi16(codes, 4), low);
    const __m256i sum = _mm256_add_epi16(_mm256_maddubs_epi16(even, load256(even_or_all)), _mm256_maddubs_epi16(odd, load256(odd_bytes)));
    return _mm256_madd_epi16(sum, ones);
  } else {
    const __m256i product = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(load256(even_or_all), codes));
    return _mm256_madd_epi16(product, ones);
  }
}

template <Fmt F>
inline __m256i chunk_dot(__m256i codes, const Token& x, bool outliers, int64_t chunk) {
  const int64_t at = Traits<F>::nibbles ? chunk / 2 * 128 + chunk % 2 * 32 : chunk * 32;
  const __m256i d = products<F>(codes, x.codes + at, x.codes + at + 64);
  if (!outliers) [[likely]] return d;
  return _mm256_add_epi32(d, _mm256_slli_epi32(products<F>(codes, x.extra + at, x.extra + at + 64), 6));
}

constexpr int64_t kAhead = 8192;  // bytes of codes; as in linear_block_avx512_gemv.h

template <Fmt F>
constexpr bool kHasBias = Traits<F>::nibbles == Traits<F>::is_signed;

// v[r], half i: four lanes of block i of row r -> half i, lane r: their sum.
inline __m256i add_up(const __m256i v[4]) {
  const __m256i ab = _mm256_add_epi32(_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
  const __m256i cd = _mm256_add_epi32(_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
  return _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
}

// v[r]: 8 blocks of row r -> v[c], half i, lane r: block 2 c + i of row r.
inline void pairs(__m256 v[4]) {
  const __m256 a = _mm256_unpacklo_ps(v[0], v[1]), b = _mm256_unpackhi_ps(v[0], v[1]);
  const __m256 c = _mm256_unpacklo_ps(v[2], v[3]), d = _mm256_unpackhi_ps(v[2], v[3]);
  const __m256 b0 = _mm256_shuffle_ps(a, c, 0x44), b1 = _mm256_shuffle_ps(a, c, 0xee);  // and 4, 5 in the upper halves
  const __m256 b2 = _mm256_shuffle_ps(b, d, 0x44), b3 = _mm256_shuffle_ps(b, d, 0xee);  // and 6, 7
  v[0] = _mm256_permute2f128_ps(b0, b1, 0x20);
  v[1] = _mm256_permute2f128_ps(b2, b3, 0x20);
  v[2] = _mm256_permute2f128_ps(b0, b1, 0x31);
  v[3] = _mm256_permute2f128_ps(b2, b3, 0x31);
}

// Eight blocks from b on, or the last `count` of them. acc[t][h], half i, lane r: blocks of row r with number % 4 == 2 h + i.
template <Fmt F, int T, bool kFull>
inline void eight_blocks(__m256 acc[T][2], const FourRows<F>& w, int64_t ahead, const Token x[T], int64_t b, int64_t count) {
  constexpr int64_t kChunks = 2 / kChunkBlocks<F>;  // that hold two blocks
  __m256 scale[4], min[4];
  UNROLL for (int r = 0; r < 4; ++r) {
    scale[r] = levels8<F, kFull>(w.scale[r], w.super_scale[r], b, count);
    if constexpr (Traits<F>::has_min) min[r] = levels8<F, kFull>(w.min[r], w.super_min[r], b, count);
  }
  pairs(scale);
  if constexpr (Traits<F>::has_min) pairs(min);
  const auto pair = [&](int64_t i, __m256 s, __m256 least) __attribute__((always_inline)) {
    const int64_t first = b + 2 * i, rest = count - 2 * i;  // blocks
    __m256i d[T][4];
    UNROLL for (int64_t k = 0; k < kChunks; ++k) {
      const int64_t chunk = first / kChunkBlocks<F> + k;
      const bool none = !kFull && k * kChunkBlocks<F> >= rest, half = !kFull && Traits<F>::nibbles && rest == 1;
      bool outliers[T];
      UNROLL for (int t = 0; t < T; ++t) outliers[t] = chunk_outliers<F>(x[t], chunk);
      UNROLL for (int r = 0; r < 4; ++r) {
        const uint8_t* p = w.codes[r] + chunk * 32;
        _mm_prefetch(w.codes[0] + ahead + (chunk * 4 + r) * 32, _MM_HINT_T1);
        __m256i codes = none ? _mm256_setzero_si256() : half ? _mm256_zextsi128_si256(load128(p)) : load256(p);
        if (kHasBias<F>) codes = _mm256_xor_si256(codes, _mm256_set1_epi8(static_cast<char>(Traits<F>::nibbles ? 0x88 : 0x80)));
        UNROLL for (int t = 0; t < T; ++t) {
          __m256i v = chunk_dot<F>(codes, x[t], outliers[t], chunk);
          if constexpr (kHasBias<F>) v = _mm256_add_epi32(v, chunk_bias<F>(x[t], chunk));
          if (k == 0) d[t][r] = v;
          else d[t][r] = _mm256_add_epi32(_mm256_permute2x128_si256(d[t][r], v, 0x20), _mm256_permute2x128_si256(d[t][r], v, 0x31));
        }
      }
    }
    UNROLL for (int t = 0; t < T; ++t) {
      __m256& sum = acc[t][i % 2];
      sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(add_up(d[t])), _mm256_mul_ps(s, token_scales<F>(x[t], first)), sum);
      if constexpr (Traits<F>::has_min) {
        const __m256 sums = halves(x[t].sums + first, x[t].sums + first + 1);
        sum = Traits<F>::min_sign > 0 ? _mm256_fmadd_ps(least, sums, sum) : _mm256_fnmadd_ps(least, sums, sum);
      }
    }
  };
  UNROLL for (int64_t i = 0; i < 4; ++i)
    if (kFull || 2 * i < count) pair(i, scale[i], min[i]);
}

// Rows [row, row + count), at most four, for T tokens from t0 on.
template <Fmt F, int T>
[[gnu::noinline]] void tile(const Matrix<F>& w, int64_t row, int64_t count, const uint8_t* prepared,
                            const PreparedLayout& layout, int64_t t0, float* y, int64_t y_stride, const Epilogue& e) {
  Token x[T];
  UNROLL for (int t = 0; t < T; ++t) x[t] = Token(prepared + (t0 + t) * layout.size, layout);
  const FourRows<F> four(w, row, count);
  const int64_t ahead = 4 * w.codes_stride > kAhead ? 4 * w.codes_stride : kAhead;
  __m256 acc[T][2];
  UNROLL for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = _mm256_setzero_ps();
  int64_t b = 0;
  for (; b + 8 <= w.blocks; b += 8) eight_blocks<F, T, true>(acc, four, ahead, x, b, 8);
  if (b < w.blocks) eight_blocks<F, T, false>(acc, four, ahead, x, b, w.blocks - b);
  UNROLL for (int t = 0; t < T; ++t) {
    __m128 sums = _mm_add_ps(_mm256_castps256_ps128(acc[t][0]), _mm256_extractf128_ps(acc[t][0], 1));
    sums = _mm_add_ps(sums, _mm256_castps256_ps128(acc[t][1]));
    sums = _mm_add_ps(sums, _mm256_extractf128_ps(acc[t][1], 1));
    float v[4];
    _mm_storeu_ps(v, sums);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t o = row + r;
      if (e.bias) v[r] += e.bias[o];
      if (e.residual) v[r] += e.residual[(t0 + t) * e.residual_stride + o];
      y[(t0 + t) * y_stride + o] = v[r];
    }
  }
}

template <Fmt F>
void rows(const Matrix<F>& w, int64_t row, int64_t count, const uint8_t* x, const PreparedLayout& layout, int64_t tokens,
          float* y, int64_t y_stride, const Epilogue& e) {
  int64_t t = 0;
  for (; t + 2 <= tokens; t += 2) tile<F, 2>(w, row, count, x, layout, t, y, y_stride, e);
  if (t < tokens) tile<F, 1>(w, row, count, x, layout, t, y, y_stride, e);
}

}  // namespace
}  // namespace datong
