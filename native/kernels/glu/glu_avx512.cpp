#include "kernels/glu/glu_simd.h"

void datong::silu_glu_avx512(const GluArgs& a) { silu_glu_simd(a); }
