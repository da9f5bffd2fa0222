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

template <Fmt F>
inline void unpack_levels(const uint8_t* one, const uint8_t* super, const int64_t rows[16], const Matrix<F>& w,
                          bool negate, float* out) {
  const __m512i sign = _mm512_set1_epi32(negate ? INT32_MIN : 0);
  const auto some = [&](int64_t b, __mmask16 m, int64_t count) __attribute__((always_inline)) {
    __m512i v[16];
    UNROLL for (int r = 0; r < 16; ++r)
      v[r] = _mm512_castps_si512(levels16<F>(one + rows[r] * w.scale_stride, super + rows[r] * w.super_stride, b, m));
    transpose16(v);
    for (int64_t i = 0; i < count; ++i) _mm512_store_si512(out + (b + i) * 16, _mm512_xor_si512(v[i], sign));
  };
  int64_t b = 0;
  for (; b + 16 <= w.blocks; b += 16) some(b, 0xffff, 16);
  const int64_t rest = w.blocks - b;
  if (!Traits<F>::two_level && rest == 2) unpack_two(one + 2 * b, rows, w.scale_stride, sign, out + b * 16);
  else if (rest) some(b, first16(rest), rest);
}

// Rows [row, row + count); those that a last panel lacks repeat the last one and are not stored. Levels of the panel `ahead`
// rows further, which takes this one's place, are fetched.
template <Fmt F>
void unpack_panel(const Matrix<F>& w, int64_t row, int64_t count, const Panel& panel, int64_t ahead) {
  int64_t rows[16];
  for (int64_t r = 0; r < 16; ++r) rows[r] = row + (r < count ? r : count - 1);
  constexpr int64_t kOut = Traits<F>::nibbles ? 2048 : 1024;
  for (int64_t i = 0, next = (row + ahead) * w.scale_stride; i < 16 * w.scale_stride; i += 64) {
    _mm_prefetch(w.scale + next + i, _MM_HINT_T1);
    if constexpr (Traits<F>::has_min) _mm_prefetch(w.min + next + i, _MM_HINT_T1);
  }
  int64_t at = 0;
  uint8_t* out = panel.codes;
  const auto chunk = [&](const auto& load) __attribute__((always_inline)) {
    __m512i v[16];
    UNROLL for (int r = 0; r < 16; ++r) v[r] = load(w.codes + rows[r] * w.codes_stride + at);
    unpack_chunk<F>(v, out);
  };
  for (; at + 64 <= w.codes_stride; at += 64, out += kOut) chunk([](const uint8_t* p) { return _mm512_loadu_si512(p); });
  const __mmask64 m = first64(w.codes_stride - at);
  if (m) chunk([m](const uint8_t* p) { return _mm512_maskz_loadu_epi8(m, p); });
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

// Codes of the panels that come next, fetched into L2 a few lines a block while tiles are computed: fetched all at once
// they would fill the queues, and memory and multipliers would work in turn. 16 tokens, q8_0, from memory, Zen 5, GB/s:
// 23 while unpacking, 34 spread out.
struct Fetch {
  const uint8_t *at, *end;
  int64_t lines;  // a block
  void block() {
    for (int64_t i = 0; i < lines && at < end; ++i, at += 64) _mm_prefetch(at, _MM_HINT_T1);
  }
};

// acc[p][t] += vectors [kFrom, kFrom + kCount) of a block of panel p, times the scale. x: codes of the block from the first
// token on; words: likewise its scales, sums and biases.
template <Fmt F, int P, int T, int kFrom, int kCount>
inline void tile_block(__m512 acc[P][T], const uint8_t* const codes[P], const float* const scale[P], const uint8_t* x,
                       const uint8_t* words) {
  constexpr int64_t kBias = kBiasAt + (Traits<F>::block == 32 ? 0 : kFrom ? 64 : 32);
  __m512i d[P][T];
  UNROLL for (int t = 0; t < T; ++t) {
    const __m512i bias = Traits<F>::is_signed ? ints_from(words + kBias + 4 * t) : _mm512_setzero_si512();
    UNROLL for (int p = 0; p < P; ++p) d[p][t] = bias;
  }
  UNROLL for (int j = kFrom; j < kFrom + kCount; ++j) {
    __m512i w[P];
    UNROLL for (int p = 0; p < P; ++p) w[p] = _mm512_load_si512(codes[p] + j * 64);
    UNROLL for (int t = 0; t < T; ++t) {
      const __m512i four = ints_from(x + t * 32 + j * 4);
      UNROLL for (int p = 0; p < P; ++p) d[p][t] = _mm512_dpbusd_epi32(d[p][t], w[p], four);
    }
  }
  UNROLL for (int p = 0; p < P; ++p) {
    const __m512 s = _mm512_load_ps(scale[p]);
    UNROLL for (int t = 0; t < T; ++t) {
      const __m512 both = _mm512_mul_ps(s, floats_from(words + kScaleAt + 4 * t));
      acc[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(d[p][t]), both, acc[p][t]);
    }
  }
}

// acc[p][t] = the blocks first, first + step ..., in the order of linear_formats.h.
template <Fmt F, int P, int T, int kFrom, int kCount>
inline void tile_part(__m512 acc[P][T], const Panel panels[P], const uint8_t* x, const uint8_t* words, int64_t blocks,
                      int64_t first, int64_t step, Fetch& fetch) {
  constexpr int64_t kScales = 16 * 32 / Traits<F>::block;
  const uint8_t* codes[P];
  const float *scales[P], *mins[P];
  UNROLL for (int p = 0; p < P; ++p) {
    codes[p] = panels[p].codes + first * 512;
    scales[p] = panels[p].scales + first * kScales + (kFrom ? 16 : 0);
    mins[p] = panels[p].mins + first * 16;
    UNROLL for (int t = 0; t < T; ++t) acc[p][t] = _mm512_setzero_ps();
  }
  x += first * kEight<Traits<F>::nibbles>;
  words += first * kEight<Traits<F>::nibbles>;
  for (int64_t b = first; b < blocks; b += step) {
    fetch.block();
    tile_block<F, P, T, kFrom, kCount>(acc, codes, scales, x, words);
    UNROLL for (int p = 0; p < P; ++p) {
      if constexpr (Traits<F>::has_min) {
        const __m512 min = _mm512_load_ps(mins[p]);
        UNROLL for (int t = 0; t < T; ++t) acc[p][t] = _mm512_fmadd_ps(min, floats_from(words + kSumsAt + 4 * t), acc[p][t]);
        mins[p] += step * 16;
      }
      codes[p] += step * 512;
      scales[p] += step * kScales;
    }
    x += step * kEight<Traits<F>::nibbles>;
    words += step * kEight<Traits<F>::nibbles>;
  }
}

// P panels of 16 rows x T tokens from token `from` of the half group at x on, which is token t0. Of the last panel lanes m
// exist.
template <Fmt F, int P, int T>
[[gnu::noinline]] void gemm_tile(const Panel panels[P], const uint8_t* x, int64_t from, int64_t blocks, int64_t t0,
                                 int64_t row, __mmask16 m, float* y, int64_t y_stride, const Epilogue& e, Fetch& fetch) {
  const uint8_t *codes = x + 32 * from, *words = x + 4 * from;
  __m512 total[P][T];
  UNROLL for (int p = 0; p < P; ++p) {
    UNROLL for (int t = 0; t < T; ++t) total[p][t] = _mm512_setzero_ps();
  }
#pragma GCC unroll 1
  for (int i = 0; i < 4; ++i) {
    __m512 acc[P][T];
    if constexpr (Traits<F>::block == 32) tile_part<F, P, T, 0, 8>(acc, panels, codes, words, blocks, i, 4, fetch);
    else if (i % 2) tile_part<F, P, T, 4, 4>(acc, panels, codes, words, blocks, i / 2, 2, fetch);
    else tile_part<F, P, T, 0, 4>(acc, panels, codes, words, blocks, i / 2, 2, fetch);
    UNROLL for (int p = 0; p < P; ++p) {
      UNROLL for (int t = 0; t < T; ++t) total[p][t] = _mm512_add_ps(total[p][t], acc[p][t]);
    }
  }
  UNROLL for (int p = 0; p < P; ++p) {
    UNROLL for (int t = 0; t < T; ++t)
      store16(total[p][t], p + 1 < P ? 0xffff : m, t0 + t, row + 16 * p, y, y_stride, e);
  }
}

// Four tokens or fewer of two panels: each broadcast activation meets two vectors of weights, so the multipliers and not
// the loads are what is busy.
template <Fmt F>
void gemm_pair(const Panel panels[2], const uint8_t* x, int64_t from, int64_t blocks, int64_t t0, int64_t count, int64_t row, __mmask16 m,
               float* y, int64_t y_stride, const Epilogue& e, Fetch& fetch) {
  switch (count) {
    case 4: return gemm_tile<F, 2, 4>(panels, x, from, blocks, t0, row, m, y, y_stride, e, fetch);
    case 3: return gemm_tile<F, 2, 3>(panels, x, from, blocks, t0, row, m, y, y_stride, e, fetch);
    case 2: return gemm_tile<F, 2, 2>(panels, x, from, blocks, t0, row, m, y, y_stride, e, fetch);
    case 1: return gemm_tile<F, 2, 1>(panels, x, from, blocks, t0, row, m, y, y_stride, e, fetch);
  }
}

template <Fmt F>
void gemm_single(const Panel& panel, const uint8_t* x, int64_t blocks, int64_t t0, int64_t count, int64_t row, __mmask16 m,
                 float* y, int64_t y_stride, const Epilogue& e, Fetch& fetch) {
  switch (count) {
    case 8: return gemm_tile<F, 1, 8>(&panel, x, 0, blocks, t0, row, m, y, y_stride, e, fetch);
    case 7: return gemm_tile<F, 1, 7>(&panel, x, 0, blocks, t0, row, m, y, y_stride, e, fetch);
    case 6: return gemm_tile<F, 1, 6>(&panel, x, 0, blocks, t0, row, m, y, y_stride, e, fetch);
    case 5: return gemm_tile<F, 1, 5>(&panel, x, 0, blocks, t0, row, m, y, y_stride, e, fetch);
    case 4: return gemm_tile<F, 1, 4>(&panel, x, 0, blocks, t0, row, m, y, y_stride, e, fetch);
    case 3: return gemm_tile<F, 1, 3>(&panel, x, 0, blocks, t0, row, m, y, y_stride, e, fetch);
    case 2: return gemm_tile<F, 1, 2>(&panel, x, 0, blocks, t0, row, m, y, y_stride, e, fetch);
    case 1: return gemm_tile<F, 1, 1>(&panel, x, 0, blocks, t0, row, m, y, y_stride, e, fetch);
  }
}

// `count` tokens of a half group, for the panels of rows [row, end).
template <Fmt F>
void gemm_half_group(const Panel panels[], const uint8_t* x, int64_t blocks, int64_t t0, int64_t count, int64_t row,
                     int64_t end, float* y, int64_t y_stride, const Epilogue& e, Fetch& fetch) {
  for (; end - row > 16; row += 32, panels += 2) {
    const __mmask16 m = first16(end - row - 16);
    for (int64_t t = 0; t < count; t += 4)
      gemm_pair<F>(panels, x, t, blocks, t0 + t, count - t < 4 ? count - t : 4, row, m, y, y_stride, e, fetch);
  }
  if (row < end) gemm_single<F>(*panels, x, blocks, t0, count, row, first16(end - row), y, y_stride, e, fetch);
}

// Panels unpacked before the tokens are gone through: a half group of activations is read once for all of them. They
// should stay in L1 and L2 while activations stream by. 512 tokens, two threads, Zen 5, GOP/s with 2 | 4 | 8 panels:
// 1536x576 1561 | 1619 | 1467, 2048x8192 1291 | 1412 | 1410.
constexpr int64_t kMostPanels = 4;
template <Fmt F>
inline int64_t panels_at_once(int64_t in, int64_t tokens) {
  const int64_t fit = (512 << 10) / Panel::bytes<F>(in);
  return tokens < 64 || fit < 2 ? 2 : fit > kMostPanels ? kMostPanels : fit;
}

// Of rows [row, row + count), spread over so many tiles.
template <Fmt F>
Fetch fetch_of(const Matrix<F>& w, int64_t in, int64_t row, int64_t count, int64_t tiles) {
  const uint8_t *begin = w.codes + row * w.codes_stride, *end = begin + count * w.codes_stride;
  const int64_t each = 64 * tiles * (in / kBlock) * (Traits<F>::block == 32 ? 1 : 2);  // bytes if a line a block were fetched
  return {begin, end, (end - begin + each - 1) / each};
}

// `rows`: the matrix has so many that this thread will ask for.
template <Fmt F>
void gemm(const Matrix<F>& w, int64_t in, int64_t rows, const uint8_t* prepared, int64_t tokens, int64_t out_begin, int64_t out_end,
          float* y, int64_t y_stride, const Epilogue& e, void* scratch) {
  const int64_t blocks = in / kBlock, panels = panels_at_once<F>(in, tokens), bytes = Panel::bytes<F>(in);
  Panel all[kMostPanels];
  for (int64_t i = 0; i < panels; ++i) all[i] = Panel::in_scratch<F>(static_cast<uint8_t*>(scratch) + i * bytes, in);
  const auto rows_from = [&](int64_t row) { return out_end - row < 16 ? out_end - row : 16; };
  for (int64_t first = out_begin; first < out_end; first += 16 * panels) {
    const int64_t end = out_end - first < 16 * panels ? out_end : first + 16 * panels;
    for (int64_t row = first; row < end; row += 16) unpack_panel<F>(w, row, rows_from(row), all[(row - first) / 16], 16 * panels);
    const uint8_t* x = prepared;
    const int64_t rest = rows - end < end - first ? rows - end : end - first;
    Fetch fetch = fetch_of<F>(w, in, end, rest, (end - first + 31) / 32 * ((tokens + 3) / 4));
    for (int64_t t = 0; t < tokens; t += 8, x += half_group_bytes<Traits<F>::nibbles>(in))
      gemm_half_group<kTileOf<F>>(all, x, blocks, t, tokens - t < 8 ? tokens - t : 8, first, end, y, y_stride, e, fetch);
  }
}

}  // namespace
}  // namespace datong
