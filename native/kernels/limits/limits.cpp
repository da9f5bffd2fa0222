// Reading, and the lists.
#include "kernels/limits/limits.h"

#include <cstring>

#include "kernels/limits/limits_list.h"

namespace datong {

uint64_t read_streams(const uint8_t* from, int64_t part) {
  typedef uint64_t Two __attribute__((vector_size(16)));
  const auto at = [](const uint8_t* p) {
    Two v;
    std::memcpy(&v, p, sizeof v);
    return v;
  };
  Two sums[kLimitStreams] = {};  // one register to a stream: more would lie in memory, and be the limit
  for (int64_t i = 0; i + 64 <= part; i += 64) {
#pragma GCC unroll 8
    for (int64_t s = 0; s < kLimitStreams; ++s) {
      const uint8_t* p = from + s * part + i;
      sums[s] += (at(p) + at(p + 16)) + (at(p + 32) + at(p + 48));
    }
  }
  uint64_t all = 0;
  for (const Two& sum : sums) all += sum[0] + sum[1];
  return all;
}

std::span<const PeakKernel> int8_peaks() {
#if DATONG_X86
  static const PeakKernel all[] = {int8_peak_avx512vnni(), int8_peak_avx2()};
  return all;
#else
  return {};
#endif
}

std::span<const PeakKernel> f32_peaks() {
#if DATONG_X86
  static const PeakKernel all[] = {f32_peak_avx512(), f32_peak_avx2()};
  return all;
#else
  return {};
#endif
}

}  // namespace datong
