// AVX-512 VNNI: a matrix packed once, when it is loaded, into panels of 16 rows; and few tokens on it. Included by one file
// only.
//
// The rows of a panel meet in the lanes of a vector, so an activation is broadcast, nothing has to be added up across lanes,
// and one vector of scales serves 16 rows. A panel is one stretch of memory that is read from end to end, panels follow one
// another. A panel is pairs of blocks of 32 columns (the last one may lack the second), and behind them the super levels:
//
//   codes        as in linear_block_avx512_unpack.h, signed ones shifted to unsigned: a block is 256 or 512 bytes
//   scale, min   [2 blocks, 4 of q6_k][16 rows] as stored: f16, or u8 or i8 below a super block
//
//   super_*      [super blocks][16 rows] f16
//
// Levels stand beside their codes, and each line that is used asks for the one kPackedAhead further on: memory answers best
// when it is asked for one stream, evenly. Share of plain reads of the same bytes, one token, from memory, two threads,
// Zen 5: q8_0 1536x576 0.90, q4_0 2048x8192 0.98; with levels behind all codes and a block's lines fetched at once 0.79, 0.86.
// q4_0 2048x8192, two threads, Zen 5, GOP/s, stored | packed: 16 tokens from memory 1,159 | 1,438, 4 tokens 592 | 742.
#pragma once

#include "kernels/linear/linear_block_avx512_gemv.h"
#include "kernels/linear/linear_block_avx512_unpack.h"

namespace datong {
namespace {

constexpr int64_t kPanelRows = 16;
constexpr int64_t kPackedAhead = 4096;  // bytes; 2048 and 8192 were up to 3 % slower on one shape or another

template <Fmt F>
struct PackedLayout {
  static constexpr int64_t kBlockCodes = Traits<F>::nibbles ? 256 : 512;  // bytes of 32 columns
  static constexpr int64_t kPerBlock = 32 / Traits<F>::block;             // scales to 32 columns
  static constexpr int64_t kLevel = (Traits<F>::two_level ? 1 : 2) * kPanelRows;  // bytes of the scales or mins of a block
  static constexpr int64_t kScale = 2 * kBlockCodes, kMin = kScale + 2 * kPerBlock * kLevel;  // offsets in a pair
  static constexpr int64_t kPair = kMin + (Traits<F>::has_min ? 2 * kLevel : 0);
  static_assert(kPair % 64 == 0);
  int64_t blocks;                        // of 32
  int64_t super_scale, super_min, size;  // offsets in a panel, its bytes

  explicit PackedLayout(int64_t in) : blocks(in / kBlock) {
    const int64_t super_bytes = Traits<F>::two_level ? in / Traits<F>::super * kPanelRows * 2 : 0;
    super_scale = (blocks + 1) / 2 * kPair;
    super_min = super_scale + super_bytes;
    size = round_up(super_min + (Traits<F>::has_min ? super_bytes : 0), 64);
  }

  // Of block b of 32 in its panel: its codes; of weight block b: its scales and mins.
  static int64_t codes(int64_t b) { return b / 2 * kPair + b % 2 * kBlockCodes; }
  static int64_t level(int64_t b) { return b / (2 * kPerBlock) * kPair + kScale + b % (2 * kPerBlock) * kLevel; }
  static constexpr int64_t kToMin = kMin - kScale;
};

template <Fmt F>
size_t packed_bytes(const WeightView& w) {
  return static_cast<size_t>((w.out + kPanelRows - 1) / kPanelRows * PackedLayout<F>(w.in).size);
}

// Element `i` of `size` bytes of 16 rows, next to one another.
inline void pack_level(const uint8_t* from, int64_t stride, const int64_t rows[16], int64_t i, int64_t size, uint8_t* to) {
  for (int64_t r = 0; r < kPanelRows; ++r) memcpy(to + r * size, from + rows[r] * stride + i * size, static_cast<size_t>(size));
}

// Rows [row_begin, row_end) of w to their panels; row_begin is a multiple of 16, row_end too, or w.out.
template <Fmt F>
void pack(const WeightView& view, int64_t row_begin, int64_t row_end, uint8_t* packed) {
  const Matrix<F> w(view);
  const PackedLayout<F> l(view.in);
  constexpr int64_t kSize = l.kLevel / kPanelRows;
  for (int64_t row = row_begin; row < row_end; row += kPanelRows) {
    uint8_t* panel = packed + row / kPanelRows * l.size;
    int64_t rows[kPanelRows];
    rows_of_panel(row, row_end - row < kPanelRows ? row_end - row : kPanelRows, rows);
    const int64_t last = (l.blocks - 1) / 2 * l.kPair;
    memset(panel + last, 0, static_cast<size_t>(l.size - last));  // what no block fills
    for (int64_t b = 0; b < l.blocks; b += 2) unpack_codes<F>(w, rows, b, l.blocks - b < 2 ? 1 : 2, panel + l.codes(b));
    for (int64_t b = 0; b < w.blocks; ++b) {
      pack_level(w.scale, w.scale_stride, rows, b, kSize, panel + l.level(b));
      if constexpr (Traits<F>::has_min) pack_level(w.min, w.scale_stride, rows, b, kSize, panel + l.level(b) + l.kToMin);
    }
    for (int64_t b = 0; Traits<F>::two_level && b < w.super_stride / 2; ++b) {
      pack_level(w.super_scale, w.super_stride, rows, b, 2, panel + l.super_scale + b * 32);
      if constexpr (Traits<F>::has_min) pack_level(w.super_min, w.super_stride, rows, b, 2, panel + l.super_min + b * 32);
    }
  }
}

template <Fmt F>
WeightView stored(const WeightView& view, int64_t row, int64_t column, int64_t columns, uint8_t* room) {
  const PackedLayout<F> l(view.in);
  const uint8_t* const panel = view.packed + row / kPanelRows * l.size;
  const int64_t lane = row % kPanelRows, first = column / Traits<F>::block, levels = columns / Traits<F>::block;
  WeightView part = view;
  part.packed = nullptr;
  part.out = 1;
  part.in = columns;
  part.codes = room;
  constexpr uint32_t kSigns = !Traits<F>::is_signed ? 0 : Traits<F>::nibbles ? 0x88888888u : 0x80808080u;
  for (int64_t b = column / kBlock; b < (column + columns) / kBlock; ++b) {
    for (int64_t i = 0; i < l.kBlockCodes; i += 64, room += 4) {
      uint32_t four;
      memcpy(&four, panel + l.codes(b) + i + lane * 4, 4);
      four ^= kSigns;
      memcpy(room, &four, 4);
    }
  }
  constexpr int64_t kSize = l.kLevel / kPanelRows;
  const auto take = [&](int64_t offset) {
    uint8_t* const begin = room;
    for (int64_t b = first; b < first + levels; ++b, room += kSize) memcpy(room, panel + l.level(b) + offset + lane * kSize, kSize);
    return begin;
  };
  const auto take_super = [&](int64_t offset) {
    uint8_t* const begin = room;
    for (int64_t b = column / Traits<F>::super; b < (column + columns) / Traits<F>::super; ++b, room += 2)
      memcpy(room, panel + offset + b * 32 + lane * 2, 2);
    return reinterpret_cast<const uint16_t*>(begin);
  };
  part.scale = take(0);
  if constexpr (Traits<F>::has_min) part.min = take(l.kToMin);
  if constexpr (Traits<F>::two_level) {
    room += (room - part.codes) % 2;  // f16 at even places
    part.super_scale = take_super(l.super_scale);
    if constexpr (Traits<F>::has_min) part.super_min = take_super(l.super_min);
  }
  return part;
}

// Of 16 rows: scales or mins of a weight block, times those of its super block.
template <Fmt F>
inline __m512 packed_level(const uint8_t* one, const uint8_t* super) {
  if constexpr (!Traits<F>::two_level) {
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(one)));
  } else {
    const __m128i codes = _mm_load_si128(reinterpret_cast<const __m128i*>(one));
    const __m512i wide = F == Fmt::q6_k ? _mm512_cvtepi8_epi32(codes) : _mm512_cvtepu8_epi32(codes);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(wide), _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(super))));
  }
}

// Scales and mins of blocks of 32 [begin, begin + count) as tiles want them.
template <Fmt F>
void packed_levels(const uint8_t* panel, const PackedLayout<F>& l, int64_t begin, int64_t count, const Panel& out) {
  const int64_t first = begin * l.kPerBlock, n = count * l.kPerBlock;
  const __m512i sign = _mm512_set1_epi32(Traits<F>::min_sign < 0 ? INT32_MIN : 0);
  for (int64_t i = 0; i < n; ++i) {
    const uint8_t* const scale = panel + l.level(first + i);
    const int64_t super = (first + i) * Traits<F>::block / Traits<F>::super * 32;
    _mm512_store_ps(out.scales + 16 * i, packed_level<F>(scale, panel + l.super_scale + super));
    if constexpr (Traits<F>::has_min) {
      const __m512 min = packed_level<F>(scale + l.kToMin, panel + l.super_min + super);
      _mm512_store_si512(out.mins + 16 * i, _mm512_xor_si512(_mm512_castps_si512(min), sign));
    }
  }
}

inline __m512i dword(const void* p) {
  int32_t v;
  memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}

// Group g of a block of 32 columns, as bytes.
template <bool kNibbles>
inline __m512i group_codes(const uint8_t* codes, int g) {
  if constexpr (!kNibbles) return _mm512_load_si512(codes + g * 64);
  const __m512i both = _mm512_srl_epi16(_mm512_load_si512(codes + g / 2 * 64), _mm_cvtsi32_si128(g % 2 * 4));
  return _mm512_and_si512(both, _mm512_set1_epi8(15));
}

// 64 times the products of a group with its e.
inline __m512i times_extra(__m512i codes, const void* extra) {
  return _mm512_slli_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, dword(extra)), 6);
}

// What the products of weight block b start from: the bias, of bytes there is one for each 16, and the outlier's excess.
// codes: of the block of 32.
template <Fmt F>
inline __m512i packed_start(const Token& x, const uint8_t* codes, int64_t b) {
  constexpr int kGroups = Traits<F>::block / 4;
  const int64_t wide = b / PackedLayout<F>::kPerBlock;  // block of 32
  const int first = static_cast<int>(b - wide * PackedLayout<F>::kPerBlock) * kGroups, g = x.group[wide];
  __m512i d = _mm512_setzero_si512();
  if constexpr (Traits<F>::is_signed) {
    if constexpr (Traits<F>::nibbles || Traits<F>::block == 16) d = _mm512_set1_epi32(x.bias[b]);
    else d = _mm512_set1_epi32(x.bias[2 * b] + x.bias[2 * b + 1]);
  }
  if (g >= first && g < first + kGroups) [[unlikely]]
    d = _mm512_add_epi32(d, times_extra(group_codes<Traits<F>::nibbles>(codes, g), x.extra + group_at(Traits<F>::nibbles, wide, g)));
  return d;
}

// acc[t] += weight block b + i of 16 rows, as linear_formats.h says. b is a multiple of four, its codes begin at `four`; i, of
// four, is known to the compiler.
template <Fmt F, int T>
[[gnu::always_inline]] inline void packed_block(__m512 acc[T], const uint8_t* panel, const uint8_t* four, const PackedLayout<F>& l,
                                                const Token x[T], int64_t b, int i) {
  const int64_t wide = (b + i) / l.kPerBlock;  // block of 32
  const uint8_t* const whole = four + l.codes(i / l.kPerBlock);
  const uint8_t* const codes = whole + i % l.kPerBlock * (l.kBlockCodes / l.kPerBlock);
  const uint8_t* const scales = four + l.level(i);
  if (i % (2 * l.kPerBlock) == 0) {
    UNROLL for (int64_t line = 0; line < l.kPair - l.kScale; line += 64) _mm_prefetch(scales + kPackedAhead + line, _MM_HINT_NTA);
  }
  __m512i d[T];
  UNROLL for (int t = 0; t < T; ++t) d[t] = packed_start<F>(x[t], whole, b + i);
  UNROLL for (int j = 0; j < l.kBlockCodes / l.kPerBlock / 64; ++j) {
    _mm_prefetch(codes + kPackedAhead + j * 64, _MM_HINT_NTA);
    const __m512i w = _mm512_load_si512(codes + j * 64);
    if constexpr (Traits<F>::nibbles) {
      const __m512i low = _mm512_set1_epi8(15);
      const __m512i even = _mm512_and_si512(w, low), odd = _mm512_and_si512(_mm512_srli_epi16(w, 4), low);
      UNROLL for (int t = 0; t < T; ++t) {
        const uint8_t* const at = x[t].codes + b * 32 + i * 16 + 4 * j;
        d[t] = _mm512_dpbusd_epi32(d[t], even, dword(at));
        d[t] = _mm512_dpbusd_epi32(d[t], odd, dword(at + 64));
      }
    } else {
      UNROLL for (int t = 0; t < T; ++t) d[t] = _mm512_dpbusd_epi32(d[t], w, dword(x[t].codes + (b + i) * Traits<F>::block + 4 * j));
    }
  }
  const int64_t super = (b + i) * Traits<F>::block / Traits<F>::super * 32;
  const __m512 scale = packed_level<F>(scales, panel + l.super_scale + super);
  UNROLL for (int t = 0; t < T; ++t)
    acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(d[t]), _mm512_mul_ps(scale, _mm512_set1_ps(x[t].scale[wide])), acc[t]);
  if constexpr (Traits<F>::has_min) {
    const __m512 min = packed_level<F>(scales + l.kToMin, panel + l.super_min + super);
    UNROLL for (int t = 0; t < T; ++t) acc[t] = add_min<F>(acc[t], min, _mm512_set1_ps(x[t].sums[wide]));
  }
}

// Rows [row, row + count) of one panel, for T tokens.
template <Fmt F, int T>
[[gnu::noinline]] void packed_tile(const uint8_t* panel, const PackedLayout<F>& l, int64_t row, int64_t count,
                                   const uint8_t* prepared, const PreparedLayout& layout, float* y, int64_t y_stride, const Epilogue& e) {
  Token x[T];
  UNROLL for (int t = 0; t < T; ++t) x[t] = Token(prepared + t * layout.size, layout);
  const int64_t blocks = l.blocks * l.kPerBlock;
  __m512 acc[4][T];  // by block % 4
  UNROLL for (int i = 0; i < 4; ++i) {
    UNROLL for (int t = 0; t < T; ++t) acc[i][t] = _mm512_setzero_ps();
  }
  const uint8_t* four = panel;
  int64_t b = 0;
  for (; b + 4 <= blocks; b += 4, four += l.kPair * 2 / l.kPerBlock) {
    UNROLL for (int i = 0; i < 4; ++i) packed_block<F, T>(acc[i], panel, four, l, x, b, i);
  }
  UNROLL for (int i = 0; i < 3; ++i)
    if (b + i < blocks) packed_block<F, T>(acc[i], panel, four, l, x, b, i);
  UNROLL for (int t = 0; t < T; ++t) {
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(acc[0][t], acc[1][t]), acc[2][t]), acc[3][t]);
    store16(sum, first16(count), t, row, y, y_stride, e);
  }
}

// Outputs [out_begin, out_end) for 1 to 4 tokens.
template <Fmt F>
void packed_gemv(const WeightView& view, const uint8_t* prepared, int64_t tokens, int64_t out_begin, int64_t out_end, float* y,
                 int64_t y_stride, const Epilogue& e) {
  const PackedLayout<F> l(view.in);
  const PreparedLayout layout(view.in, Traits<F>::nibbles);
  for (int64_t row = out_begin; row < out_end; row += kPanelRows) {
    const uint8_t* panel = view.packed + row / kPanelRows * l.size;
    const int64_t count = out_end - row < kPanelRows ? out_end - row : kPanelRows;
    switch (tokens) {
      case 1: packed_tile<F, 1>(panel, l, row, count, prepared, layout, y, y_stride, e); break;
      case 2: packed_tile<F, 2>(panel, l, row, count, prepared, layout, y, y_stride, e); break;
      case 3: packed_tile<F, 3>(panel, l, row, count, prepared, layout, y, y_stride, e); break;
      default: packed_tile<F, 4>(panel, l, row, count, prepared, layout, y, y_stride, e); break;
    }
  }
}

}  // namespace
}  // namespace datong
