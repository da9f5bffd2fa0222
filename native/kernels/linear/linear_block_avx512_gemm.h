// AVX-512 VNNI, many tokens: two panels of 16 rows at a time, packed at load or unpacked here, then used for every token.
// Included by one file only.
//
// A tile is 32 rows x 4 tokens: an activation, broadcast from memory, meets a vector of either panel. So the multipliers
// and not the loads are what is busy, and eight independent sums hide the latency of vpdpbusd (4 cycles, two a cycle).
//
// Long rows are cut into chunks of columns whose panels stay in L1. What a row and a token have summed so far, the four
// sums of linear_formats.h, waits in scratch from chunk to chunk. 16 tokens, q4_0 2048x8192, two threads, Zen 5, GOP/s:
// 992 with whole rows, 1,108 by chunks.
#pragma once

#include "kernels/linear/linear_block_avx512_packed.h"
#include "kernels/linear/linear_block_avx512_prepare.h"

namespace datong {
namespace {

// The format whose tiles F shares: once unpacked, only the order of the codes, their sign and the min tell them apart.
template <Fmt F>
constexpr Fmt kTileOf = F == Fmt::q4_k ? Fmt::q4_1 : F == Fmt::q5_k ? Fmt::q5_1 : F == Fmt::q5_0 ? Fmt::q8_0 : F;

constexpr int64_t kTokens = 4;                                // of a tile
constexpr int64_t kSums = 4 * 2 * kTokens * 16;               // floats of a tile that wait


// What the panels that come next are made of, fetched into L2 a few lines a block while tiles are computed: fetched all at
// once it would fill the queues, and memory and multipliers would work in turn. 16 tokens, q8_0, from memory, Zen 5, GB/s:
// 23 while unpacking, 34 spread out.
struct Fetch {
  struct Stretch {
    const uint8_t *at, *end;
  };
  Stretch next[3];  // scales, mins, codes
  int current = 0;
  int64_t lines = 0;  // a block

  void block() {
    for (int64_t i = 0; i < lines && current < 3;) {
      Stretch& s = next[current];
      if (s.at < s.end) _mm_prefetch(s.at, _MM_HINT_T1), s.at += 64, ++i;
      else ++current;
    }
  }
};

// Where a tile finds scales and mins: as f32 in a Panel, or of formats with one level, packed, as f16 beside the codes.
enum class Levels { panel, packed };

// Scales or mins of 16 rows.
template <Levels kLevels>
inline __m512 levels_at(const uint8_t* p) {
  if constexpr (kLevels == Levels::panel) return _mm512_load_ps(p);
  else return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
}

// acc[p][t] += vectors [kFrom, kFrom + kCount) of a block of panel p, times the scale. codes, scales: of the first panel, the
// second one's are `next` and `next_scale` behind them. x: codes of the block from the first token on; words: likewise its
// scales, sums and biases.
template <Fmt F, Levels kLevels, int P, int T, int kFrom, int kCount>
inline void tile_block(__m512 acc[P][T], const uint8_t* codes, int64_t next, const uint8_t* scales, int64_t next_scale,
                       const uint8_t* x, const uint8_t* words) {
  constexpr int64_t kBias = kBiasAt + (Traits<F>::block == 32 ? 0 : kFrom ? 64 : 32);
  constexpr uint32_t kNone = 0xffffffffu >> 8 * (4 - T);
  __m512i d[P][T];
  UNROLL for (int t = 0; t < T; ++t) {
    const __m512i bias = Traits<F>::is_signed ? dword(words + kBias + 4 * t) : _mm512_setzero_si512();
    UNROLL for (int p = 0; p < P; ++p) d[p][t] = bias;
  }
  uint32_t groups;
  memcpy(&groups, words + kGroupAt, 4);
  if ((groups & kNone) != kNone) [[unlikely]] {
    UNROLL for (int t = 0; t < T; ++t) {
      const int g = static_cast<int>(groups >> 8 * t & 255);
      if (g < kFrom || g >= kFrom + kCount) continue;
      UNROLL for (int p = 0; p < P; ++p)
        d[p][t] = _mm512_add_epi32(d[p][t], times_extra(group_codes<Traits<F>::nibbles>(codes + p * next, g), words + kExtraAt + 4 * t));
    }
  }
  const auto multiply = [&](const __m512i w[P], int j) __attribute__((always_inline)) {
    UNROLL for (int t = 0; t < T; ++t) {
      const __m512i four = dword(x + t * 32 + j * 4);
      UNROLL for (int p = 0; p < P; ++p) d[p][t] = _mm512_dpbusd_epi32(d[p][t], w[p], four);
    }
  };
  __m512i w[P], high[P];
  if constexpr (Traits<F>::nibbles) {  // taken apart by units that multiply nothing: free
    const __m512i low = _mm512_set1_epi8(15);
    UNROLL for (int j = 0; j < 4; ++j) {
      UNROLL for (int p = 0; p < P; ++p) {
        const __m512i both = _mm512_load_si512(codes + p * next + j * 64);
        w[p] = _mm512_and_si512(both, low);
        high[p] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      }
      multiply(w, 2 * j);
      multiply(high, 2 * j + 1);
    }
  } else {
    UNROLL for (int j = kFrom; j < kFrom + kCount; ++j) {
      UNROLL for (int p = 0; p < P; ++p) w[p] = _mm512_load_si512(codes + p * next + j * 64);
      multiply(w, j);
    }
  }
  UNROLL for (int p = 0; p < P; ++p) {
    const __m512 s = levels_at<kLevels>(scales + p * next_scale);
    UNROLL for (int t = 0; t < T; ++t) {
      const __m512 both = _mm512_mul_ps(s, _mm512_castsi512_ps(dword(words + kScaleAt + 4 * t)));
      acc[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(d[p][t]), both, acc[p][t]);
    }
  }
}

// Of a tile in one chunk.
struct TileArgs {
  const uint8_t *codes, *scales;  // of the first panel in the chunk
  int64_t next, pair;        // bytes from its codes to those of the second, and from block to second next block
  const uint8_t *x, *words;  // activations of the chunk, as in tile_block
  int64_t blocks;            // of the chunk
  bool first, last;          // chunk of the row
  float* sums;               // kSums floats; used unless first and last
  int64_t token, row;        // of the first result
  __mmask16 lanes;           // rows of the last panel that exist
  float* y;
  int64_t y_stride;
};

// acc[p][t] += the blocks first, first + step ... of a chunk, in the order of linear_formats.h.
template <Fmt F, Levels kLevels, int P, int T, int kFrom, int kCount>
inline void tile_part(__m512 acc[P][T], const TileArgs& a, int64_t first, int64_t step, Fetch& fetch) {
  constexpr bool kPacked = kLevels == Levels::packed;
  constexpr int64_t kLevel = kPacked ? 32 : 64 * 32 / Traits<F>::block, kCodes = Traits<F>::nibbles ? 256 : 512;  // bytes of a block
  constexpr int64_t kToMin = kPacked ? 2 * kLevel : Panel::kLevels;
  const int64_t pair = kPacked ? PackedLayout<F>::kPair : a.pair, two = kPacked ? pair : 2 * kLevel;  // from block to second next
  const int64_t next_scale = kPacked ? a.next : Panel::kBytes;
  const uint8_t* codes = a.codes + first / 2 * pair + first % 2 * kCodes;
  const uint8_t* scales = a.scales + first / 2 * two + first % 2 * kLevel + (kFrom ? 64 : 0);
  const uint8_t *x = a.x, *words = a.words;
  x += first * kEight<Traits<F>::nibbles>;
  words += first * kEight<Traits<F>::nibbles>;
  for (int64_t b = first; b < a.blocks; b += step) {
    fetch.block();
    tile_block<F, kLevels, P, T, kFrom, kCount>(acc, codes, a.next, scales, next_scale, x, words);
    if constexpr (Traits<F>::has_min) {
      UNROLL for (int p = 0; p < P; ++p) {
        const __m512 min = levels_at<kLevels>(scales + p * next_scale + kToMin);
        UNROLL for (int t = 0; t < T; ++t) acc[p][t] = _mm512_fmadd_ps(min, _mm512_castsi512_ps(dword(words + kSumsAt + 4 * t)), acc[p][t]);
      }
    }
    codes += step / 2 * pair;
    scales += step / 2 * two;
    x += step * kEight<Traits<F>::nibbles>;
    words += step * kEight<Traits<F>::nibbles>;
  }
}

// P panels of 16 rows x T tokens.
template <Fmt F, Levels kLevels, int P, int T>
[[gnu::noinline]] void gemm_tile(const TileArgs& a, const Epilogue& e, Fetch& fetch) {
  __m512 total[P][T];
  UNROLL for (int p = 0; p < P; ++p) {
    UNROLL for (int t = 0; t < T; ++t) total[p][t] = _mm512_setzero_ps();
  }
#pragma GCC unroll 1
  for (int i = 0; i < 4; ++i) {
    float* sums = a.sums + i * kSums / 4;
    __m512 acc[P][T];
    UNROLL for (int p = 0; p < P; ++p) {
      UNROLL for (int t = 0; t < T; ++t)
        acc[p][t] = a.first ? _mm512_setzero_ps() : _mm512_load_ps(sums + (p * T + t) * 16);
    }
    if constexpr (Traits<F>::block == 32) tile_part<F, kLevels, P, T, 0, 8>(acc, a, i, 4, fetch);
    else if (i % 2) tile_part<F, kLevels, P, T, 4, 4>(acc, a, i / 2, 2, fetch);
    else tile_part<F, kLevels, P, T, 0, 4>(acc, a, i / 2, 2, fetch);
    UNROLL for (int p = 0; p < P; ++p) {
      UNROLL for (int t = 0; t < T; ++t) {
        if (a.last) total[p][t] = _mm512_add_ps(total[p][t], acc[p][t]);
        else _mm512_store_ps(sums + (p * T + t) * 16, acc[p][t]);
      }
    }
  }
  if (!a.last) return;
  UNROLL for (int p = 0; p < P; ++p) {
    UNROLL for (int t = 0; t < T; ++t)
      store16(total[p][t], p + 1 < P ? 0xffff : a.lanes, a.token + t, a.row + 16 * p, a.y, a.y_stride, e);
  }
}

template <Fmt F, Levels kLevels, int P>
void gemm_tokens(const TileArgs& a, int64_t tokens, const Epilogue& e, Fetch& fetch) {
  switch (tokens) {
    case 1: return gemm_tile<F, kLevels, P, 1>(a, e, fetch);
    case 2: return gemm_tile<F, kLevels, P, 2>(a, e, fetch);
    case 3: return gemm_tile<F, kLevels, P, 3>(a, e, fetch);
    default: return gemm_tile<F, kLevels, P, 4>(a, e, fetch);
  }
}

// Rows [row, row + count), in `tiles` tiles of rows of so many blocks.
template <Fmt F>
Fetch fetch_of(const WeightView& view, int64_t row, int64_t count, int64_t tiles, int64_t blocks) {
  if (count < 0) count = 0;
  Fetch f{};
  if (view.packed) {
    const int64_t size = PackedLayout<F>(view.in).size;
    const uint8_t* at = view.packed + row / kPanelRows * size;
    f.next[0] = {at, at + (count + kPanelRows - 1) / kPanelRows * size};
  } else {
    const Matrix<F> w(view);
    const auto rows = [&](const uint8_t* all, int64_t stride) {
      return Fetch::Stretch{all + row * stride, all + (row + count) * stride};
    };
    f.next[0] = rows(w.scale, w.scale_stride);
    f.next[1] = rows(w.min, Traits<F>::has_min ? w.scale_stride : 0);
    f.next[2] = rows(w.codes, w.codes_stride);
  }
  int64_t bytes = 0;
  for (const Fetch::Stretch& s : f.next) bytes += s.end - s.at;
  const int64_t each = 64 * tiles * blocks * (Traits<F>::block == 32 ? 1 : 2);  // if a line a block were fetched
  f.lines = (bytes + each - 1) / each;
  return f;
}

// Bytes of scratch: two panels, then the sums of all tiles of two panels where rows are cut.
template <bool kNibbles>
int64_t gemm_scratch(int64_t in, int64_t tokens) {
  const int64_t waiting = in / kBlock > kMostChunk<kNibbles> ? (tokens + kTokens - 1) / kTokens * kSums * 4 : 0;
  return 2 * Panel::kBytes + waiting;
}

// The view's rows from out_end on are those that come next.
template <Fmt F>
void gemm(const WeightView& view, const uint8_t* prepared, int64_t tokens, int64_t out_begin, int64_t out_end, float* y,
          int64_t y_stride, const Epilogue& e, void* scratch) {
  constexpr bool kNibbles = Traits<F>::nibbles;
  const Matrix<F> w(view);
  const PackedLayout<F> l(view.in);
  const int64_t blocks = l.blocks, tiles = (tokens + kTokens - 1) / kTokens;
  uint8_t* const memory = static_cast<uint8_t*>(scratch);
  const Panel panels[2] = {Panel(memory), Panel(memory + Panel::kBytes)};
  float* const sums = reinterpret_cast<float*>(memory + 2 * Panel::kBytes);
  for (int64_t row = out_begin; row < out_end; row += 32) {
    const int64_t rows = out_end - row < 32 ? out_end - row : 32, next = row + rows;
    Fetch fetch = fetch_of<F>(view, next, view.out - next < 32 ? view.out - next : 32, tiles, blocks);
    for (int64_t b = 0, count; b < blocks; b += count) {
      count = chunk_after<kNibbles>(b, blocks);
      TileArgs a{};
      if (view.packed) {
        const uint8_t* packed = view.packed + row / kPanelRows * l.size;
        if constexpr (Traits<F>::two_level) {
          packed_levels<F>(packed, l, b, count, panels[0]);
          if (rows > 16) packed_levels<F>(packed + l.size, l, b, count, panels[1]);
          a.scales = memory + Panel::kCodes;
        } else {
          a.scales = packed + l.level(b);
        }
        a.codes = packed + l.codes(b);
        a.next = l.size;
        a.pair = l.kPair;
      } else {
        unpack_panel<F>(w, row, rows < 16 ? rows : 16, b, count, panels[0]);
        if (rows > 16) unpack_panel<F>(w, row + 16, rows - 16, b, count, panels[1]);
        a.codes = panels[0].codes;
        a.next = Panel::kBytes;
        a.pair = 2 * l.kBlockCodes;
        a.scales = memory + Panel::kCodes;
      }
      a.blocks = count;
      a.first = b == 0;
      a.last = b + count == blocks;
      a.row = row;
      a.lanes = first16(rows > 16 ? rows - 16 : rows);
      a.y = y;
      a.y_stride = y_stride;
      for (int64_t t = 0; t < tokens; t += kTokens) {
        const uint8_t* x = prepared + t / 8 * half_group_bytes<kNibbles>(view.in) + b * kEight<kNibbles>;
        a.x = x + 32 * (t % 8);
        a.words = x + 4 * (t % 8);
        a.sums = sums + t / kTokens * kSums;
        a.token = t;
        constexpr Levels kBeside = Traits<F>::two_level ? Levels::panel : Levels::packed;
        const auto tile = [&]<Levels kLevels>() {
          if (rows > 16) gemm_tokens<kTileOf<F>, kLevels, 2>(a, tokens - t, e, fetch);
          else gemm_tokens<kTileOf<F>, kLevels, 1>(a, tokens - t, e, fetch);
        };
        if (view.packed) tile.template operator()<kBeside>();
        else tile.template operator()<Levels::panel>();
      }
    }
  }
}

}  // namespace
}  // namespace datong
