#include "kernels/recurrence/recurrence_simd.h"

void datong::recurrence_avx2(const RecurrenceArgs& a) { recurrence_simd(a); }
