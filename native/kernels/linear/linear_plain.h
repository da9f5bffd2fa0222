// Plain formats in f32 for one vector type V. Included by one file per ISA, which defines V:
//
//   V::kLanes, V::kTokens         floats per vector; tokens per tile with four rows, by the number of registers
//   V::Reg                        and zero, load(const float*), load(const float*, count), fma(a, b, c)
//   V::sum4(a, b, c, d, out[4])   sums of lanes
//
// and the sources of weights: struct S { kBytes; load(const uint8_t*), load(const uint8_t*, count) }, where the second
// reads `count` values and gives zeros for the others.
//
// Products and sums are f32 whatever is stored. Few tokens: rows are widened as they are read. Many: four rows are
// widened into scratch and then used for a block of tokens that stays in the L2 cache.
#pragma once

#include <stddef.h>
#include <string.h>

#include "kernels/linear/linear.h"

namespace datong {
namespace {

#define UNROLL _Pragma("GCC unroll 32")

constexpr int64_t kTokenBlockBytes = 256 * 1024;  // of activations; a quarter of a Zen 4 core's L2

// acc[r][t] += rows . tokens at i, of which `count` elements exist (kAll: all lanes).
template <class V, class S, int R, int T, bool kAll>
inline void plain_step(typename V::Reg acc[R][T], const uint8_t* w, int64_t w_stride, const float* x, int64_t x_stride,
                       int64_t i, int64_t count) {
  typename V::Reg rows[R];
  UNROLL for (int r = 0; r < R; ++r) {
    const uint8_t* p = w + r * w_stride + i * S::kBytes;
    rows[r] = kAll ? S::load(p) : S::load(p, count);
  }
  UNROLL for (int t = 0; t < T; ++t) {
    const float* p = x + t * x_stride + i;
    const typename V::Reg a = kAll ? V::load(p) : V::load(p, count);
    UNROLL for (int r = 0; r < R; ++r) acc[r][t] = V::fma(rows[r], a, acc[r][t]);
  }
}

// R rows at w (bytes from row to row: w_stride) x T tokens; the results are rows o... of tokens t0...
template <class V, class S, int R, int T>
[[gnu::noinline]] void plain_tile(const uint8_t* w, int64_t w_stride, const float* x, int64_t x_stride, int64_t in,
                                  int64_t t0, int64_t o, float* y, int64_t y_stride, const Epilogue& e) {
  typename V::Reg acc[R][T];
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int t = 0; t < T; ++t) acc[r][t] = V::zero();
  }
  x += t0 * x_stride;
  int64_t i = 0;
  for (; i + V::kLanes <= in; i += V::kLanes) plain_step<V, S, R, T, true>(acc, w, w_stride, x, x_stride, i, V::kLanes);
  if (i < in) plain_step<V, S, R, T, false>(acc, w, w_stride, x, x_stride, i, in - i);
  UNROLL for (int t = 0; t < T; ++t) {
    float v[4];
    if (R == 4) V::sum4(acc[0][t], acc[1 % R][t], acc[2 % R][t], acc[3 % R][t], v);
    else V::sum4(acc[0][t], V::zero(), V::zero(), V::zero(), v);
    UNROLL for (int r = 0; r < R; ++r) {
      if (e.bias) v[r] += e.bias[o + r];
      if (e.residual) v[r] += e.residual[(t0 + t) * e.residual_stride + o + r];
      y[(t0 + t) * y_stride + o + r] = v[r];
    }
  }
}

// R rows for tokens [t, end).
template <class V, class S, int R>
void plain_rows(const uint8_t* w, int64_t w_stride, const float* x, int64_t x_stride, int64_t in, int64_t t,
                int64_t end, int64_t o, float* y, int64_t y_stride, const Epilogue& e) {
  for (; t + V::kTokens <= end; t += V::kTokens)
    plain_tile<V, S, R, V::kTokens>(w, w_stride, x, x_stride, in, t, o, y, y_stride, e);
  for (; t + 2 <= end; t += 2) plain_tile<V, S, R, 2>(w, w_stride, x, x_stride, in, t, o, y, y_stride, e);
  for (; t < end; ++t) plain_tile<V, S, R, 1>(w, w_stride, x, x_stride, in, t, o, y, y_stride, e);
}

template <class V>
struct F32Source {
  static constexpr int64_t kBytes = 4;
  static typename V::Reg load(const uint8_t* p) { return V::load(reinterpret_cast<const float*>(p)); }
  static typename V::Reg load(const uint8_t* p, int64_t count) {
    return V::load(reinterpret_cast<const float*>(p), count);
  }
};

template <class V, class S>
void widen(const uint8_t* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) V::store(to + i, S::load(from + i * S::kBytes));
  if (i < n) V::store(to + i, S::load(from + i * S::kBytes, n - i));  // scratch has room for the padding
}

inline int64_t padded(int64_t in) { return (in + 15) / 16 * 16; }

// From this many tokens on, widening 16-bit rows once pays.
template <class V>
constexpr int64_t kWidenTokens = 2 * V::kTokens + 1;

template <class V, class S>
size_t plain_scratch(const WeightView& w, int64_t tokens) {
  return S::kBytes == 4 || tokens < kWidenTokens<V> ? 0 : static_cast<size_t>(4 * padded(w.in) * 4);
}

template <class V, class S>
void run_plain(const WeightView& w, const float* x, int64_t x_stride, const void*, int64_t tokens, int64_t out_begin,
               int64_t out_end, float* y, int64_t y_stride, const Epilogue& e, void* scratch) {
  const int64_t row_bytes = w.in * S::kBytes;
  const bool wide = S::kBytes != 4 && tokens >= kWidenTokens<V>;
  float* rows = static_cast<float*>(scratch);
  int64_t block = kTokenBlockBytes / (4 * w.in) / V::kTokens * V::kTokens;
  if (block < 4 * V::kTokens) block = 4 * V::kTokens;
  for (int64_t t = 0; t < tokens; t += block) {
    const int64_t end = t + block < tokens ? t + block : tokens;
    int64_t o = out_begin;
    for (; o + 4 <= out_end; o += 4) {
      const uint8_t* p = w.codes + o * row_bytes;
      if (wide) {
        for (int64_t r = 0; r < 4; ++r) widen<V, S>(p + r * row_bytes, w.in, rows + r * padded(w.in));
        plain_rows<V, F32Source<V>, 4>(reinterpret_cast<const uint8_t*>(rows), padded(w.in) * 4, x, x_stride, w.in, t,
                                       end, o, y, y_stride, e);
      } else {
        plain_rows<V, S, 4>(p, row_bytes, x, x_stride, w.in, t, end, o, y, y_stride, e);
      }
    }
    for (; o < out_end; ++o)
      plain_rows<V, S, 1>(w.codes + o * row_bytes, row_bytes, x, x_stride, w.in, t, end, o, y, y_stride, e);
  }
}

inline size_t no_bytes(int64_t) { return 0; }

}  // namespace
}  // namespace datong
