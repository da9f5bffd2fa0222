#include "kernels/rms_norm/rms_norm_simd.h"

void datong::rms_norm_avx512(const RmsNormArgs& a) { rms_norm_simd(a); }
