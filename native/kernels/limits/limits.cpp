// Reading, and the lists.
#include "kernels/limits/limits.h"

#include <cstring>

#include "kernels/limits/limits_list.h"

namespace datong {

uint64_t read_streams(const uint8_t* from, int64_t part) {
  uint64_t sums[kLimitStreams][8] = {};
  for (int64_t i = 0; i + 64 <= part; i += 64)
    for (int64_t s = 0; s < kLimitStreams; ++s) {
      uint64_t line[8];
      std::memcpy(line, from + s * part + i, sizeof line);
      for (int k = 0; k < 8; ++k) sums[s][k] += line[k];
    }
  uint64_t all = 0;
  for (const auto& row : sums)
    for (const uint64_t sum : row) all += sum;
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
