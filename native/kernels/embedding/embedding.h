// Contract of the embedding kernel: one row of a matrix, dequantised.
#pragma once

#include "kernels/linear/linear.h"

namespace datong {

// y[i] = w[row, i]
//
//   y  [in] f32
//   0 <= row < w.out (the caller checks). Any format of WeightView. Does not allocate, does not throw.
void embedding_row(const WeightView& w, int64_t row, float* y);

}  // namespace datong
