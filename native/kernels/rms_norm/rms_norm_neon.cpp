#include "kernels/rms_norm/rms_norm_simd.h"

void datong::rms_norm_neon(const RmsNormArgs& a) { rms_norm_simd(a); }
