// AVX2, few tokens: R rows x T tokens at once, the vector along the row. Included by one file only.
//
// vpmaddubsw multiplies unsigned by signed bytes and adds two products in 16 bits. Nibbles fit: 4 * 15 * 127 < 2^15.
// Byte codes do not (2 * 255 * 127), so they are made signed first (u8 minus 128), and the product is |w| * (x with the
// sign of w): 2 * 128 * 127 fits. `bias` of linear_prepared.h then gives back what the change of sign took.
#pragma once

#include <immintrin.h>

#include "kernels/linear/linear_formats.h"
#include "kernels/linear/linear_prepared.h"

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
  Token() = default;
  Token(const uint8_t* p, const PreparedLayout& l)
      : codes(p), scale(floats_at(p, l.scale)), sums(floats_at(p, l.sums)), bias(ints_at(p, l.bias)) {}
};

// Activation scales of 8 weight blocks from block b on.
template <Fmt F>
inline __m256 token_scales(const Token& x, int64_t b) {
  if constexpr (Traits<F>::block == 16) {
    const __m256i pairs = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(x.scale + b / 2)), pairs);
  } else {
    return _mm256_loadu_ps(x.scale + b);
  }
}

// 32 stored bytes are this many blocks: 64 nibbles, or 32 bytes.
template <Fmt F>
constexpr int64_t kChunkBlocks = Traits<F>::nibbles || Traits<F>::block == 16 ? 2 : 1;

// Which of 8 scales each lane of chunk c takes.
template <Fmt F>
inline __m256i scale_lanes(int64_t c) {
  const int k = static_cast<int>(c);
  return kChunkBlocks<F> == 2 ? _mm256_setr_epi32(2 * k, 2 * k, 2 * k, 2 * k, 2 * k + 1, 2 * k + 1, 2 * k + 1, 2 * k + 1)
                              : _mm256_set1_epi32(k);
}

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

// Products of one chunk of codes with one token, four (nibbles: eight) to a 32-bit lane.
template <Fmt F>
inline __m256i chunk_dot(__m256i codes, const Token& x, int64_t chunk) {
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (Traits<F>::nibbles) {
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i even = _mm256_and_si256(codes, low), odd = _mm256_and_si256(_mm256_srli_epi16(codes, 4), low);
    const uint8_t* p = x.codes + chunk / 2 * 128 + chunk % 2 * 32;
    const __m256i sum = _mm256_add_epi16(_mm256_maddubs_epi16(even, load256(p)), _mm256_maddubs_epi16(odd, load256(p + 64)));
    return _mm256_madd_epi16(sum, ones);
  } else {
    const __m256i product = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(load256(x.codes + chunk * 32), codes));
    return _mm256_madd_epi16(product, ones);
  }
}

constexpr int64_t kAhead = 8192;  // bytes of codes; as in linear_block_avx512_gemv.h

template <Fmt F>
constexpr bool kHasBias = Traits<F>::nibbles == Traits<F>::is_signed;

// Eight blocks from b on, or the last `count` of them.
template <Fmt F, int R, int T, bool kFull>
inline void eight_blocks(__m256 acc[R][T], const Matrix<F>& w, int64_t row, const Token x[T], int64_t b, int64_t count) {
  __m256 s[R][T];
  const int64_t ahead = R * w.codes_stride > kAhead ? R * w.codes_stride : kAhead;
  UNROLL for (int r = 0; r < R; ++r) {
    const int64_t at = (row + r) * w.scale_stride, super = (row + r) * w.super_stride;
    const __m256 scale = levels8<F, kFull>(w.scale + at, w.super_scale + super, b, count);
    UNROLL for (int t = 0; t < T; ++t) s[r][t] = _mm256_mul_ps(scale, token_scales<F>(x[t], b));
    if constexpr (Traits<F>::has_min) {
      const __m256 min = levels8<F, kFull>(w.min + at, w.super_min + super, b, count);
      UNROLL for (int t = 0; t < T; ++t) {
        const __m256 sums = _mm256_loadu_ps(x[t].sums + b);
        acc[r][t] = Traits<F>::min_sign > 0 ? _mm256_fmadd_ps(min, sums, acc[r][t]) : _mm256_fnmadd_ps(min, sums, acc[r][t]);
      }
    }
  }
  const int64_t first = b / kChunkBlocks<F>;
  const auto chunk = [&](int64_t c) __attribute__((always_inline)) {
    const __m256i lanes = scale_lanes<F>(c);
    const bool half = !kFull && Traits<F>::nibbles && 2 * c + 1 == count;  // an odd number of nibble blocks
    UNROLL for (int r = 0; r < R; ++r) {
      const uint8_t* p = w.codes + (row + r) * w.codes_stride + (first + c) * 32;
      if (T == 1) _mm_prefetch(w.codes + row * w.codes_stride + ahead + ((first + c) * R + r) * 32, _MM_HINT_T1);
      __m256i codes = half ? _mm256_zextsi128_si256(load128(p)) : load256(p);
      if (kHasBias<F>) codes = _mm256_xor_si256(codes, _mm256_set1_epi8(static_cast<char>(Traits<F>::nibbles ? 0x88 : 0x80)));
      UNROLL for (int t = 0; t < T; ++t) {
        __m256i d = chunk_dot<F>(codes, x[t], first + c);
        if constexpr (kHasBias<F>) d = _mm256_add_epi32(d, chunk_bias<F>(x[t], first + c));
        acc[r][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(d), _mm256_permutevar8x32_ps(s[r][t], lanes), acc[r][t]);
      }
    }
  };
  if constexpr (kFull) {
    UNROLL for (int c = 0; c < 8 / kChunkBlocks<F>; ++c) chunk(c);
  } else {
    const int64_t chunks = (count + kChunkBlocks<F> - 1) / kChunkBlocks<F>;
#pragma GCC unroll 1
    for (int64_t c = 0; c < chunks; ++c) chunk(c);
  }
}

// Rows [row, row + R) for T tokens from t0 on.
template <Fmt F, int R, int T>
[[gnu::noinline]] void tile(const Matrix<F>& w, int64_t row, const uint8_t* prepared, const PreparedLayout& layout,
                            int64_t t0, float* y, int64_t y_stride, const Epilogue& e) {
  Token x[T];
  UNROLL for (int t = 0; t < T; ++t) x[t] = Token(prepared + (t0 + t) * layout.size, layout);
  __m256 acc[R][T];
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int t = 0; t < T; ++t) acc[r][t] = _mm256_setzero_ps();
  }
  int64_t b = 0;
  for (; b + 8 <= w.blocks; b += 8) eight_blocks<F, R, T, true>(acc, w, row, x, b, 8);
  if (b < w.blocks) eight_blocks<F, R, T, false>(acc, w, row, x, b, w.blocks - b);
  UNROLL for (int t = 0; t < T; ++t) {
    const __m256 pair = _mm256_hadd_ps(acc[0][t], acc[R - 1][t]), four = _mm256_hadd_ps(pair, pair);
    float v[4];
    _mm_storeu_ps(v, _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1)));
    UNROLL for (int r = 0; r < R; ++r) {
      const int64_t o = row + r;
      if (e.bias) v[r] += e.bias[o];
      if (e.residual) v[r] += e.residual[(t0 + t) * e.residual_stride + o];
      y[(t0 + t) * y_stride + o] = v[r];
    }
  }
}

template <Fmt F, int R>
void rows(const Matrix<F>& w, int64_t row, const uint8_t* x, const PreparedLayout& layout, int64_t tokens, float* y,
          int64_t y_stride, const Epilogue& e) {
  int64_t t = 0;
  for (; t + 2 <= tokens; t += 2) tile<F, R, 2>(w, row, x, layout, t, y, y_stride, e);
  if (t < tokens) tile<F, R, 1>(w, row, x, layout, t, y, y_stride, e);
}

}  // namespace
}  // namespace datong
