// The kernels of each instruction set.
#pragma once

#include "kernels/limits/limits.h"

namespace datong {

PeakKernel int8_peak_avx512vnni();
PeakKernel f32_peak_avx512();
PeakKernel int8_peak_avx2();
PeakKernel f32_peak_avx2();

}  // namespace datong
