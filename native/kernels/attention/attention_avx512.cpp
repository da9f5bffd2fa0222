#include "kernels/attention/attention_simd.h"

void datong::attend_avx512(const AttentionArgs& a) { attend_simd(a); }
