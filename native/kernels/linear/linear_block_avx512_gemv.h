// AVX-512 VNNI, few tokens: four rows x T tokens at once, the vector along the row. Included by one file only.
//
// 64 stored bytes are 128 nibbles (4 blocks) or 64 bytes (2 blocks, 4 of q6_k). vpdpbusd sums four products into a 32-bit
// lane, so each 128-bit quarter of the result belongs to one block. The lanes of a block are added up as integers, of four
// rows together: so four blocks of four rows are one vector, whose float sums go as linear_formats.h says.
#pragma once

#include "kernels/linear/linear_block_avx512_common.h"

namespace datong {
namespace {

// How far ahead codes are fetched, in bytes, if R rows are less. Rows lie one behind another, so the R rows that come next
// are one stretch of memory, but four rows read in step are too short for the hardware to foresee. Measured on Zen 4,
// weights from memory, 1 thread, q8_0 1536x576: 10.7 GB/s without, 16.6 with 2 KB, 23 with 4, 27 with 8, 26 with 16.
// Each byte is used once a step: fetched as such (NTA) it displaces nothing. On Zen 5 with 2 threads, q4_0 from memory,
// medians of three: 50 GB/s into L2, 55 so; plain reads 49.
constexpr int64_t kAhead = 8192;
template <Fmt F>
constexpr int64_t kLevelBytes = Traits<F>::two_level ? 1 : 2;
template <Fmt F>
constexpr int64_t kCodesPerLevel = Traits<F>::block / (Traits<F>::nibbles ? 2 : 1) / kLevelBytes<F>;  // bytes per byte

// One token's prepared activations.
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

// Of weight blocks [b, b + 4), in every quarter.
template <Fmt F>
inline __m512 token_scales(const Token& x, int64_t b) {
  if constexpr (Traits<F>::block == 16) {  // two weight blocks to an activation block
    const __m128 two = _mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x.scale + b / 2)));
    return _mm512_broadcast_f32x4(_mm_unpacklo_ps(two, two));
  } else {
    return _mm512_broadcast_f32x4(_mm_loadu_ps(x.scale + b));
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

// Does a chunk have outliers?
template <Fmt F>
inline bool chunk_outliers(const Token& x, int64_t chunk) {
  constexpr int64_t kBlocks = Traits<F>::nibbles ? 4 : 2;  // of 32
  uint32_t groups = 0xffffffff;
  memcpy(&groups, x.group + chunk * kBlocks, kBlocks);
  return groups != 0xffffffff;
}

// Products of 64 stored bytes with bytes of activations, added to d.
template <Fmt F>
inline __m512i products(__m512i d, __m512i codes, const uint8_t* x) {
  if constexpr (!Traits<F>::nibbles) return _mm512_dpbusd_epi32(d, codes, _mm512_loadu_si512(x));
  const __m512i low = _mm512_set1_epi8(15);
  const __m512i even = _mm512_and_si512(codes, low), odd = _mm512_and_si512(_mm512_srli_epi16(codes, 4), low);
  return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(d, even, _mm512_loadu_si512(x)), odd, _mm512_loadu_si512(x + 64));
}

// Products of 64 stored bytes with one token, added to `bias`.
template <Fmt F>
inline __m512i chunk_dot(__m512i codes, const Token& x, __m512i bias, bool outliers, int64_t chunk) {
  const int64_t at = chunk * (Traits<F>::nibbles ? 128 : 64);
  if (outliers) [[unlikely]]
    bias = _mm512_add_epi32(bias, _mm512_slli_epi32(products<F>(_mm512_setzero_si512(), codes, x.extra + at), 6));
  return products<F>(bias, codes, x.codes + at);
}

// v[r], quarter i: four lanes of block i of row r -> quarter r, lane i: their sum.
inline __m512i add_up(const __m512i v[4]) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
  // ab, quarter i: a, b, a, b; of cd the numbers from 16 on
  const __m512i first = _mm512_set_epi32(29, 25, 21, 17, 28, 24, 20, 16, 13, 9, 5, 1, 12, 8, 4, 0);
  const __m512i second = _mm512_set_epi32(31, 27, 23, 19, 30, 26, 22, 18, 15, 11, 7, 3, 14, 10, 6, 2);
  return _mm512_add_epi32(_mm512_permutex2var_epi32(ab, first, cd), _mm512_permutex2var_epi32(ab, second, cd));
}

// v[r]: 16 blocks of row r -> v[c], quarter r: blocks [4 c, 4 c + 4) of row r.
inline void fours(__m512 v[4]) {
  const __m512 a = _mm512_shuffle_f32x4(v[0], v[1], 0x44), b = _mm512_shuffle_f32x4(v[0], v[1], 0xee);
  const __m512 c = _mm512_shuffle_f32x4(v[2], v[3], 0x44), d = _mm512_shuffle_f32x4(v[2], v[3], 0xee);
  v[0] = _mm512_shuffle_f32x4(a, c, 0x88);
  v[1] = _mm512_shuffle_f32x4(a, c, 0xdd);
  v[2] = _mm512_shuffle_f32x4(b, d, 0x88);
  v[3] = _mm512_shuffle_f32x4(b, d, 0xdd);
}

// Sixteen blocks from b on, or the last `count` of them. acc[t], quarter r, lane i: blocks of row r with number % 4 == i.
template <Fmt F, int T, bool kFull>
inline void sixteen_blocks(__m512 acc[T], const FourRows<F>& w, int64_t ahead, const Token x[T], int64_t b,
                           int64_t count) {
  constexpr int kChunkBlocks = Traits<F>::nibbles || Traits<F>::block == 16 ? 4 : 2;
  constexpr int kChunks = 4 / kChunkBlocks;  // that hold four blocks
  constexpr int kBlockBytes = Traits<F>::nibbles ? Traits<F>::block / 2 : Traits<F>::block;
  const __mmask16 m = kFull ? 0xffff : first16(count);
  __m512 scale[4], min[4];
  UNROLL for (int r = 0; r < 4; ++r) {
    const int64_t levels = ahead / kCodesPerLevel<F> + (b * 4 + 16 * r) * kLevelBytes<F>;
    _mm_prefetch(w.scale[0] + levels, _MM_HINT_T1);
    scale[r] = levels16<F>(w.scale[r], w.super_scale[r], b, m);
    if constexpr (Traits<F>::has_min) {
      _mm_prefetch(w.min[0] + levels, _MM_HINT_T1);
      min[r] = levels16<F>(w.min[r], w.super_min[r], b, m);
    }
  }
  fours(scale);
  if constexpr (Traits<F>::has_min) fours(min);
  const auto four = [&](int64_t i, __m512 s, __m512 least) __attribute__((always_inline)) {
    const int64_t first = b + 4 * i;
    __m512i d[T][4];
    UNROLL for (int k = 0; k < kChunks; ++k) {
      const int64_t chunk = first / kChunkBlocks + k;
      const int64_t bytes = (count - 4 * i - k * kChunkBlocks) * kBlockBytes;
      __m512i bias[T];
      bool outliers[T];
      UNROLL for (int t = 0; t < T; ++t) {
        bias[t] = chunk_bias<F>(x[t], chunk);
        outliers[t] = chunk_outliers<F>(x[t], chunk);
      }
      UNROLL for (int r = 0; r < 4; ++r) {
        const uint8_t* p = w.codes[r] + chunk * 64;
        _mm_prefetch(w.codes[0] + ahead + (chunk * 4 + r) * 64, _MM_HINT_NTA);
        __m512i codes = kFull ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8(first64(bytes < 0 ? 0 : bytes), p);
        if (Traits<F>::is_signed)
          codes = _mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(Traits<F>::nibbles ? 0x88 : 0x80)));
        UNROLL for (int t = 0; t < T; ++t) {
          const __m512i v = chunk_dot<F>(codes, x[t], bias[t], outliers[t], chunk);
          if (k == 0) d[t][r] = v;
          else d[t][r] = _mm512_add_epi32(_mm512_shuffle_i32x4(d[t][r], v, 0x88), _mm512_shuffle_i32x4(d[t][r], v, 0xdd));
        }
      }
    }
    UNROLL for (int t = 0; t < T; ++t) {
      const __m512 both = _mm512_mul_ps(s, token_scales<F>(x[t], first));
      acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(add_up(d[t])), both, acc[t]);
      if constexpr (Traits<F>::has_min)
        acc[t] = add_min<F>(acc[t], least, _mm512_broadcast_f32x4(_mm_loadu_ps(x[t].sums + first)));
    }
  };
  if constexpr (kFull) {
    UNROLL for (int i = 0; i < 4; ++i) four(i, scale[i], min[i]);
  } else {
    UNROLL for (int i = 0; i < 4; ++i)
      if (4 * i < count) four(i, scale[i], min[i]);
  }
}

// Rows [row, row + count), at most four, for T tokens from t0 on.
template <Fmt F, int T>
[[gnu::noinline]] void gemv_tile(const Matrix<F>& w, int64_t row, int64_t count, const uint8_t* prepared,
                                 const PreparedLayout& layout, int64_t t0, float* y, int64_t y_stride, const Epilogue& e) {
  Token x[T];
  UNROLL for (int t = 0; t < T; ++t) x[t] = Token(prepared + (t0 + t) * layout.size, layout);
  const FourRows<F> rows(w, row, count);
  const int64_t ahead = 4 * w.codes_stride > kAhead ? 4 * w.codes_stride : kAhead;
  __m512 acc[T];
  UNROLL for (int t = 0; t < T; ++t) acc[t] = _mm512_setzero_ps();
  int64_t b = 0;
  for (; b + 16 <= w.blocks; b += 16) sixteen_blocks<F, T, true>(acc, rows, ahead, x, b, 16);
  if (b < w.blocks) sixteen_blocks<F, T, false>(acc, rows, ahead, x, b, w.blocks - b);
  const __m512i firsts = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
  UNROLL for (int t = 0; t < T; ++t) {
    __m512 sums = _mm512_add_ps(acc[t], _mm512_permute_ps(acc[t], 0x01));  // lane 0: 0 + 1
    sums = _mm512_add_ps(sums, _mm512_permute_ps(acc[t], 0x02));
    sums = _mm512_add_ps(sums, _mm512_permute_ps(acc[t], 0x03));
    store16(_mm512_permutexvar_ps(firsts, sums), first16(count), t0 + t, row, y, y_stride, e);
  }
}

template <Fmt F>
void gemv_rows(const Matrix<F>& w, int64_t row, int64_t count, const uint8_t* prepared, const PreparedLayout& layout,
               int64_t tokens, float* y, int64_t y_stride, const Epilogue& e) {
  int64_t t = 0;
  for (; tokens - t >= 4; t += 4) gemv_tile<F, 4>(w, row, count, prepared, layout, t, y, y_stride, e);
  switch (tokens - t) {
    case 3: gemv_tile<F, 3>(w, row, count, prepared, layout, t, y, y_stride, e); break;
    case 2: gemv_tile<F, 2>(w, row, count, prepared, layout, t, y, y_stride, e); break;
    case 1: gemv_tile<F, 1>(w, row, count, prepared, layout, t, y, y_stride, e); break;
  }
}

}  // namespace
}  // namespace datong
