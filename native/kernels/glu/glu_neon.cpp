#include "kernels/glu/glu_simd.h"

void datong::silu_glu_neon(const GluArgs& a) { silu_glu_simd(a); }
