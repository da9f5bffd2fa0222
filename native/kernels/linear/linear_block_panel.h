// Block formats, many tokens: a panel of rows is unpacked once, then used for every token. Included by one file per
// instruction set, which defines V:
//
//   V::kLanes, V::kVectors              32-bit lanes of a vector; vectors of rows in a panel
//   V::kTokens<F>                       tokens of a tile
//   V::kPlanes<F>                       vectors that hold four codes of each row (2: a code is cut into halves)
//   V::kBias<F>                         how often `bias` of linear_prepared.h is added to the products: -1, 0, 1
//   V::Float, V::Int                    vectors of f32, of bytes or i32
//   V::load_codes(p, bytes)             vector of codes, of which 4 * kLanes or half as many exist
//   V::levels<F>(one, super, b, count)  scales or mins of kLanes blocks of one row
//   V::transpose(Int[kLanes])           as a matrix of 32-bit lanes
//   V::unpack<F>(Int, planes[2])        four codes of each row; nibbles: the even codes, the odd ones
//   V::dots<F, T, from, count>(d, codes, x)  d[v][t] = products of the fours [from, from + count) of a block
//   V::times_extra<F>(p, e)             64 * products of one four of codes, from p on, with e
//   and load, store, splat, mul, fma, widen (i32 -> f32), add_ints, splat_ints
//
// The codes of rows meet in lanes, so sums need no folding and a scale is one vector for all rows:
//
//   codes   [blocks][8 fours][planes][rows][4] u8 or i8   nibble formats: four fours of even codes, four of odd ones
//   scales  [weight blocks][rows] f32                     both levels multiplied; mins likewise, with their sign
#pragma once

#include "kernels/linear/linear_formats.h"
#include "kernels/linear/linear_outliers.h"

namespace datong {
namespace {

#define UNROLL _Pragma("GCC unroll 32")

// The format whose tiles F shares: once unpacked, only the order of the codes, their sign and the min tell them apart.
template <Fmt F>
constexpr Fmt kTileOf = F == Fmt::q4_k ? Fmt::q4_1 : F == Fmt::q5_k ? Fmt::q5_1 : F == Fmt::q5_0 ? Fmt::q8_0 : F;

template <class V>
constexpr int64_t kPanelRows = V::kLanes * V::kVectors;
template <class V, Fmt F>
constexpr int64_t kFourBytes = V::template kPlanes<F> * kPanelRows<V> * 4;

struct Panel {
  uint8_t* codes;
  float *scales, *mins;
};

template <class V, Fmt F>
inline int64_t panel_code_bytes(int64_t in) {
  return round_up(in / kBlock, 2) * 8 * kFourBytes<V, F>;
}

template <class V, Fmt F>
inline int64_t panel_bytes(int64_t in) {
  return panel_code_bytes<V, F>(in) + in / Traits<F>::block * kPanelRows<V> * 4 * (Traits<F>::has_min ? 2 : 1);
}

template <class V, Fmt F>
inline Panel panel_at(uint8_t* memory, int64_t in) {
  float* scales = reinterpret_cast<float*>(memory + panel_code_bytes<V, F>(in));
  return {memory, scales, scales + in / Traits<F>::block * kPanelRows<V>};
}

// Codes of kLanes rows into lanes `first`... of the panel. The rows of the next panel, one stretch of memory, are fetched
// meanwhile.
template <class V, Fmt F>
inline void unpack_panel_codes(const Matrix<F>& w, const int64_t rows[V::kLanes], int64_t first, uint8_t* out) {
  constexpr int64_t kStep = V::kLanes * 4, kBytes = kPanelRows<V> * 4;
  for (int64_t at = 0; at < w.codes_stride; at += kStep) {
    const uint8_t* next = w.codes + (rows[0] + kPanelRows<V>) * w.codes_stride + at * V::kLanes;
    UNROLL for (int64_t i = 0; i < kStep * V::kLanes; i += 64) __builtin_prefetch(next + i, 0, 2);
    typename V::Int v[V::kLanes];
    const int64_t rest = w.codes_stride - at;
    UNROLL for (int r = 0; r < V::kLanes; ++r) v[r] = V::load_codes(w.codes + rows[r] * w.codes_stride + at, rest);
    V::transpose(v);
    UNROLL for (int i = 0; i < V::kLanes; ++i) {
      typename V::Int two[2];
      V::template unpack<F>(v[i], two);
      const int64_t four = at / 4 + i;  // of stored bytes, in the row
      if constexpr (Traits<F>::nibbles) {
        uint8_t* p = out + (four / 4 * 8 + four % 4) * kBytes + first * 4;
        V::store_codes(p, two[0]);
        V::store_codes(p + 4 * kBytes, two[1]);
      } else {
        uint8_t* p = out + four * kFourBytes<V, F> + first * 4;
        for (int64_t plane = 0; plane < V::template kPlanes<F>; ++plane) V::store_codes(p + plane * kBytes, two[plane]);
      }
    }
  }
}

template <class V, Fmt F>
inline void unpack_panel_levels(const Matrix<F>& w, const uint8_t* one, const uint8_t* super,
                                const int64_t rows[V::kLanes], float sign, float* out) {
  for (int64_t b = 0; b < w.blocks; b += V::kLanes) {
    const int64_t count = w.blocks - b < V::kLanes ? w.blocks - b : V::kLanes;
    typename V::Float v[V::kLanes];
    UNROLL for (int r = 0; r < V::kLanes; ++r)
      v[r] = V::mul(V::splat(sign), V::template levels<F>(one + rows[r] * w.scale_stride, super + rows[r] * w.super_stride, b, count));
    V::transpose(v);
    for (int64_t i = 0; i < count; ++i) V::store(out + (b + i) * kPanelRows<V>, v[i]);
  }
}

// Rows [row, row + count); those that a last panel lacks repeat the last one and are not stored.
template <class V, Fmt F>
void unpack_panel(const Matrix<F>& w, int64_t row, int64_t count, const Panel& panel) {
  for (int64_t first = 0; first < kPanelRows<V>; first += V::kLanes) {
    int64_t rows[V::kLanes];
    for (int64_t r = 0; r < V::kLanes; ++r) rows[r] = row + (first + r < count ? first + r : count - 1);
    unpack_panel_codes<V, F>(w, rows, first, panel.codes);
    unpack_panel_levels<V, F>(w, w.scale, w.super_scale, rows, 1.0f, panel.scales + first);
    if constexpr (Traits<F>::has_min)
      unpack_panel_levels<V, F>(w, w.min, w.super_min, rows, Traits<F>::min_sign, panel.mins + first);
  }
}

inline float float_at(const uint8_t* p) {
  float f;
  memcpy(&f, p, 4);
  return f;
}
inline int32_t int_at(const uint8_t* p) {
  int32_t i;
  memcpy(&i, p, 4);
  return i;
}

// Fours [from, from + count) of block b, of one scale. x: the tokens' prepared activations.
template <class V, Fmt F, int T, int kFrom, int kCount>
inline void panel_block(typename V::Float acc[V::kVectors][T], const uint8_t* codes, const float* scales,
                        const uint8_t* const x[T], const PreparedLayout& layout, int64_t b) {
  typename V::Int d[V::kVectors][T];
  const int64_t at = Traits<F>::nibbles ? b / 4 * 128 + b % 4 * 16 : b * 32;
  V::template dots<F, T, kFrom, kCount>(d, codes, x, at);
  UNROLL for (int t = 0; t < T; ++t) {
    const uint8_t group = x[t][layout.group + b];
    if (group == kNoGroup) [[likely]] continue;
    const int four = Traits<F>::nibbles ? group % 2 * 4 + group / 2 : group;
    if (four < kFrom || four >= kFrom + kCount) continue;
    const typename V::Int e = V::splat_ints(int_at(x[t] + layout.extra + group_at(Traits<F>::nibbles, b, group)));
    UNROLL for (int v = 0; v < V::kVectors; ++v)
      d[v][t] = V::add_ints(d[v][t], V::template times_extra<F>(codes + four * kFourBytes<V, F> + v * V::kLanes * 4, e));
  }
  UNROLL for (int t = 0; t < T; ++t) {
    typename V::Int bias;
    if constexpr (V::template kBias<F> != 0) {
      const uint8_t* p = x[t] + layout.bias + b * (Traits<F>::nibbles ? 4 : 8);
      uint32_t sum = static_cast<uint32_t>(int_at(p + (kFrom ? 4 : 0)));
      if (!Traits<F>::nibbles && kCount == 8) sum += static_cast<uint32_t>(int_at(p + 4));
      bias = V::splat_ints(static_cast<int32_t>(V::template kBias<F> > 0 ? sum : 0u - sum));
    }
    const typename V::Float scale = V::splat(float_at(x[t] + layout.scale + b * 4));
    UNROLL for (int v = 0; v < V::kVectors; ++v) {
      if constexpr (V::template kBias<F> != 0) d[v][t] = V::add_ints(d[v][t], bias);
      acc[v][t] = V::fma(V::widen(d[v][t]), V::mul(V::load(scales + v * V::kLanes), scale), acc[v][t]);
    }
  }
}

// Rows [row, row + count) of token t: acc[v], one vector after another.
template <class V>
inline void store_panel(const typename V::Float* acc, int64_t t, int64_t row, int64_t count, float* y, int64_t y_stride,
                        const Epilogue& e) {
  float* to = y + t * y_stride + row;
  const float* residual = e.residual ? e.residual + t * e.residual_stride + row : nullptr;
  if (count == kPanelRows<V>) {
    UNROLL for (int v = 0; v < V::kVectors; ++v) {
      typename V::Float sum = acc[v];
      if (e.bias) sum = V::add(sum, V::load(e.bias + row + v * V::kLanes));
      if (residual) sum = V::add(sum, V::load(residual + v * V::kLanes));
      V::store(to + v * V::kLanes, sum);
    }
    return;
  }
  float copy[kPanelRows<V>];
  UNROLL for (int v = 0; v < V::kVectors; ++v) V::store(copy + v * V::kLanes, acc[v]);
  for (int64_t r = 0; r < count; ++r) {
    float sum = copy[r];
    if (e.bias) sum += e.bias[row + r];
    if (residual) sum += residual[r];
    to[r] = sum;
  }
}

// acc = every `step`th block from `first` on, fours [from, from + count) of them: a remainder of linear_formats.h.
template <class V, Fmt F, int T, int kFrom, int kCount>
inline void panel_part(typename V::Float acc[V::kVectors][T], const Panel& panel, const uint8_t* const x[T],
                       const PreparedLayout& layout, int64_t first, int64_t step) {
  constexpr int64_t kScales = kBlock / Traits<F>::block * kPanelRows<V>;
  UNROLL for (int v = 0; v < V::kVectors; ++v) {
    UNROLL for (int t = 0; t < T; ++t) acc[v][t] = V::splat(0);
  }
  for (int64_t b = first; b < layout.blocks; b += step) {
    const float* scales = panel.scales + b * kScales + (kFrom ? kPanelRows<V> : 0);
    panel_block<V, F, T, kFrom, kCount>(acc, panel.codes + b * 8 * kFourBytes<V, F>, scales, x, layout, b);
    if constexpr (Traits<F>::has_min) {
      const float* mins = panel.mins + b * kPanelRows<V>;
      UNROLL for (int t = 0; t < T; ++t) {
        const typename V::Float sum = V::splat(float_at(x[t] + layout.sums + b * 4));
        UNROLL for (int v = 0; v < V::kVectors; ++v) acc[v][t] = V::fma(V::load(mins + v * V::kLanes), sum, acc[v][t]);
      }
    }
  }
}

// One panel, whose first `count` rows exist, x T tokens from t0 on.
template <class V, Fmt F, int T>
[[gnu::noinline]] void panel_tile(const Panel& panel, const uint8_t* prepared, const PreparedLayout& layout, int64_t t0,
                                  int64_t row, int64_t count, float* y, int64_t y_stride, const Epilogue& e) {
  const uint8_t* x[T];
  UNROLL for (int t = 0; t < T; ++t) x[t] = prepared + (t0 + t) * layout.size;
  typename V::Float total[V::kVectors][T];
  UNROLL for (int v = 0; v < V::kVectors; ++v) {
    UNROLL for (int t = 0; t < T; ++t) total[v][t] = V::splat(0);
  }
#pragma GCC unroll 1
  for (int i = 0; i < 4; ++i) {
    typename V::Float acc[V::kVectors][T];
    if constexpr (Traits<F>::block == 32) panel_part<V, F, T, 0, 8>(acc, panel, x, layout, i, 4);
    else if (i % 2) panel_part<V, F, T, 4, 4>(acc, panel, x, layout, i / 2, 2);
    else panel_part<V, F, T, 0, 4>(acc, panel, x, layout, i / 2, 2);
    UNROLL for (int v = 0; v < V::kVectors; ++v) {
      UNROLL for (int t = 0; t < T; ++t) total[v][t] = V::add(total[v][t], acc[v][t]);
    }
  }
  UNROLL for (int t = 0; t < T; ++t) {
    typename V::Float rows[V::kVectors];
    UNROLL for (int v = 0; v < V::kVectors; ++v) rows[v] = total[v][t];
    store_panel<V>(rows, t0 + t, row, count, y, y_stride, e);
  }
}

template <class V, Fmt F, int T = V::template kTokens<F>>
inline void panel_tokens(int64_t tokens, const Panel& panel, const uint8_t* prepared, const PreparedLayout& layout,
                         int64_t t0, int64_t row, int64_t count, float* y, int64_t y_stride, const Epilogue& e) {
  if (tokens >= T) return panel_tile<V, F, T>(panel, prepared, layout, t0, row, count, y, y_stride, e);
  if constexpr (T > 1) panel_tokens<V, F, T - 1>(tokens, panel, prepared, layout, t0, row, count, y, y_stride, e);
}

// Panels unpacked before the tokens are gone through, which are then read once for all of them. They share a 512 KB L2
// cache (Hygon, Zen 1, Kunpeng 920) with the activations. For few tokens one panel: the next one arrives from memory
// meanwhile.
template <class V, Fmt F>
inline int64_t panels_at_once(int64_t in, int64_t tokens) {
  const int64_t fit = (256 << 10) / panel_bytes<V, F>(in);
  return tokens < 64 || fit < 1 ? 1 : fit > 8 ? 8 : fit;
}

template <class V, Fmt F>
inline size_t panels_scratch(int64_t in, int64_t tokens) {
  return static_cast<size_t>(panels_at_once<V, F>(in, tokens) * panel_bytes<V, F>(in));
}

template <class V, Fmt F>
void run_panels(const Matrix<F>& w, int64_t in, const uint8_t* prepared, int64_t tokens, int64_t out_begin,
                int64_t out_end, float* y, int64_t y_stride, const Epilogue& e, void* scratch) {
  constexpr int64_t kRows = kPanelRows<V>;
  const PreparedLayout layout(in, Traits<F>::nibbles);
  const int64_t panels = panels_at_once<V, F>(in, tokens), bytes = panel_bytes<V, F>(in);
  const auto panel = [&](int64_t i) { return panel_at<V, F>(static_cast<uint8_t*>(scratch) + i * bytes, in); };
  const auto rows_from = [&](int64_t row) { return out_end - row < kRows ? out_end - row : kRows; };
  for (int64_t first = out_begin; first < out_end; first += kRows * panels) {
    const int64_t end = out_end - first < kRows * panels ? out_end : first + kRows * panels;
    for (int64_t row = first; row < end; row += kRows)
      unpack_panel<V, F>(w, row, rows_from(row), panel((row - first) / kRows));
    for (int64_t t = 0; t < tokens; t += V::template kTokens<kTileOf<F>>)
      for (int64_t row = first; row < end; row += kRows)
        panel_tokens<V, kTileOf<F>>(tokens - t, panel((row - first) / kRows), prepared, layout, t, row, rows_from(row), y, y_stride, e);
  }
}

}  // namespace
}  // namespace datong
