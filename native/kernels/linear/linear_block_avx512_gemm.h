// AVX-512 VNNI, many tokens: 16 rows are unpacked once into a panel, then used for every token. Included by one file only.
//
//   panel   [in / 4][16 rows][4] u8   per block of 32: 8 vectors; nibble formats: even elements, odd elements in turn
//   scales  [blocks][16 rows] f32     both levels multiplied; mins likewise, with their sign
//
// A tile is 16 rows x T tokens: one vector of the panel meets four activations of each token, broadcast from memory.
// Twelve tokens keep 24 accumulators in registers, three times what hides the latency of vpdpbusd.
#pragma once

#include "kernels/linear/linear_block_avx512_common.h"

namespace datong {
namespace {

constexpr int kTile = 12;  // tokens

// The format whose tiles F shares: once unpacked, only the order of the codes, their sign and the min tell them apart.
template <Fmt F>
constexpr Fmt kTileOf = F == Fmt::q4_k ? Fmt::q4_1 : F == Fmt::q5_k ? Fmt::q5_1 : F == Fmt::q5_0 ? Fmt::q8_0 : F;

struct Panel {
  uint8_t* codes;
  float *scales, *mins;

  template <Fmt F>
  static int64_t bytes(int64_t in) {
    const int64_t blocks = in / Traits<F>::block;
    return round_up(in, 128) * 16 + blocks * 64 * (Traits<F>::has_min ? 2 : 1);
  }
  template <Fmt F>
  static Panel in_scratch(void* scratch, int64_t in) {
    Panel p;
    p.codes = static_cast<uint8_t*>(scratch);
    p.scales = reinterpret_cast<float*>(p.codes + round_up(in, 128) * 16);
    p.mins = p.scales + in / Traits<F>::block * 16;
    return p;
  }
};

// 64 stored bytes of 16 rows.
template <Fmt F>
inline void unpack_chunk(__m512i v[16], uint8_t* out) {
  transpose16(v);
  if constexpr (Traits<F>::nibbles) {
    const __m512i low = _mm512_set1_epi8(15);
    UNROLL for (int j = 0; j < 16; ++j) {
      if (Traits<F>::is_signed) v[j] = _mm512_xor_si512(v[j], _mm512_set1_epi8(static_cast<char>(0x88)));
      _mm512_store_si512(out + j * 128, _mm512_and_si512(v[j], low));
      _mm512_store_si512(out + j * 128 + 64, _mm512_and_si512(_mm512_srli_epi16(v[j], 4), low));
    }
  } else {
    UNROLL for (int j = 0; j < 16; ++j) {
      if (Traits<F>::is_signed) v[j] = _mm512_xor_si512(v[j], _mm512_set1_epi8(static_cast<char>(0x80)));
      _mm512_store_si512(out + j * 64, v[j]);
    }
  }
}

template <Fmt F>
inline void unpack_levels(const uint8_t* one, const uint8_t* super, const int64_t rows[16], const Matrix<F>& w,
                          bool negate, float* out) {
  for (int64_t b = 0; b < w.blocks; b += 16) {
    const int64_t count = w.blocks - b < 16 ? w.blocks - b : 16;
    __m512i v[16];
    UNROLL for (int r = 0; r < 16; ++r) {
      const uint8_t* s = super + rows[r] * w.super_stride;
      v[r] = _mm512_castps_si512(levels16<F>(one + rows[r] * w.scale_stride, s, b, first16(count)));
    }
    if (negate) {
      UNROLL for (int r = 0; r < 16; ++r) v[r] = _mm512_xor_si512(v[r], _mm512_set1_epi32(INT32_MIN));
    }
    transpose16(v);
    for (int64_t i = 0; i < count; ++i) _mm512_store_si512(out + (b + i) * 16, v[i]);
  }
}

// Rows [row, row + count); those that a last panel lacks repeat the last one and are not stored.
template <Fmt F>
void unpack_panel(const Matrix<F>& w, int64_t row, int64_t count, const Panel& panel) {
  int64_t rows[16];
  for (int64_t r = 0; r < 16; ++r) rows[r] = row + (r < count ? r : count - 1);
  constexpr int64_t kOut = Traits<F>::nibbles ? 2048 : 1024;
  int64_t at = 0;
  uint8_t* out = panel.codes;
  for (; at < w.codes_stride; at += 64, out += kOut) {
    const __mmask64 m = first64(w.codes_stride - at);
    const uint8_t* next = w.codes + (row + 16) * w.codes_stride + at * 16;  // next panel, fetched while this one is used
    UNROLL for (int r = 0; r < 16; ++r) _mm_prefetch(next + r * 64, _MM_HINT_T1);
    __m512i v[16];
    UNROLL for (int r = 0; r < 16; ++r) v[r] = _mm512_maskz_loadu_epi8(m, w.codes + rows[r] * w.codes_stride + at);
    unpack_chunk<F>(v, out);
  }
  unpack_levels<F>(w.scale, w.super_scale, rows, w, false, panel.scales);
  if constexpr (Traits<F>::has_min) unpack_levels<F>(w.min, w.super_min, rows, w, Traits<F>::min_sign < 0, panel.mins);
}

inline __m512i four_of(const uint8_t* p) {
  int32_t v;
  memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}

// acc[t] += vectors [kFrom, kFrom + kCount) of a block, times the scale.
template <Fmt F, int T, int kFrom, int kCount>
inline void tile_block(__m512 acc[T], const uint8_t* codes, const float* scale, const uint8_t* x, int64_t stride,
                       const PreparedLayout& layout, int64_t b, int64_t bias_index) {
  __m512i d[T];
  UNROLL for (int t = 0; t < T; ++t) {
    if constexpr (Traits<F>::is_signed) {
      d[t] = _mm512_set1_epi32(ints_at(x + t * stride, layout.bias)[bias_index]);
      if constexpr (!Traits<F>::nibbles && kCount == 8)  // byte order has a bias for each half block
        d[t] = _mm512_add_epi32(d[t], _mm512_set1_epi32(ints_at(x + t * stride, layout.bias)[bias_index + 1]));
    } else {
      d[t] = _mm512_setzero_si512();
    }
  }
  const uint8_t* at = x + (Traits<F>::nibbles ? (b >> 2) * 128 + (b & 3) * 16 : b * 32);
  UNROLL for (int j = kFrom; j < kFrom + kCount; ++j) {
    const __m512i w = _mm512_load_si512(codes + j * 64);
    const int64_t offset = Traits<F>::nibbles ? j / 2 * 4 + j % 2 * 64 : j * 4;
    UNROLL for (int t = 0; t < T; ++t) d[t] = _mm512_dpbusd_epi32(d[t], w, four_of(at + t * stride + offset));
  }
  const __m512 s = _mm512_load_ps(scale);
  UNROLL for (int t = 0; t < T; ++t) {
    const __m512 both = _mm512_mul_ps(s, _mm512_set1_ps(floats_at(x + t * stride, layout.scale)[b]));
    acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(d[t]), both, acc[t]);
  }
}

// 16 rows of the panel x T tokens from t0 on; lanes m exist.
template <Fmt F, int T>
[[gnu::noinline]] void gemm_tile(const Panel& panel, const uint8_t* prepared, const PreparedLayout& layout, int64_t t0, int64_t row,
               __mmask16 m, float* y, int64_t y_stride, const Epilogue& e) {
  const uint8_t* x = prepared + t0 * layout.size;
  __m512 acc[T];
  UNROLL for (int t = 0; t < T; ++t) acc[t] = _mm512_setzero_ps();
  for (int64_t b = 0; b < layout.blocks; ++b) {
    const uint8_t* codes = panel.codes + b * 512;
    if constexpr (Traits<F>::block == 16) {
      tile_block<F, T, 0, 4>(acc, codes, panel.scales + b * 32, x, layout.size, layout, b, 2 * b);
      tile_block<F, T, 4, 4>(acc, codes, panel.scales + b * 32 + 16, x, layout.size, layout, b, 2 * b + 1);
    } else {
      tile_block<F, T, 0, 8>(acc, codes, panel.scales + b * 16, x, layout.size, layout, b,
                             Traits<F>::nibbles ? b : 2 * b);
    }
    if constexpr (Traits<F>::has_min) {
      const __m512 min = _mm512_load_ps(panel.mins + b * 16);
      UNROLL for (int t = 0; t < T; ++t)
        acc[t] = _mm512_fmadd_ps(min, _mm512_set1_ps(floats_at(x + t * layout.size, layout.sums)[b]), acc[t]);
    }
  }
  UNROLL for (int t = 0; t < T; ++t) store16(acc[t], m, t0 + t, row, y, y_stride, e);
}

// All tokens (at least kTile / 2) for one panel, in tiles of nearly equal size: a tile of one or two would wait for the
// latency of each product.
template <Fmt F>
void gemm_panel(const Panel& panel, const uint8_t* prepared, const PreparedLayout& layout, int64_t tokens, int64_t row,
                __mmask16 m, float* y, int64_t y_stride, const Epilogue& e) {
  const int64_t tiles = (tokens + kTile - 1) / kTile;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t t = tokens * i / tiles;
    switch (tokens * (i + 1) / tiles - t) {
      case 12: gemm_tile<F, 12>(panel, prepared, layout, t, row, m, y, y_stride, e); break;
      case 11: gemm_tile<F, 11>(panel, prepared, layout, t, row, m, y, y_stride, e); break;
      case 10: gemm_tile<F, 10>(panel, prepared, layout, t, row, m, y, y_stride, e); break;
      case 9: gemm_tile<F, 9>(panel, prepared, layout, t, row, m, y, y_stride, e); break;
      case 8: gemm_tile<F, 8>(panel, prepared, layout, t, row, m, y, y_stride, e); break;
      case 7: gemm_tile<F, 7>(panel, prepared, layout, t, row, m, y, y_stride, e); break;
      case 6: gemm_tile<F, 6>(panel, prepared, layout, t, row, m, y, y_stride, e); break;
    }
  }
}

}  // namespace
}  // namespace datong
