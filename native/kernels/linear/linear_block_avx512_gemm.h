// AVX-512 VNNI, many tokens: 16 rows are unpacked once into a panel, then used for every token. Included by one file only.
//
//   panel   [in / 4][16 rows][4] u8   per block of 32: 8 vectors; nibble formats: even elements, odd elements in turn
//   scales  [blocks][16 rows] f32     both levels multiplied; mins likewise, with their sign
//
// A tile is 16 rows x up to 8 tokens: one vector of the panel meets four activations of each token, broadcast from
// memory. Eight independent sums are twice what hides the latency of vpdpbusd (4 cycles, one a cycle).
#pragma once

#include "kernels/linear/linear_block_avx512_prepare.h"

namespace datong {
namespace {

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

inline int32_t int_at(const uint8_t* p) {
  int32_t v;
  memcpy(&v, p, 4);
  return v;
}
inline __m512i ints_from(const uint8_t* p) { return _mm512_set1_epi32(int_at(p)); }
inline __m512 floats_from(const uint8_t* p) { return _mm512_castsi512_ps(ints_from(p)); }

// acc[t] += vectors [kFrom, kFrom + kCount) of a block, times the scale. x: the block of the half group.
template <Fmt F, int T, int kFrom, int kCount>
inline void tile_block(__m512 acc[T], const uint8_t* codes, const float* scale, const uint8_t* x) {
  __m512i d[T];
  UNROLL for (int t = 0; t < T; ++t) {
    if constexpr (!Traits<F>::is_signed) d[t] = _mm512_setzero_si512();
    else d[t] = ints_from(x + kBiasAt + (kFrom ? 32 : 0) + 4 * t);
    if constexpr (Traits<F>::is_signed && !Traits<F>::nibbles && kCount == 8)  // byte order has a bias for each half
      d[t] = _mm512_add_epi32(d[t], ints_from(x + kBiasAt + 32 + 4 * t));
  }
  UNROLL for (int j = kFrom; j < kFrom + kCount; ++j) {
    const __m512i w = _mm512_load_si512(codes + j * 64);
    UNROLL for (int t = 0; t < T; ++t) d[t] = _mm512_dpbusd_epi32(d[t], w, ints_from(x + t * 32 + j * 4));
  }
  const __m512 s = _mm512_load_ps(scale);
  UNROLL for (int t = 0; t < T; ++t) {
    const __m512 both = _mm512_mul_ps(s, floats_from(x + kScaleAt + 4 * t));
    acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(d[t]), both, acc[t]);
  }
}

// acc[t] += the blocks of remainder `part` by 4, in the order of linear_formats.h.
template <Fmt F, int T, int kFrom, int kCount>
inline void tile_part(__m512 acc[T], const Panel& panel, const uint8_t* x, int64_t blocks, int64_t first, int64_t step) {
  constexpr int64_t kScales = 16 * 32 / Traits<F>::block;
  const uint8_t* codes = panel.codes + first * 512;
  const float *scales = panel.scales + first * kScales + (kFrom ? 16 : 0), *mins = panel.mins + first * 16;
  x += first * kEight<Traits<F>::nibbles>;
  UNROLL for (int t = 0; t < T; ++t) acc[t] = _mm512_setzero_ps();
  for (int64_t b = first; b < blocks; b += step) {
    tile_block<F, T, kFrom, kCount>(acc, codes, scales, x);
    if constexpr (Traits<F>::has_min) {
      const __m512 min = _mm512_load_ps(mins);
      UNROLL for (int t = 0; t < T; ++t) acc[t] = _mm512_fmadd_ps(min, floats_from(x + kSumsAt + 4 * t), acc[t]);
      mins += step * 16;
    }
    codes += step * 512;
    scales += step * kScales;
    x += step * kEight<Traits<F>::nibbles>;
  }
}

// 16 rows of the panel x the first T tokens of a half group at x; the results are those of token t0. Lanes m exist.
template <Fmt F, int T>
[[gnu::noinline]] void gemm_tile(const Panel& panel, const uint8_t* x, int64_t blocks, int64_t t0, int64_t row,
                                 __mmask16 m, float* y, int64_t y_stride, const Epilogue& e) {
  __m512 total[T];
  UNROLL for (int t = 0; t < T; ++t) total[t] = _mm512_setzero_ps();
#pragma GCC unroll 1
  for (int i = 0; i < 4; ++i) {
    __m512 acc[T];
    if constexpr (Traits<F>::block == 32) tile_part<F, T, 0, 8>(acc, panel, x, blocks, i, 4);
    else if (i % 2) tile_part<F, T, 4, 4>(acc, panel, x, blocks, i / 2, 2);
    else tile_part<F, T, 0, 4>(acc, panel, x, blocks, i / 2, 2);
    UNROLL for (int t = 0; t < T; ++t) total[t] = _mm512_add_ps(total[t], acc[t]);
  }
  UNROLL for (int t = 0; t < T; ++t) store16(total[t], m, t0 + t, row, y, y_stride, e);
}

template <Fmt F>
void gemm_half_group(const Panel& panel, const uint8_t* x, int64_t blocks, int64_t t0, int64_t count, int64_t row,
                     __mmask16 m, float* y, int64_t y_stride, const Epilogue& e) {
  switch (count) {
    case 8: return gemm_tile<F, 8>(panel, x, blocks, t0, row, m, y, y_stride, e);
    case 7: return gemm_tile<F, 7>(panel, x, blocks, t0, row, m, y, y_stride, e);
    case 6: return gemm_tile<F, 6>(panel, x, blocks, t0, row, m, y, y_stride, e);
    case 5: return gemm_tile<F, 5>(panel, x, blocks, t0, row, m, y, y_stride, e);
    case 4: return gemm_tile<F, 4>(panel, x, blocks, t0, row, m, y, y_stride, e);
    case 3: return gemm_tile<F, 3>(panel, x, blocks, t0, row, m, y, y_stride, e);
    case 2: return gemm_tile<F, 2>(panel, x, blocks, t0, row, m, y, y_stride, e);
    case 1: return gemm_tile<F, 1>(panel, x, blocks, t0, row, m, y, y_stride, e);
  }
}

// Panels unpacked before the tokens are gone through: each half group is then read from L2 or L3 once for all of them.
// They share half of a Zen 4 core's 1 MB of L2 with the activations. For few tokens one panel: the next one arrives from
// memory meanwhile.
template <Fmt F>
inline int64_t panels_at_once(int64_t in, int64_t tokens) {
  const int64_t fit = (512 << 10) / Panel::bytes<F>(in);
  return tokens < 64 || fit < 1 ? 1 : fit > 8 ? 8 : fit;
}

template <Fmt F>
void gemm(const Matrix<F>& w, int64_t in, const uint8_t* prepared, int64_t tokens, int64_t out_begin, int64_t out_end,
          float* y, int64_t y_stride, const Epilogue& e, void* scratch) {
  const int64_t blocks = in / kBlock, panels = panels_at_once<F>(in, tokens), bytes = Panel::bytes<F>(in);
  const auto panel = [&](int64_t i) { return Panel::in_scratch<F>(static_cast<uint8_t*>(scratch) + i * bytes, in); };
  const auto rows_from = [&](int64_t row) { return out_end - row < 16 ? out_end - row : 16; };
  for (int64_t first = out_begin; first < out_end; first += 16 * panels) {
    const int64_t end = out_end - first < 16 * panels ? out_end : first + 16 * panels;
    for (int64_t row = first; row < end; row += 16) unpack_panel<F>(w, row, rows_from(row), panel((row - first) / 16));
    const uint8_t* x = prepared;
    for (int64_t t = 0; t < tokens; t += 8, x += half_group_bytes<Traits<F>::nibbles>(in))
      for (int64_t row = first; row < end; row += 16)
        gemm_half_group<kTileOf<F>>(panel((row - first) / 16), x, blocks, t, tokens - t < 8 ? tokens - t : 8, row,
                                    first16(rows_from(row)), y, y_stride, e);
  }
}

}  // namespace
}  // namespace datong
