// Embedding: one row, dequantised in plain C++; a row is a few kilobytes and read once per token.
#include "kernels/embedding/embedding.h"

#include "kernels/linear/linear_dequantise.h"
#include "kernels/linear/linear_tile.h"

namespace datong {
namespace {

template <float (*kAt)(const uint8_t*), int kBytes>
void plain_row(const WeightView& w, int64_t row, float* y) {
  for (int64_t i = 0; i < w.in; ++i) y[i] = kAt(w.codes + (row * w.in + i) * kBytes);
}

template <Fmt F>
inline float code_at(const uint8_t* codes, int64_t i) {
  if constexpr (Traits<F>::nibbles) {
    const int v = i % 2 ? codes[i / 2] >> 4 : codes[i / 2] & 15;
    return static_cast<float>(Traits<F>::is_signed ? (v ^ 8) - 8 : v);
  } else {
    return static_cast<float>(Traits<F>::is_signed ? static_cast<int8_t>(codes[i]) : codes[i]);
  }
}

// Each step rounds as graph.onnx does: scale * code, then the min.
template <Fmt F>
void block_row(const WeightView& view, int64_t row, float* y) {
  const Matrix<F> w(view);
  const uint8_t* codes = w.codes + row * w.codes_stride;
  for (int64_t b = 0; b < w.blocks; ++b) {
    const float scale = level_at<F>(w.scale + row * w.scale_stride, w.super_scale + row * w.super_stride, b);
    float min = 0;
    if constexpr (Traits<F>::has_min)
      min = static_cast<float>(Traits<F>::min_sign) *
            level_at<F>(w.min + row * w.scale_stride, w.super_min + row * w.super_stride, b);
    for (int64_t i = b * Traits<F>::block; i < (b + 1) * Traits<F>::block; ++i) {
      const float product = scale * code_at<F>(codes, i);
      y[i] = product + min;
    }
  }
}

}  // namespace

void embedding_row(const WeightView& w, int64_t row, float* y) {
  if (w.tile) return tile_row(w, row, y);
  struct Entry {
    const char* format;
    void (*run)(const WeightView&, int64_t, float*);
  };
  static constexpr Entry kEntries[] = {
      {"f32", plain_row<f32_at, 4>},     {"f16", plain_row<f16_at, 2>},     {"bf16", plain_row<bf16_at, 2>},
      {"q4_0", block_row<Fmt::q4_0>}, {"q4_1", block_row<Fmt::q4_1>}, {"q5_0", block_row<Fmt::q5_0>},
      {"q5_1", block_row<Fmt::q5_1>}, {"q8_0", block_row<Fmt::q8_0>}, {"q4_k", block_row<Fmt::q4_k>},
      {"q5_k", block_row<Fmt::q5_k>}, {"q6_k", block_row<Fmt::q6_k>},
  };
  for (const Entry& e : kEntries)
    if (strcmp(w.format, e.format) == 0) return e.run(w, row, y);
}

}  // namespace datong
