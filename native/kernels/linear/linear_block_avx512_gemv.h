// AVX-512 VNNI, few tokens: R rows x T tokens at once, the vector along the row. Included by one file only.
//
// 64 stored bytes are 128 nibbles (4 blocks) or 64 bytes (2 blocks, 4 of q6_k). vpdpbusd sums four products into a 32-bit
// lane, so each 128-bit quarter of the result belongs to one block; it is converted and multiplied by its own scale.
// Lanes are added up once, at the end of the row.
#pragma once

#include "kernels/linear/linear_block_avx512_common.h"

namespace datong {
namespace {

// How far ahead codes are fetched into L2, in bytes, if R rows are less. Rows lie one behind another, so the R rows that
// come next are one stretch of memory, but four rows read in step are too short for the hardware to foresee. Measured on
// Zen 4, weights from memory, 1 thread, q8_0 1536x576: 10.7 GB/s without, 16.6 with 2 KB, 23 with 4, 27 with 8, 26 with
// 16; into L1 instead of L2: 16 with 4 KB.
constexpr int64_t kAhead = 8192;
template <Fmt F>
constexpr int64_t kLevelBytes = Traits<F>::two_level ? 1 : 2;
template <Fmt F>
constexpr int64_t kCodesPerLevel = Traits<F>::block / (Traits<F>::nibbles ? 2 : 1) / kLevelBytes<F>;  // bytes per byte

// Which of 16 values (scales from block b on) each lane of chunk c takes.
template <Fmt F>
inline __m512i scale_lanes(int c) {
  const __m512i quarter = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  const __m512i half = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
  const bool four = Traits<F>::nibbles || Traits<F>::block == 16;
  return four ? _mm512_add_epi32(quarter, _mm512_set1_epi32(4 * c)) : _mm512_add_epi32(half, _mm512_set1_epi32(2 * c));
}

// One token's prepared activations.
struct Token {
  const uint8_t* codes;
  const float *scale, *sums;
  const int32_t* bias;
  Token() = default;
  Token(const uint8_t* p, const PreparedLayout& l)
      : codes(p), scale(floats_at(p, l.scale)), sums(floats_at(p, l.sums)), bias(ints_at(p, l.bias)) {}
};

// Activation scales of 16 weight blocks from block b on.
template <Fmt F>
inline __m512 token_scales(const Token& x, int64_t b) {
  if constexpr (Traits<F>::block == 16) {  // two weight blocks to an activation block
    const __m512i pairs = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    return _mm512_permutexvar_ps(pairs, _mm512_castps256_ps512(_mm256_loadu_ps(x.scale + b / 2)));
  } else {
    return _mm512_loadu_ps(x.scale + b);
  }
}

// What a chunk's four quarters start from: the bias in the first lane of each.
template <Fmt F>
inline __m512i chunk_bias(const Token& x, int64_t chunk) {
  if constexpr (!Traits<F>::is_signed) {
    return _mm512_setzero_si512();
  } else {
    const __m512i spread = _mm512_set_epi32(0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0);
    const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x.bias + 4 * chunk));
    return _mm512_maskz_permutexvar_epi32(0x1111, spread, _mm512_castsi128_si512(four));
  }
}

// acc += chunk c of the 16 blocks whose combined scales are s.
template <Fmt F, int T>
inline void chunk_rows(__m512 acc[T], const __m512 s[T], const Token x[T], const __m512i bias[T], __m512i codes,
                       int64_t chunk, __m512i lanes) {
  if constexpr (Traits<F>::nibbles) {
    const __m512i low = _mm512_set1_epi8(15);
    if (Traits<F>::is_signed) codes = _mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(0x88)));
    const __m512i even = _mm512_and_si512(codes, low), odd = _mm512_and_si512(_mm512_srli_epi16(codes, 4), low);
    UNROLL for (int t = 0; t < T; ++t) {
      __m512i d = _mm512_dpbusd_epi32(bias[t], even, _mm512_loadu_si512(x[t].codes + chunk * 128));
      d = _mm512_dpbusd_epi32(d, odd, _mm512_loadu_si512(x[t].codes + chunk * 128 + 64));
      acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(d), _mm512_permutexvar_ps(lanes, s[t]), acc[t]);
    }
  } else {
    if (Traits<F>::is_signed) codes = _mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80)));
    UNROLL for (int t = 0; t < T; ++t) {
      const __m512i d = _mm512_dpbusd_epi32(bias[t], codes, _mm512_loadu_si512(x[t].codes + chunk * 64));
      acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(d), _mm512_permutexvar_ps(lanes, s[t]), acc[t]);
    }
  }
}

// Sixteen blocks from b on, or the last `count` of them.
template <Fmt F, int R, int T, bool kFull>
inline void sixteen_blocks(__m512 acc[R][T], const Matrix<F>& w, int64_t row, const Token x[T], int64_t b,
                           int64_t count) {
  constexpr int kChunkBlocks = Traits<F>::nibbles || Traits<F>::block == 16 ? 4 : 2;
  const __mmask16 m = kFull ? 0xffff : first16(count);
  __m512 s[R][T];
  const int64_t ahead = R * w.codes_stride > kAhead ? R * w.codes_stride : kAhead;
  UNROLL for (int r = 0; r < R; ++r) {
    const uint8_t* super = w.super_scale + (row + r) * w.super_stride;
    const int64_t levels = row * w.scale_stride + ahead / kCodesPerLevel<F> + (b * R + 16 * r) * kLevelBytes<F>;
    _mm_prefetch(w.scale + levels, _MM_HINT_T1);
    if (Traits<F>::has_min) _mm_prefetch(w.min + levels, _MM_HINT_T1);
    const __m512 scale = levels16<F>(w.scale + (row + r) * w.scale_stride, super, b, m);
    UNROLL for (int t = 0; t < T; ++t) s[r][t] = _mm512_mul_ps(scale, token_scales<F>(x[t], b));
    if constexpr (Traits<F>::has_min) {
      const uint8_t* super_min = w.super_min + (row + r) * w.super_stride;
      const __m512 min = levels16<F>(w.min + (row + r) * w.scale_stride, super_min, b, m);
      UNROLL for (int t = 0; t < T; ++t) acc[r][t] = add_min<F>(acc[r][t], min, _mm512_loadu_ps(x[t].sums + b));
    }
  }
  const int64_t first = b / kChunkBlocks;
  constexpr int kBlockBytes = Traits<F>::nibbles ? Traits<F>::block / 2 : Traits<F>::block;
  const auto chunk = [&](int64_t c) __attribute__((always_inline)) {
    const __m512i lanes = scale_lanes<F>(static_cast<int>(c));
    const __mmask64 bytes = kFull ? ~0ull : first64((count - c * kChunkBlocks) * kBlockBytes);
    __m512i bias[T];
    UNROLL for (int t = 0; t < T; ++t) bias[t] = chunk_bias<F>(x[t], first + c);
    UNROLL for (int r = 0; r < R; ++r) {
      const uint8_t* p = w.codes + (row + r) * w.codes_stride + (first + c) * 64;
      _mm_prefetch(w.codes + row * w.codes_stride + ahead + ((first + c) * R + r) * 64, _MM_HINT_T1);
      const __m512i codes = kFull ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8(bytes, p);
      chunk_rows<F, T>(acc[r], s[r], x, bias, codes, first + c, lanes);
    }
  };
  if constexpr (kFull) {
    UNROLL for (int c = 0; c < 16 / kChunkBlocks; ++c) chunk(c);
  } else {
    const int64_t chunks = (count + kChunkBlocks - 1) / kChunkBlocks;
#pragma GCC unroll 1
    for (int64_t c = 0; c < chunks; ++c) chunk(c);
  }
}

// Rows [row, row + R) for T tokens from t0 on.
template <Fmt F, int R, int T>
[[gnu::noinline]] void gemv_tile(const Matrix<F>& w, int64_t row, const uint8_t* prepared, const PreparedLayout& layout, int64_t t0,
               float* y, int64_t y_stride, const Epilogue& e) {
  Token x[T];
  UNROLL for (int t = 0; t < T; ++t) x[t] = Token(prepared + (t0 + t) * layout.size, layout);
  __m512 acc[R][T];
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int t = 0; t < T; ++t) acc[r][t] = _mm512_setzero_ps();
  }
  int64_t b = 0;
  for (; b + 16 <= w.blocks; b += 16) sixteen_blocks<F, R, T, true>(acc, w, row, x, b, 16);
  if (b < w.blocks) sixteen_blocks<F, R, T, false>(acc, w, row, x, b, w.blocks - b);
  UNROLL for (int t = 0; t < T; ++t) {
    const __m512 zero = _mm512_setzero_ps();
    const __m128 v = R == 4   ? sum4(acc[0][t], acc[1 % R][t], acc[2 % R][t], acc[3 % R][t])
                     : R == 2 ? sum4(acc[0][t], acc[1 % R][t], zero, zero)
                              : sum4(acc[0][t], zero, zero, zero);
    store16(_mm512_castps128_ps512(v), first16(R), t0 + t, row, y, y_stride, e);
  }
}

template <Fmt F, int R>
void gemv_rows(const Matrix<F>& w, int64_t row, const uint8_t* prepared, const PreparedLayout& layout, int64_t tokens,
               float* y, int64_t y_stride, const Epilogue& e) {
  int64_t t = 0;
  for (; tokens - t >= 4; t += 4) gemv_tile<F, R, 4>(w, row, prepared, layout, t, y, y_stride, e);
  switch (tokens - t) {
    case 3: gemv_tile<F, R, 3>(w, row, prepared, layout, t, y, y_stride, e); break;
    case 2: gemv_tile<F, R, 2>(w, row, prepared, layout, t, y, y_stride, e); break;
    case 1: gemv_tile<F, R, 1>(w, row, prepared, layout, t, y, y_stride, e); break;
  }
}

}  // namespace
}  // namespace datong
