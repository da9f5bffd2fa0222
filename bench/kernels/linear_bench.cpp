// Speed of the linear kernels: GEMV in GB/s of stored bytes beside plain reads of as many bytes, GEMM in GOP/s.
//
//   linear_bench [kernel substring] [gemv | gemm | all] [csv]
//
// Each figure is the best of several short bursts. Threads are plain ones that split the rows, as the executor does; all
// spin at a barrier, so that waking up is not measured.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>

#include "kernels/linear/linear_test_weights.h"

using namespace datong;
using namespace datong::testing;

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Runs work(thread) on n threads `repeats` times and returns the best seconds of one round.
double best_seconds(int n, int repeats, const std::function<void(int)>& work) {
  std::atomic<int> arrived{0}, round{0};
  double best = 1e9;
  const auto wait = [&](int r) {
    if (arrived.fetch_add(1) == n - 1) {
      arrived = 0;
      round = r + 1;
    } else {
      while (round.load() <= r) __builtin_ia32_pause();
    }
  };
  const auto loop = [&](int thread) {
    double start = 0;
    for (int r = 0; r < 2 * repeats; r += 2) {
      wait(r);
      if (thread == 0) start = now();
      work(thread);
      wait(r + 1);
      if (thread == 0) best = std::min(best, now() - start);
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < n; ++i) others.emplace_back(loop, i);
  loop(0);
  for (std::thread& t : others) t.join();
  return best;
}

struct Buffer {
  std::unique_ptr<uint8_t, void (*)(void*)> p;
  explicit Buffer(size_t n) : p(static_cast<uint8_t*>(std::aligned_alloc(64, (n + 127) / 64 * 64)), std::free) {
    std::memset(p.get(), 0, n);
  }
};

struct Shape {
  int64_t out, in;
};

void row(const char* kernel, const Shape& s, int64_t tokens, int threads, double gbs, double read, double gops) {
  std::printf("%s,%lld,%lld,%lld,%d,%.1f,%.1f,%.0f\n", kernel, (long long)s.out, (long long)s.in, (long long)tokens,
              threads, gbs, read, gops);
  std::fflush(stdout);
}

// GB/s of summing `bytes` bytes on n threads.
double read_speed(const uint8_t* p, int64_t bytes, int n, int repeats) {
  static std::atomic<uint64_t> sink;
  return 1e-9 * double(bytes) / best_seconds(n, repeats, [&](int thread) {
           const int64_t begin = bytes / 8 * thread / n, end = bytes / 8 * (thread + 1) / n;
           const uint64_t* q = reinterpret_cast<const uint64_t*>(p);
           uint64_t sums[16] = {};
           for (int64_t i = begin; i + 16 <= end; i += 16)
             for (int k = 0; k < 16; ++k) sums[k] += q[i + k];
           uint64_t sum = 0;
           for (uint64_t s : sums) sum += s;
           sink = sum;
         });
}

void measure(const LinearKernel& k, const WeightView& w, int64_t bytes, const Shape& s, int64_t tokens, int threads,
             double read) {
  const std::vector<float> x(static_cast<size_t>(tokens * s.in), 0.5f);
  std::vector<float> y(static_cast<size_t>(tokens * s.out));
  const int64_t room = (tokens + kPrepareRows - 1) / kPrepareRows * kPrepareRows;
  const size_t per_token = k.prepared_bytes(s.in);
  Buffer prepared(per_token * static_cast<size_t>(room));
  if (per_token) k.prepare(x.data(), s.in, s.in, 0, tokens, prepared.p.get());
  std::vector<Buffer> scratch;
  for (int i = 0; i < threads; ++i) scratch.emplace_back(k.scratch_bytes ? k.scratch_bytes(w, tokens) : 0);
  const double work = 2.0 * double(s.out) * double(s.in) * double(tokens);
  const int repeats = static_cast<int>(std::clamp(0.15 * threads / (double(bytes) / 20e9 + work / 300e9), 3.0, 2000.0));
  const double seconds = best_seconds(threads, repeats, [&](int thread) {
    const int64_t m = k.out_multiple, units = (s.out + m - 1) / m;
    const int64_t begin = units * thread / threads * m, end = std::min(s.out, units * (thread + 1) / threads * m);
    k.run(w, x.data(), s.in, prepared.p.get(), tokens, begin, end, y.data(), s.out, Epilogue{nullptr, nullptr, 0},
          scratch[static_cast<size_t>(thread)].p.get());
  });
  row(k.name, s, tokens, threads, 1e-9 * double(bytes) / seconds, read, 1e-9 * work / seconds);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "", what = argc > 2 ? argv[2] : "all";
  const CpuFeatures cpu = detect_cpu_features();
  std::printf("kernel,out,in,tokens,threads,gb_per_s,plain_read_gb_per_s,gop_per_s\n");
  for (const Shape& s : {Shape{1536, 576}, Shape{576, 1536}, Shape{49152, 576}, Shape{2048, 8192}}) {
    for (const char* format : kFormats) {
      if (format[3] == 'k' && s.in % 256) continue;
      std::unique_ptr<TestWeight> weight;
      for (const LinearKernel& k : linear_kernels()) {
        if (!std::strstr(k.name, name.c_str()) || std::strncmp(k.name, format, std::strlen(format)) != 0) continue;
        if (!weight) weight = std::make_unique<TestWeight>(format, s.out, s.in, 1);
        if (!k.usable(cpu, weight->view)) continue;
        for (int threads = 1; threads <= 2; ++threads) {
          const Buffer plain(static_cast<size_t>(weight->bytes()));
          const double read = read_speed(plain.p.get(), weight->bytes(), threads,
                                         static_cast<int>(std::clamp(0.1 * 20e9 / double(weight->bytes()), 3.0, 2000.0)));
          if (what != "gemm")
            for (const int64_t tokens : {1, 2, 4}) measure(k, weight->view, weight->bytes(), s, tokens, threads, read);
          if (what != "gemv" && s.out < 40000)
            for (const int64_t tokens : {8, 16, 64, 512}) measure(k, weight->view, weight->bytes(), s, tokens, threads, read);
        }
      }
    }
  }
}
