#include "kernels/recurrence/recurrence_simd.h"

void datong::recurrence_neon(const RecurrenceArgs& a) { recurrence_simd(a); }
