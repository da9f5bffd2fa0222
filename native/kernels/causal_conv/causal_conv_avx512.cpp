#include "kernels/causal_conv/causal_conv_simd.h"

void datong::causal_conv_avx512(const CausalConvArgs& a) { causal_conv_simd(a); }
