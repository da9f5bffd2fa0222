#include <cmath>

#include "kernels/rope_table/rope_table.h"

namespace datong {

void rope_table_ref(const int64_t* positions, const float* inv_freq, float scale, float* cos, float* sin, int64_t rows,
                    int64_t half) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(positions[r]) * inv_freq[i];
      cos[r * half + i] = std::cos(angle) * scale;
      sin[r * half + i] = std::sin(angle) * scale;
    }
}

}  // namespace datong
