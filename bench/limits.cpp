// What this machine can do, as a yardstick: bytes read from memory, and multiply-adds from registers, per second.
// Usage: limits THREADS BYTES [PASSES]. Prints one JSON object: stream_gb_s, int8_gop_s (0 without AVX-512 VNNI),
// f32_gflop_s. With PASSES only stream_gb_s, of reading the bytes so often, one time after another.
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace {

// Seconds of the best of `rounds`, all threads starting together.
double best_of(int rounds, int threads, const std::function<void(int)>& work) {
  double best = 1e30;
  for (int round = 0; round < rounds; ++round) {
    std::atomic<int> ready{0};
    std::vector<std::thread> team;
    std::vector<double> ends(threads);
    std::atomic<bool> go{false};
    std::chrono::steady_clock::time_point begin;
    for (int t = 0; t < threads; ++t) {
      team.emplace_back([&, t] {
        ++ready;
        while (!go.load(std::memory_order_acquire)) {
        }
        work(t);
        ends[t] = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      });
    }
    while (ready.load() < threads) {
    }
    begin = std::chrono::steady_clock::now();
    go.store(true, std::memory_order_release);
    for (auto& thread : team) thread.join();
    best = std::min(best, *std::max_element(ends.begin(), ends.end()));
  }
  return best;
}

volatile int64_t sink;

// Of `rounds` the best, each of which reads everything `passes` times.
double stream(int threads, size_t bytes, int rounds, int passes) {
  auto memory = std::unique_ptr<uint8_t, decltype(&std::free)>(
      static_cast<uint8_t*>(std::aligned_alloc(4096, bytes)), &std::free);
  for (size_t i = 0; i < bytes; i += 8) *reinterpret_cast<uint64_t*>(memory.get() + i) = i;
  // Eight places of each thread's share in turn, as a matrix is read by rows: one stream alone leaves prefetchers idle.
  constexpr size_t kStreams = 8;
  const size_t part = bytes / threads / kStreams / 512 * 512, each = part * kStreams;
  const double seconds = best_of(rounds, threads, [&](int t) {
    const uint8_t* p = memory.get() + t * each;
    __m256i sums[kStreams] = {};
    for (int pass = 0; pass < passes; ++pass)
      for (size_t i = 0; i < part; i += 64)
        for (size_t s = 0; s < kStreams; ++s) {
          const auto* q = reinterpret_cast<const __m256i*>(p + s * part + i);
          sums[s] = _mm256_add_epi64(sums[s], _mm256_add_epi64(_mm256_load_si256(q), _mm256_load_si256(q + 1)));
        }
    for (size_t s = 1; s < kStreams; ++s) sums[0] = _mm256_add_epi64(sums[0], sums[s]);
    sink = _mm256_extract_epi64(sums[0], 0);
  });
  return static_cast<double>(each) * threads * passes / seconds * 1e-9;
}

constexpr int kLoops = 20'000'000;

double int8_peak(int threads) {
#if defined(__AVX512VNNI__)
  const double seconds = best_of(5, threads, [](int t) {
    __m512i x[12], a = _mm512_set1_epi8(static_cast<char>(t + 1)), b = _mm512_set1_epi8(3);
    for (auto& value : x) value = _mm512_setzero_si512();
    for (int i = 0; i < kLoops / 12; ++i) {
      for (auto& value : x) value = _mm512_dpbusd_epi32(value, a, b);
      asm volatile("" : "+v"(a), "+v"(b));
    }
    for (auto& value : x) a = _mm512_add_epi32(a, value);
    sink = _mm512_reduce_add_epi32(a);
  });
  return 2.0 * 64 * (kLoops / 12 * 12) * threads / seconds * 1e-9;
#else
  (void)threads;
  return 0;
#endif
}

double f32_peak(int threads) {
  const double seconds = best_of(5, threads, [](int t) {
#if defined(__AVX512F__)
    __m512 x[12], a = _mm512_set1_ps(1.0f + 1e-9f * t), b = _mm512_set1_ps(1e-9f);
    for (auto& value : x) value = _mm512_setzero_ps();
    for (int i = 0; i < kLoops / 12; ++i) {
      for (auto& value : x) value = _mm512_fmadd_ps(value, a, b);
      asm volatile("" : "+v"(a), "+v"(b));
    }
    for (auto& value : x) a = _mm512_add_ps(a, value);
    sink = static_cast<int64_t>(_mm512_reduce_add_ps(a));
#else
    __m256 x[12], a = _mm256_set1_ps(1.0f + 1e-9f * t), b = _mm256_set1_ps(1e-9f);
    for (auto& value : x) value = _mm256_setzero_ps();
    for (int i = 0; i < kLoops / 12; ++i) {
      for (auto& value : x) value = _mm256_fmadd_ps(value, a, b);
      asm volatile("" : "+x"(a), "+x"(b));
    }
    for (auto& value : x) a = _mm256_add_ps(a, value);
    sink = static_cast<int64_t>(_mm256_cvtss_f32(a));
#endif
  });
#if defined(__AVX512F__)
  constexpr int width = 16;
#else
  constexpr int width = 8;
#endif
  return 2.0 * width * (kLoops / 12 * 12) * threads / seconds * 1e-9;
}

}  // namespace

int main(int count, char** words) {
  const int threads = count > 1 ? std::max(1, std::atoi(words[1])) : 1;
  const size_t bytes = std::max(16LL << 20, count > 2 ? std::atoll(words[2]) / 4096 * 4096 : 256LL << 20);
  if (count > 3) {
    std::printf("{\"stream_gb_s\": %.2f}\n", stream(threads, bytes, 1, std::max(1, std::atoi(words[3]))));
    return 0;
  }
  std::printf("{\"stream_gb_s\": %.2f, \"int8_gop_s\": %.1f, \"f32_gflop_s\": %.1f}\n", stream(threads, bytes, 7, 1),
              int8_peak(threads), f32_peak(threads));
}
