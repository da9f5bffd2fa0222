// Body of the vector variants; included by each ISA file.
#include "core/simd.h"
#include "kernels/rope/rope.h"

namespace datong {
namespace {

void half_split(const float* x, const float* cos, const float* sin, float* y, int64_t half) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
    store(y + i, a * c - b * s);
    store(y + half + i, b * c + a * s);
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    y[i] = a * cos[i] - b * sin[i];
    y[half + i] = b * cos[i] + a * sin[i];
  }
}

void interleaved(const float* x, const float* cos, const float* sin, float* y, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    y[2 * i] = a * cos[i] - b * sin[i];
    y[2 * i + 1] = b * cos[i] + a * sin[i];
  }
}

inline void rope_simd(const RopeArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t h = 0; h < a.heads; ++h) {
      const int64_t at = (r * a.heads + h) * a.dim;
      (a.interleaved ? interleaved : half_split)(a.x + at, a.cos + r * a.half, a.sin + r * a.half, a.y + at, a.half);
      for (int64_t i = 2 * a.half; i < a.dim; ++i) a.y[at + i] = a.x[at + i];
    }
}

}  // namespace
}  // namespace datong
