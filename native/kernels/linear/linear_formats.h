// Block formats as compile-time facts, and a matrix with its strides. Private to kernels/linear and kernels/embedding.
//
// Everything is in an anonymous namespace and free of the standard library, because files compiled for one ISA include
// it: nothing of it may be merged with another file's copy.
//
// The order of sums, so that a result has the same bits for one token and for many, whichever kernel computes it (ADR 0027;
// the portable reference has an order of its own). Of one row and one token:
//
//   d[b]  the products of block b, added up as integers: exact
//   p[i]  over the blocks b = i, i + 4, i + 8 ...: p = fma(d[b], scale of the weights * scale of the activations, p), then,
//         with a min, p = fma(min, sum of the activations, p)
//   y     ((p[0] + p[1]) + p[2]) + p[3], + bias, + residual
#pragma once

#include <string.h>

#include "kernels/linear/linear.h"

namespace datong {
namespace {

enum class Fmt { q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k };

// datong/spec/formats.py, one line per format.
template <Fmt F>
struct Traits {
  static constexpr bool nibbles = F == Fmt::q4_0 || F == Fmt::q4_1 || F == Fmt::q4_k;
  static constexpr bool is_signed = F == Fmt::q4_0 || F == Fmt::q5_0 || F == Fmt::q8_0 || F == Fmt::q6_k;
  static constexpr bool two_level = F == Fmt::q4_k || F == Fmt::q5_k || F == Fmt::q6_k;
  static constexpr bool has_min = F == Fmt::q4_1 || F == Fmt::q5_1 || F == Fmt::q4_k || F == Fmt::q5_k;
  static constexpr int min_sign = two_level ? -1 : 1;
  static constexpr int block = F == Fmt::q6_k ? 16 : 32;  // weights per scale
  static constexpr int super = two_level ? 256 : block;   // `in` is a multiple of this
  static constexpr const char* name = F == Fmt::q4_0   ? "q4_0"
                                      : F == Fmt::q4_1 ? "q4_1"
                                      : F == Fmt::q5_0 ? "q5_0"
                                      : F == Fmt::q5_1 ? "q5_1"
                                      : F == Fmt::q8_0 ? "q8_0"
                                      : F == Fmt::q4_k ? "q4_k"
                                      : F == Fmt::q5_k ? "q5_k"
                                                       : "q6_k";
};

template <Fmt F>
inline bool fits(const WeightView& w) {
  return strcmp(w.format, Traits<F>::name) == 0 && w.in > 0 && w.in % Traits<F>::super == 0;
}

// The pieces of one matrix as bytes, with the bytes from row to row.
template <Fmt F>
struct Matrix {
  const uint8_t *codes, *scale, *min, *super_scale, *super_min;
  int64_t blocks;  // per row, of Traits<F>::block weights
  int64_t codes_stride, scale_stride, super_stride;

  explicit Matrix(const WeightView& w)
      : codes(w.codes),
        scale(static_cast<const uint8_t*>(w.scale)),
        min(static_cast<const uint8_t*>(w.min)),
        super_scale(reinterpret_cast<const uint8_t*>(w.super_scale)),
        super_min(reinterpret_cast<const uint8_t*>(w.super_min)),
        blocks(w.in / Traits<F>::block),
        codes_stride(Traits<F>::nibbles ? w.in / 2 : w.in),
        scale_stride(Traits<F>::two_level ? blocks : 2 * blocks),
        super_stride(w.in / Traits<F>::super * 2) {}
};

// Four rows of which the first `count` exist; the others repeat the last one, and their results are not stored.
template <Fmt F>
struct FourRows {
  const uint8_t *codes[4], *scale[4], *min[4], *super_scale[4], *super_min[4];
  FourRows(const Matrix<F>& w, int64_t row, int64_t count) {
    for (int64_t r = 0; r < 4; ++r) {
      const int64_t at = row + (r < count ? r : count - 1);
      codes[r] = w.codes + at * w.codes_stride;
      scale[r] = w.scale + at * w.scale_stride;
      super_scale[r] = w.super_scale + at * w.super_stride;
      if constexpr (Traits<F>::has_min) {
        min[r] = w.min + at * w.scale_stride;
        super_min[r] = w.super_min + at * w.super_stride;
      }
    }
  }
};

}  // namespace
}  // namespace datong
