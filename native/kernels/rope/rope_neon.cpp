#include "kernels/rope/rope_simd.h"

void datong::rope_neon(const RopeArgs& a) { rope_simd(a); }
