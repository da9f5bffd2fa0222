// What a device of ours can do at best, measured on its own threads.
#pragma once

#include <cstdint>

#include "executor/program.h"

namespace datong {

struct Limits {
  double bytes = 0, int8 = 0, f32 = 0;  // per second; a multiply-add is two operations; 0: unknown
};

// Reads `bytes` of fresh memory several times, then multiplies in registers; the best of a few rounds counts. About a
// second. Throws Error(DT_OUT_OF_MEMORY).
Limits measure_limits(Device& device, int64_t bytes);

}  // namespace datong
