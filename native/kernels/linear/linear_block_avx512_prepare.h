// AVX-512: activations to int8, for few tokens as in linear_prepared.h, for many in groups. Included by one file only.
//
// From kGemmTokens on, tokens are interleaved by eights, so that a tile of the GEMM walks over one stretch of memory
// and finds everything at constant distances (with a pointer per token the compiler ran out of registers). Per half group
// of 8 tokens and block of 32, kEight<nibbles> bytes:
//
//   codes  [8 tokens][8][4] i8   in the order of the panel: fours of even and odd elements in turn, or plain
//   scale  [8 tokens] f32        as in linear_prepared.h
//   sums   [8 tokens] f32
//   extra  [8 tokens] 4 x i8
//   group  [2][4 tokens] u8      16 bytes from one four to the next
//   bias   [8 tokens] i32        byte order: [3][8 tokens], of the block and of each half of it
#pragma once

#include "kernels/linear/linear_block_avx512_common.h"

namespace datong {
namespace {

// From this many tokens on, panels are multiplied tile by tile. Measured on Zen 5, two threads, packed weights from memory,
// q8_0 576x1536 with 4 tokens, share of plain reads: 0.45 by tiles, 0.78 all four at once along a panel.
constexpr int64_t kGemmTokens = 5;

template <bool kNibbles>
constexpr int64_t kEight = 256 + 4 * 32 + (kNibbles ? 32 : 96);
constexpr int64_t kScaleAt = 256, kSumsAt = 288, kExtraAt = 320, kGroupAt = 352, kBiasAt = 384;

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

// In each quarter a 4 x 4 transposition: u[k], quarter q, lane i = v[i], quarter q, lane k.
inline void transpose_quarters(const __m512i v[4], __m512i u[4]) {
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  u[0] = _mm512_unpacklo_epi64(a, c);
  u[1] = _mm512_unpackhi_epi64(a, c);
  u[2] = _mm512_unpacklo_epi64(b, d);
  u[3] = _mm512_unpackhi_epi64(b, d);
}

// Of two blocks (four vectors of |x|): lane i of quarter q = the largest of group q of vector i; i = 0, 1 are one block.
template <bool kNibbles>
inline __m512i group_tops(const __m512i v[4]) {
  __m512i u[4];
  transpose_quarters(v, u);
  const __m512i even = _mm512_max_epu32(u[0], u[2]), odd = _mm512_max_epu32(u[1], u[3]);
  if constexpr (!kNibbles) return _mm512_max_epu32(even, odd);
  // a group is the even or the odd ones of eight elements, which are two quarters
  const __m512i evens = _mm512_max_epu32(even, _mm512_shuffle_i32x4(even, even, 0xb1));
  const __m512i odds = _mm512_max_epu32(odd, _mm512_shuffle_i32x4(odd, odd, 0xb1));
  return _mm512_mask_mov_epi32(evens, 0xf0f0, odds);
}

// Bit patterns of the largest |x| of four blocks, and of the largest outside its group. Compared as integers, a NaN is the
// largest and is not lost.
struct Tops {
  __m128 top, rest;
};
template <bool kNibbles>
inline Tops tops4(const __m512 x[8]) {
  __m512i v[8];
  UNROLL for (int i = 0; i < 8; ++i) v[i] = abs_bits(x[i]);
  __m512i high[2], low[2];
  UNROLL for (int i = 0; i < 2; ++i) {
    const __m512i g = group_tops<kNibbles>(v + 4 * i), other = _mm512_shuffle_epi32(g, _MM_PERM_CDAB);
    high[i] = _mm512_max_epu32(g, other);
    low[i] = _mm512_min_epu32(g, other);
  }
  const auto blocks = [](__m512i a, __m512i b) {  // lanes 0 and 2 of both: four blocks
    return _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), 0x88));
  };
  __m512i top = blocks(high[0], high[1]), rest = blocks(low[0], low[1]);
  const auto merge = [&](__m512i top2, __m512i rest2) {
    rest = _mm512_max_epu32(_mm512_max_epu32(rest, rest2), _mm512_min_epu32(top, top2));
    top = _mm512_max_epu32(top, top2);
  };
  merge(_mm512_shuffle_i32x4(top, top, 0x4e), _mm512_shuffle_i32x4(rest, rest, 0x4e));
  merge(_mm512_shuffle_i32x4(top, top, 0xb1), _mm512_shuffle_i32x4(rest, rest, 0xb1));
  return {_mm_castsi128_ps(_mm512_castsi512_si128(top)), _mm_castsi128_ps(_mm512_castsi512_si128(rest))};
}

struct Four {          // four quantised blocks
  __m512i codes[2];    // q, plain order
  __m512i extra[2];    // e, likewise; unless outliers is 0
  unsigned outliers;   // which blocks have one
  __m128 scale, sums;  // one for each block
  __m128i first, second;  // sum of n of each half block
};

// 128 elements, of which `count` exist.
inline void load128(const float* x, int64_t count, __m512 v[8]) {
  if (count >= 128) {
    UNROLL for (int i = 0; i < 8; ++i) v[i] = _mm512_loadu_ps(x + 16 * i);
  } else {
    UNROLL for (int i = 0; i < 8; ++i)
      v[i] = _mm512_maskz_loadu_ps(first16(count - 16 * i < 0 ? 0 : count - 16 * i), x + 16 * i);
  }
}

// A row's tops, and by how much they make an outlier.
struct RowTops {
  static constexpr int64_t kKept = 128;  // fours of blocks; of longer rows the others are found again
  Tops kept[kKept];
  __m128 limit;
};

template <bool kNibbles>
inline Tops tops_at(const float* x, int64_t count) {
  __m512 v[8];
  load128(x, count, v);
  return tops4<kNibbles>(v);
}

template <bool kNibbles>
inline void find_tops(const float* x, const float* later, int64_t in, RowTops& row) {
  __m128 sum = _mm_setzero_ps();
  for (int64_t i = 0; 128 * i < in; ++i) {
    const Tops t = tops_at<kNibbles>(x + 128 * i, in - 128 * i);
    // Rows that follow may lie in another core's cache, which wrote them.
    UNROLL for (int k = 0; k < 8; ++k) _mm_prefetch(later + 128 * i + 16 * k, _MM_HINT_T0);
    if (i < RowTops::kKept) row.kept[i] = t;
    sum = _mm_add_ps(sum, t.top);
  }
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  sum = _mm_add_ss(sum, _mm_movehdup_ps(sum));
  row.limit = _mm_set1_ps(kOutlier * (_mm_cvtss_f32(sum) / static_cast<float>(in / kBlock)));
}

// 128 elements, of which `count` exist.
inline Four quantise4(const float* x, int64_t count, const Tops& t, __m128 limit) {
  __m512 v[8];
  load128(x, count, v);
  const __m128 most = _mm_set1_ps(127.0f), wide = _mm_set1_ps(8191.5f);
  const __mmask8 normal = _mm_cmp_ps_mask(t.top, _mm_set1_ps(kTiny), _CMP_GT_OQ);
  __m128 d = _mm_div_ps(t.top, most), inverse = _mm_maskz_div_ps(normal, most, t.top);
  Four f;
  f.outliers = _mm_mask_cmp_ps_mask(normal, _mm_sub_ps(t.top, t.rest), limit, _CMP_GT_OQ) &
               _mm_cmp_ps_mask(t.top, _mm_set1_ps(__builtin_inff()), _CMP_LT_OQ) & 15u;
  if (f.outliers) {
    const auto m = static_cast<__mmask8>(f.outliers);
    d = _mm_mask_max_ps(d, m, _mm_div_ps(t.rest, most), _mm_div_ps(t.top, wide));
    inverse = _mm_mask_min_ps(inverse, m, _mm_div_ps(most, t.rest), _mm_div_ps(wide, t.top));
  }
  // A block of tiny values gets d = 0; a NaN stays in d.
  const __m128 scale = _mm_maskz_mov_ps(_mm_cmp_ps_mask(t.top, _mm_set1_ps(kTiny), _CMP_NLE_UQ), d);
  __m128i q[8], e[8];
  UNROLL for (int i = 0; i < 8; ++i) {
    const __m512 k = _mm512_permutexvar_ps(_mm512_set1_epi32(i / 2), _mm512_castps128_ps512(inverse));
    __m512i n = _mm512_cvtps_epi32(_mm512_mul_ps(v[i], k));
    if (f.outliers) {
      const __mmask16 far = _mm512_cmpgt_epu32_mask(_mm512_abs_epi32(n), _mm512_set1_epi32(127));
      __m512i high = _mm512_maskz_srai_epi32(far, _mm512_add_epi32(n, _mm512_set1_epi32(32)), 6);
      high = _mm512_min_epi32(_mm512_max_epi32(high, _mm512_set1_epi32(-127)), _mm512_set1_epi32(127));
      e[i] = _mm512_cvtepi32_epi8(high);
      n = _mm512_sub_epi32(n, _mm512_slli_epi32(high, 6));
    }
    q[i] = _mm512_cvtsepi32_epi8(n);
  }
  const auto join = [](const __m128i b[4]) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(b[1], b[0])), _mm256_set_m128i(b[3], b[2]), 1);
  };
  __m512i s[2];  // sums of 16 in every lane of their quarter
  UNROLL for (int i = 0; i < 2; ++i) {
    f.codes[i] = join(q + 4 * i);
    __m512i four = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), f.codes[i]);
    if (f.outliers) {
      f.extra[i] = join(e + 4 * i);
      four = _mm512_dpbusd_epi32(four, _mm512_set1_epi8(64), f.extra[i]);
    }
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

// Nibble formats: of each eight codes first the even ones, then the odd ones.
inline __m512i split_fours(__m512i codes) {
  return _mm512_shuffle_epi8(codes, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)));
}

// The group of each of four blocks, and its e. By reference: what is stored by bytes and read by words makes a processor wait.
struct Groups {
  uint8_t group[4];
  uint32_t extra[4];
};
template <bool kNibbles>
[[gnu::noinline]] void find_groups(const Four& f, Groups& g) {
  alignas(64) uint32_t fours[32];
  __mmask16 there[2];
  UNROLL for (int i = 0; i < 2; ++i) {
    const __m512i e = kNibbles ? split_fours(f.extra[i]) : f.extra[i];
    there[i] = _mm512_test_epi32_mask(e, e);
    _mm512_store_si512(fours + 16 * i, e);
  }
  const uint32_t all = there[0] | static_cast<uint32_t>(there[1]) << 16;
  for (int b = 0; b < 4; ++b) {
    const uint32_t mine = all >> 8 * b & 255;
    g.group[b] = mine ? static_cast<uint8_t>(__builtin_ctz(mine)) : kNoGroup;
    g.extra[b] = mine ? fours[8 * b + g.group[b]] : 0;
  }
}

inline __m128i minus_shifted(__m128i v, int bits) { return _mm_sub_epi32(_mm_setzero_si128(), _mm_slli_epi32(v, bits)); }

// Codes of four blocks in the order of linear_prepared.h.
template <bool kNibbles>
inline void store_codes(const __m512i codes[2], uint8_t* out) {
  UNROLL for (int half = 0; half < 2; ++half) {
    if constexpr (kNibbles) {
      const __m256i a = _mm512_cvtepi16_epi8(half ? _mm512_srli_epi16(codes[0], 8) : codes[0]);
      const __m256i c = _mm512_cvtepi16_epi8(half ? _mm512_srli_epi16(codes[1], 8) : codes[1]);
      _mm512_storeu_si512(out + half * 64, _mm512_inserti64x4(_mm512_castsi256_si512(a), c, 1));
    } else {
      _mm512_storeu_si512(out + half * 64, codes[half]);
    }
  }
}

template <bool kNibbles>
inline void store_plain(const Four& f, int64_t b, const PreparedLayout& layout, uint8_t* out) {
  Groups g{{kNoGroup, kNoGroup, kNoGroup, kNoGroup}, {0, 0, 0, 0}};
  if (f.outliers) find_groups<kNibbles>(f, g);
  memcpy(out + layout.group + b, g.group, 4);
  _mm_storeu_ps(reinterpret_cast<float*>(out + layout.scale) + b, f.scale);
  _mm_storeu_ps(reinterpret_cast<float*>(out + layout.sums) + b, f.sums);
  __m128i* bias = reinterpret_cast<__m128i*>(out + layout.bias + b * (kNibbles ? 4 : 8));
  const __m512i none = _mm512_setzero_si512();
  const __m512i extra[2] = {f.outliers ? f.extra[0] : none, f.outliers ? f.extra[1] : none};
  store_codes<kNibbles>(f.codes, out + b * 32);
  store_codes<kNibbles>(extra, out + layout.extra + b * 32);
  if constexpr (kNibbles) {
    _mm_storeu_si128(bias, minus_shifted(_mm_add_epi32(f.first, f.second), 3));
  } else {
    _mm_storeu_si128(bias, minus_shifted(_mm_unpacklo_epi32(f.first, f.second), 7));
    _mm_storeu_si128(bias + 1, minus_shifted(_mm_unpackhi_epi32(f.first, f.second), 7));
  }
}

// `out`: the token's codes in the half group. Only the first `blocks` of the four exist.
template <bool kNibbles>
inline void store_interleaved(const Four& f, int64_t blocks, int64_t token, uint8_t* out) {
  alignas(16) uint32_t words[5][4];  // scale, sums, bias; of bytes also the bias of each half
  Groups g;
  if (f.outliers) find_groups<kNibbles>(f, g);
  __m512i codes[2];
  UNROLL for (int i = 0; i < 2; ++i) codes[i] = kNibbles ? split_fours(f.codes[i]) : f.codes[i];
  const auto word = [&](int k) { return reinterpret_cast<__m128i*>(words[k]); };
  _mm_store_si128(word(0), _mm_castps_si128(f.scale));
  _mm_store_si128(word(1), _mm_castps_si128(f.sums));
  _mm_store_si128(word(2), minus_shifted(_mm_add_epi32(f.first, f.second), kNibbles ? 3 : 7));
  if constexpr (!kNibbles) {
    _mm_store_si128(word(3), minus_shifted(f.first, 7));
    _mm_store_si128(word(4), minus_shifted(f.second, 7));
  }
  constexpr int64_t kAt[5] = {kScaleAt, kSumsAt, kBiasAt, kBiasAt + 32, kBiasAt + 64};
  UNROLL for (int64_t b = 0; b < 4; ++b) {
    if (b == blocks) return;
    const __m256i half = b % 2 ? _mm512_extracti64x4_epi64(codes[b / 2], 1) : _mm512_castsi512_si256(codes[b / 2]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + token * 32), half);
    UNROLL for (int k = 0; k < (kNibbles ? 3 : 5); ++k) memcpy(out + kAt[k] + 4 * token, &words[k][b], 4);
    const uint32_t extra = f.outliers ? g.extra[b] : 0;
    memcpy(out + kExtraAt + 4 * token, &extra, 4);
    out[kGroupAt + token / 4 * 16 + token % 4] = f.outliers ? g.group[b] : kNoGroup;
    out += kEight<kNibbles>;
  }
}

template <bool kNibbles>
void prepare(const float* x, int64_t x_stride, int64_t in, int64_t row_begin, int64_t row_end, void* prepared) {
  const PreparedLayout layout(in, kNibbles);
  const bool interleaved = row_begin > 0 || row_end >= kGemmTokens;  // the whole is at least row_end tokens
  for (int64_t t = row_begin; t < row_end; ++t) {
    uint8_t* base = static_cast<uint8_t*>(prepared);
    uint8_t* out = interleaved ? base + t / 8 * half_group_bytes<kNibbles>(in) : base + t * layout.size;
    const float* const values = x + t * x_stride;
    RowTops tops;
    find_tops<kNibbles>(values, values + 2 * x_stride, in, tops);
    int64_t b = 0;
    for (; b < layout.blocks; b += 4) {
      const Tops top = b / 4 < RowTops::kKept ? tops.kept[b / 4] : tops_at<kNibbles>(values + b * 32, in - b * 32);
      const Four f = quantise4(values + b * 32, in - b * 32, top, tops.limit);
      if (interleaved) store_interleaved<kNibbles>(f, layout.blocks - b < 4 ? layout.blocks - b : 4, t % 8, out + b * kEight<kNibbles>);
      else store_plain<kNibbles>(f, b, layout, out);
    }
    for (; !interleaved && b < round_up(layout.blocks, 16); b += 4) {  // padding
      memset(out + layout.scale + b * 4, 0, 16);
      memset(out + layout.sums + b * 4, 0, 16);
      memset(out + layout.bias + b * (kNibbles ? 4 : 8), 0, kNibbles ? 16 : 32);
      memset(out + layout.group + b, kNoGroup, 4);
    }
  }
}

}  // namespace
}  // namespace datong
