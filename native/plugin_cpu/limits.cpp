#include "plugin_cpu/limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>

#include "core/error.h"
#include "kernels/limits/limits.h"

namespace datong {
namespace {

constexpr int kRounds = 7;
constexpr int64_t kPeakRounds = 1'500'000;  // some 10 ms
std::atomic<uint64_t> sink;

// Seconds of the best round, all threads beginning together.
template <class Work>
double best_round(ThreadPool& pool, const Work& work) {
  double best = 1e30;
  for (int round = 0; round < kRounds; ++round) {
    std::atomic<int64_t> begin{INT64_MAX}, end{0};
    pool.run([&](Team& team) {
      const auto now = [] { return std::chrono::steady_clock::now().time_since_epoch().count(); };
      team.barrier();
      const int64_t from = now();
      sink += work(team);
      const int64_t to = now();
      for (int64_t old = begin; from < old && !begin.compare_exchange_weak(old, from);) {
      }
      for (int64_t old = end; to > old && !end.compare_exchange_weak(old, to);) {
      }
    });
    const std::chrono::steady_clock::duration span(end - begin);
    best = std::min(best, std::chrono::duration<double>(span).count());
  }
  return best;
}

double peak(Device& device, std::span<const PeakKernel> kernels) {
  for (const PeakKernel& k : kernels) {
    if (!k.usable(device.features)) continue;
    const double seconds = best_round(device.pool, [&](Team&) { return k.run(kPeakRounds); });
    return static_cast<double>(k.operations * kPeakRounds) * device.pool.size() / seconds;
  }
  return 0;
}

}  // namespace

Limits measure_limits(Device& device, int64_t bytes) {
  const int64_t threads = device.pool.size(), unit = threads * kLimitStreams * 512;
  const int64_t part = std::max<int64_t>(1, bytes / unit) * 512, each = part * kLimitStreams;
  const auto size = static_cast<size_t>(each * threads);
  std::unique_ptr<uint8_t, decltype(&std::free)> memory(static_cast<uint8_t*>(std::aligned_alloc(512, size)), &std::free);
  if (!memory) throw Error(DT_OUT_OF_MEMORY, text("[cpu] no memory for %zu bytes to read", size));
  for (size_t i = 0; i < size; ++i) memory.get()[i] = static_cast<uint8_t>(i * 31);
  const double seconds = best_round(device.pool, [&](Team& team) {
    return read_streams(memory.get() + team.index() * each, part);
  });
  return {static_cast<double>(size) / seconds, peak(device, int8_peaks()), peak(device, f32_peaks())};
}

}  // namespace datong
