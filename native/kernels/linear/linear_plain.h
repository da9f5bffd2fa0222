// Plain formats in f32 for one vector type V. Included by one file per ISA, which defines V:
//
//   V::kLanes, V::kTokens         floats per vector; tokens per tile with four rows, by the number of registers
//   V::Reg                        and zero, load(const float*), load(const float*, count), fma(a, b, c)
//   V::sum4(a, b, c, d, out[4])   sums of lanes
//   V::prefetch(const void*)      into L2
//
// and the sources of weights: struct S { kBytes; load(const uint8_t*), load(const uint8_t*, count) }, where the second
// reads `count` values and gives zeros for the others.
//
// Products and sums are f32 whatever is stored. `in` is cut into chunks, whose sums y gathers, so that many tokens and few
// give the same bits (ADR 0027). Few tokens: four rows are widened as they are read. Many tokens: four rows of a chunk are
// widened into scratch and used for a block of tokens whose part of x stays in the L2 cache.
#pragma once

#include <stddef.h>
#include <string.h>

#include "kernels/linear/linear.h"

namespace datong {
namespace {

#define UNROLL _Pragma("GCC unroll 32")

constexpr int64_t kTokenBlockBytes = 256 * 1024;  // of activations; a quarter of a Zen 4 core's L2
constexpr int64_t kChunk = 1024;                  // of `in`, at most; so a block is at least 64 tokens
constexpr int64_t kAhead = 8192;                  // as in linear_block_avx512_gemv.h
constexpr int64_t kFarthest = 128 * 1024;         // longer rows are foreseen by the hardware

// What a tile works on. Weights: R rows, w_stride bytes apart; x: tokens, x_stride floats apart; n elements of each.
struct PlainTile {
  const uint8_t* w;
  int64_t w_stride;
  const float* x;
  int64_t x_stride, n;
  float* y;  // [0, 0] is row 0 of the matrix and the tile's first token
  int64_t y_stride;
  const Epilogue* e;  // null: a later chunk, y is added to
  const uint8_t* next;  // R rows to fetch, or null
};

// acc[r][t] += rows . tokens at i, of which `count` elements exist (kAll: all lanes).
template <class V, class S, int R, int T, bool kAll>
inline void plain_step(typename V::Reg acc[R][T], const PlainTile& p, int64_t i, int64_t count) {
  typename V::Reg rows[R];
  UNROLL for (int r = 0; r < R; ++r) {
    const uint8_t* w = p.w + r * p.w_stride + i * S::kBytes;
    if (kAll && p.next) V::prefetch(p.next + (i * R + r * V::kLanes) * S::kBytes);
    rows[r] = kAll ? S::load(w) : S::load(w, count);
  }
  UNROLL for (int t = 0; t < T; ++t) {
    const float* x = p.x + t * p.x_stride + i;
    const typename V::Reg a = kAll ? V::load(x) : V::load(x, count);
    UNROLL for (int r = 0; r < R; ++r) acc[r][t] = V::fma(rows[r], a, acc[r][t]);
  }
}

// Rows o... of the matrix; t0: the tile's first token, for the residual.
template <class V, class S, int R, int T>
[[gnu::noinline]] void plain_tile(const PlainTile& p, int64_t t0, int64_t o) {
  typename V::Reg acc[R][T];
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int t = 0; t < T; ++t) acc[r][t] = V::zero();
  }
  int64_t i = 0;
  for (; i + V::kLanes <= p.n; i += V::kLanes) plain_step<V, S, R, T, true>(acc, p, i, V::kLanes);
  if (i < p.n) plain_step<V, S, R, T, false>(acc, p, i, p.n - i);
  UNROLL for (int t = 0; t < T; ++t) {
    float v[4];
    if (R == 4) V::sum4(acc[0][t], acc[1 % R][t], acc[2 % R][t], acc[3 % R][t], v);
    else V::sum4(acc[0][t], V::zero(), V::zero(), V::zero(), v);
    float* y = p.y + t * p.y_stride + o;
    UNROLL for (int r = 0; r < R; ++r) {
      if (!p.e) v[r] += y[r];
      else if (p.e->bias) v[r] += p.e->bias[o + r];
      if (p.e && p.e->residual) v[r] += p.e->residual[(t0 + t) * p.e->residual_stride + o + r];
      y[r] = v[r];
    }
  }
}

// R rows for tokens [t, end); p.x and p.y are those of token 0.
template <class V, class S, int R>
void plain_rows(PlainTile p, int64_t t, int64_t end, int64_t o) {
  p.x += t * p.x_stride;
  p.y += t * p.y_stride;
  while (t < end) {
    const int64_t count = end - t >= V::kTokens ? V::kTokens : end - t >= 2 ? 2 : 1;
    if (count == V::kTokens) plain_tile<V, S, R, V::kTokens>(p, t, o);
    else if (count == 2) plain_tile<V, S, R, 2>(p, t, o);
    else plain_tile<V, S, R, 1>(p, t, o);
    t += count;
    p.x += count * p.x_stride;
    p.y += count * p.y_stride;
    p.next = nullptr;
  }
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

inline bool few_tokens(int64_t in, int64_t tokens) { return tokens <= 8 || tokens * in * 4 <= kTokenBlockBytes / 4; }

template <class V, class S>
size_t plain_scratch(const WeightView& w, int64_t tokens) {
  return S::kBytes == 4 || few_tokens(w.in, tokens) ? 0 : static_cast<size_t>(4 * kChunk * 4);
}

// Elements of a row that are added up before y is added to; the same for any number of tokens.
inline int64_t chunk_of(int64_t in) {
  const int64_t chunks = (in + kChunk - 1) / kChunk;
  return ((in + chunks - 1) / chunks + 15) / 16 * 16;
}

template <class V, class S, int R>
void plain_few_rows(const WeightView& w, const float* x, int64_t x_stride, int64_t tokens, int64_t o, const uint8_t* next,
                    float* y, int64_t y_stride, const Epilogue& e) {
  const int64_t row_bytes = w.in * S::kBytes, chunk = chunk_of(w.in);
  for (int64_t i = 0; i < w.in; i += chunk) {
    const int64_t n = w.in - i < chunk ? w.in - i : chunk;
    const PlainTile p{w.codes + o * row_bytes + i * S::kBytes, row_bytes, x + i, x_stride, n, y, y_stride,
                      i ? nullptr : &e, next ? next + i * R * S::kBytes : nullptr};
    plain_rows<V, S, R>(p, 0, tokens, o);
  }
}

template <class V, class S>
void run_plain_few(const WeightView& w, const float* x, int64_t x_stride, int64_t tokens, int64_t out_begin,
                   int64_t out_end, float* y, int64_t y_stride, const Epilogue& e) {
  const int64_t row_bytes = w.in * S::kBytes, ahead = 4 * row_bytes > kAhead ? 4 * row_bytes : kAhead;
  int64_t o = out_begin;
  for (; o + 4 <= out_end; o += 4) {
    const uint8_t* next = ahead <= kFarthest ? w.codes + o * row_bytes + ahead : nullptr;
    plain_few_rows<V, S, 4>(w, x, x_stride, tokens, o, next, y, y_stride, e);
  }
  for (; o < out_end; ++o) plain_few_rows<V, S, 1>(w, x, x_stride, tokens, o, nullptr, y, y_stride, e);
}

template <class V, class S>
void run_plain_many(const WeightView& w, const float* x, int64_t x_stride, int64_t tokens, int64_t out_begin,
                    int64_t out_end, float* y, int64_t y_stride, const Epilogue& e, float* scratch) {
  const int64_t row_bytes = w.in * S::kBytes, chunk = chunk_of(w.in);
  const int64_t block = kTokenBlockBytes / (4 * chunk) / V::kTokens * V::kTokens;
  for (int64_t t = 0; t < tokens; t += block) {
    const int64_t end = t + block < tokens ? t + block : tokens;
    for (int64_t i = 0; i < w.in; i += chunk) {
      const int64_t n = w.in - i < chunk ? w.in - i : chunk;
      PlainTile p{nullptr, row_bytes, x + i, x_stride, n, y, y_stride, i ? nullptr : &e, nullptr};
      int64_t o = out_begin;
      for (; o + 4 <= out_end; o += 4) {
        p.w = w.codes + o * row_bytes + i * S::kBytes;
        if constexpr (S::kBytes == 4) {
          plain_rows<V, S, 4>(p, t, end, o);
        } else {
          for (int64_t r = 0; r < 4; ++r) widen<V, S>(p.w + r * row_bytes, n, scratch + r * kChunk);
          p.w = reinterpret_cast<const uint8_t*>(scratch);
          p.w_stride = kChunk * 4;
          plain_rows<V, F32Source<V>, 4>(p, t, end, o);
          p.w_stride = row_bytes;
        }
      }
      for (; o < out_end; ++o) {
        p.w = w.codes + o * row_bytes + i * S::kBytes;
        plain_rows<V, S, 1>(p, t, end, o);
      }
    }
  }
}

template <class V, class S>
void run_plain(const WeightView& w, const float* x, int64_t x_stride, const void*, int64_t tokens, int64_t out_begin,
               int64_t out_end, float* y, int64_t y_stride, const Epilogue& e, void* scratch) {
  if (few_tokens(w.in, tokens)) run_plain_few<V, S>(w, x, x_stride, tokens, out_begin, out_end, y, y_stride, e);
  else run_plain_many<V, S>(w, x, x_stride, tokens, out_begin, out_end, y, y_stride, e, static_cast<float*>(scratch));
}

inline size_t no_bytes(int64_t) { return 0; }

}  // namespace
}  // namespace datong
