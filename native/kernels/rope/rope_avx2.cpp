// No AVX-512 variant: a head's half is often 32 values, and the time is that of reading x.
#include "kernels/rope/rope_simd.h"

void datong::rope_avx2(const RopeArgs& a) { rope_simd(a); }
