#include "kernels/glu/glu_simd.h"

DATONG_GLU_VARIANTS(neon)
