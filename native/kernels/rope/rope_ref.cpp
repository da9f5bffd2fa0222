#include "kernels/rope/rope.h"

namespace datong {

void rope_ref(const RopeArgs& a) {
  const int64_t step = a.interleaved ? 2 : 1, partner = a.interleaved ? 1 : a.half;
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t h = 0; h < a.heads; ++h) {
      const float* x = a.x + (r * a.heads + h) * a.dim;
      float* y = a.y + (r * a.heads + h) * a.dim;
      for (int64_t i = 0; i < a.half; ++i) {
        const float c = a.cos[r * a.half + i], s = a.sin[r * a.half + i];
        const float first = x[i * step], second = x[i * step + partner];
        y[i * step] = first * c - second * s;
        y[i * step + partner] = second * c + first * s;
      }
      for (int64_t i = 2 * a.half; i < a.dim; ++i) y[i] = x[i];
    }
}

}  // namespace datong
