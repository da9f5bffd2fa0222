#include "kernels/vector/vector_simd.h"

DATONG_VECTOR_BODIES(avx2)
