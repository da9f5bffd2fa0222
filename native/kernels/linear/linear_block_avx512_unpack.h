// AVX-512: 16 rows of a block format, a chunk of columns at a time, to panels that tiles multiply. Included by one file only.
//
//   codes   [columns / 4][16 rows][4] u8   per block of 32: 8 vectors
//           nibble formats: [columns / 8][16 rows][4], low nibbles the even elements; 4 vectors
//   scales  [blocks][16 rows] f32          both levels multiplied; mins likewise, with their sign
#pragma once

#include "kernels/linear/linear_block_avx512_common.h"

namespace datong {
namespace {

// Blocks of 32 to a chunk, a multiple of 16. Two panels of a chunk and their levels are 35 to 40 KB, which with the
// activations of four tokens is about a core's L1. A rest that is a little larger is not cut. 16 sequences on 1.1 billion
// parameters, q4_0, Zen 5, beside 32: 48 (which cuts 64 into 48 and 16) 0.94 x, 64 1.04 x.
template <bool kNibbles>
constexpr int64_t kUsualChunk = kNibbles ? 64 : 32;
template <bool kNibbles>
constexpr int64_t kMostChunk = kUsualChunk<kNibbles> + 4;

template <bool kNibbles>
int64_t chunk_after(int64_t begin, int64_t blocks) {
  const int64_t rest = blocks - begin;
  return rest <= kMostChunk<kNibbles> ? rest : kUsualChunk<kNibbles>;
}

struct Panel {
  uint8_t* codes;
  float *scales, *mins;

  static constexpr int64_t kCodes = kMostChunk<false> * 32 * 16, kLevels = kMostChunk<false> * 2 * 64;
  static_assert(kMostChunk<true> * 16 * 16 <= kCodes && kMostChunk<true> * 64 <= kLevels);
  static constexpr int64_t kBytes = kCodes + 2 * kLevels;
  explicit Panel(uint8_t* at)
      : codes(at), scales(reinterpret_cast<float*>(at + kCodes)), mins(reinterpret_cast<float*>(at + kCodes + kLevels)) {}
};

// 64 stored bytes of 16 rows, of which the first 4 * `vectors` exist.
template <Fmt F>
inline void unpack_chunk(__m512i v[16], uint8_t* out, int64_t vectors) {
  transpose16(v);
  constexpr int kSigns = Traits<F>::nibbles ? 0x88 : 0x80;
  UNROLL for (int j = 0; j < 16; ++j) {
    if (Traits<F>::is_signed) v[j] = _mm512_xor_si512(v[j], _mm512_set1_epi8(static_cast<char>(kSigns)));
    if (j < vectors) _mm512_store_si512(out + j * 64, v[j]);
  }
}

// Two blocks of f16 levels of 16 rows, without the transposition of sixteen.
inline void unpack_two(const uint8_t* one, const int64_t rows[16], int64_t stride, __m512i sign, float* out) {
  alignas(64) uint32_t pairs[16];
  UNROLL for (int r = 0; r < 16; ++r) memcpy(&pairs[r], one + rows[r] * stride, 4);
  const __m512i both = _mm512_load_si512(pairs);
  UNROLL for (int i = 0; i < 2; ++i) {
    const __m512 v = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(i ? _mm512_srli_epi32(both, 16) : both));
    _mm512_store_si512(out + 16 * i, _mm512_xor_si512(_mm512_castps_si512(v), sign));
  }
}

// Levels [begin, begin + count) of 16 rows; begin is a multiple of 16.
template <Fmt F>
inline void unpack_levels(const uint8_t* one, const uint8_t* super, const int64_t rows[16], const Matrix<F>& w, int64_t begin,
                          int64_t count, bool negate, float* out) {
  const __m512i sign = _mm512_set1_epi32(negate ? INT32_MIN : 0);
  const auto some = [&](int64_t b, __mmask16 m, int64_t n) __attribute__((always_inline)) {
    __m512i v[16];
    UNROLL for (int r = 0; r < 16; ++r)
      v[r] = _mm512_castps_si512(levels16<F>(one + rows[r] * w.scale_stride, super + rows[r] * w.super_stride, begin + b, m));
    transpose16(v);
    for (int64_t i = 0; i < n; ++i) _mm512_store_si512(out + (b + i) * 16, _mm512_xor_si512(v[i], sign));
  };
  int64_t b = 0;
  for (; b + 16 <= count; b += 16) some(b, 0xffff, 16);
  const int64_t rest = count - b;
  if (!Traits<F>::two_level && rest == 2) unpack_two(one + 2 * (begin + b), rows, w.scale_stride, sign, out + b * 16);
  else if (rest) some(b, first16(rest), rest);
}

// The rows of a panel from `row` on, of which `existing` exist: those that it lacks repeat the last one and are not stored.
inline void rows_of_panel(int64_t row, int64_t existing, int64_t rows[16]) {
  for (int64_t r = 0; r < 16; ++r) rows[r] = row + (r < existing ? r : existing - 1);
}

// Codes of blocks of 32 [begin, begin + count).
template <Fmt F>
void unpack_codes(const Matrix<F>& w, const int64_t rows[16], int64_t begin, int64_t count, uint8_t* out) {
  constexpr int64_t kBytes = Traits<F>::nibbles ? 16 : 32;  // of a block
  const int64_t end = (begin + count) * kBytes;
  int64_t at = begin * kBytes;
  __m512i v[16];
  for (; at + 64 <= end; at += 64, out += 1024) {
    UNROLL for (int r = 0; r < 16; ++r) v[r] = _mm512_loadu_si512(w.codes + rows[r] * w.codes_stride + at);
    unpack_chunk<F>(v, out, 16);
  }
  if (at == end) return;
  UNROLL for (int r = 0; r < 16; ++r) v[r] = _mm512_maskz_loadu_epi8(first64(end - at), w.codes + rows[r] * w.codes_stride + at);
  unpack_chunk<F>(v, out, (end - at) / 4);
}

// Blocks of 32 [begin, begin + count) of rows [row, row + existing).
template <Fmt F>
void unpack_panel(const Matrix<F>& w, int64_t row, int64_t existing, int64_t begin, int64_t count, const Panel& panel) {
  constexpr int64_t kLevels = 32 / Traits<F>::block;
  int64_t rows[16];
  rows_of_panel(row, existing, rows);
  unpack_codes<F>(w, rows, begin, count, panel.codes);
  unpack_levels<F>(w.scale, w.super_scale, rows, w, begin * kLevels, count * kLevels, false, panel.scales);
  if constexpr (Traits<F>::has_min)
    unpack_levels<F>(w.min, w.super_min, rows, w, begin * kLevels, count * kLevels, Traits<F>::min_sign < 0, panel.mins);
}

}  // namespace
}  // namespace datong
