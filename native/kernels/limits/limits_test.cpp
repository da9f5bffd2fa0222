// Every byte is read once; each usable kernel ends.
#include "kernels/limits/limits.h"

#include <vector>

#include "testing/check.h"

using namespace datong;

int main() {
  for (int64_t part : {64, 128, 4096}) {
    std::vector<uint8_t> bytes(static_cast<size_t>(part * kLimitStreams));
    uint64_t want = 0;
    for (size_t i = 0; i < bytes.size(); i += 8) {
      const uint64_t value = i * i + 1;
      for (size_t k = 0; k < 8; ++k) bytes[i + k] = static_cast<uint8_t>(value >> (8 * k));
      want += value;
    }
    CHECK(read_streams(bytes.data(), part) == want, "%lld bytes a stream", static_cast<long long>(part));
  }
  const CpuFeatures cpu = detect_cpu_features();
  for (const auto& kernels : {int8_peaks(), f32_peaks()})
    for (const PeakKernel& k : kernels) {
      CHECK(k.operations > 0, "%s", k.name);
      if (k.usable(cpu)) k.run(10);
    }
  return datong::testing::result();
}
