// Speed of the linear kernels: GEMV in GB/s of stored bytes beside plain reads of as many bytes, GEMM in GOP/s.
//
//   linear_bench [kernel substring] [gemv | gemm | all] [OUTxIN]    CSV on stdout
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

// Runs work(thread, round) on n threads `repeats` times and returns the best seconds of one round.
double best_seconds(int n, int repeats, const std::function<void(int, int)>& work) {
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
      work(thread, r / 2);
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

constexpr int64_t kMemoryBytes = 200 << 20;  // six times the L3 cache of the machine in bench/results

struct Shape {
  int64_t out, in;
};

// As many copies of a weight as exceed the caches several times: a round that starts at another copy each time reads
// memory. One copy measures the caches.
class Copies {
 public:
  std::vector<WeightView> views;

  // `packed`: as the kernel packs them, else as stored.
  Copies(const TestWeight& weight, int count, const LinearKernel* packed) {
    for (int i = 0; i < count; ++i) {
      WeightView v = weight.view;
      if (packed) {
        memory_.emplace_back(packed->packed_bytes(v));
        packed->pack(v, 0, v.out, memory_.back().p.get());
        v.packed = v.codes = memory_.back().p.get();
        views.push_back(v);
        continue;
      }
      memory_.emplace_back(static_cast<size_t>(weight.bytes()) + 8);
      uint8_t* at = memory_.back().p.get() + 8;  // the data of a safetensors file is aligned to 8 bytes
      const auto move = [&](const void* from, int64_t n) {
        if (!from) return static_cast<const uint8_t*>(nullptr);
        std::memcpy(at, from, static_cast<size_t>(n));
        at += n;
        return static_cast<const uint8_t*>(at - n);
      };
      const bool k = v.super_block != 0;
      const int64_t n = v.out * v.in, levels = v.block ? n / v.block * (k ? 1 : 2) : 0;
      const bool nibbles = v.codes_dtype == DT_I4 || v.codes_dtype == DT_U4;
      v.codes = move(v.codes, v.block ? (nibbles ? n / 2 : n) : v.codes_dtype == DT_F32 ? 4 * n : 2 * n);
      v.scale = move(v.scale, levels);
      v.min = move(v.min, levels);
      v.super_scale = reinterpret_cast<const uint16_t*>(move(v.super_scale, k ? n / 128 : 0));
      v.super_min = reinterpret_cast<const uint16_t*>(move(v.super_min, k ? n / 128 : 0));
      views.push_back(v);
    }
  }

 private:
  std::vector<Buffer> memory_;
};

void row(const char* kernel, bool packed, const Shape& s, const char* where, int64_t tokens, int threads, double gbs, double read,
         double gops) {
  std::printf("%s,%s,%lld,%lld,%s,%lld,%d,%.1f,%.1f,%.0f\n", kernel, packed ? "packed" : "stored", (long long)s.out, (long long)s.in, where,
              (long long)tokens, threads, gbs, read, gops);
  std::fflush(stdout);
}

// GB/s of summing all codes (each copy in turn) on n threads.
double read_speed(const Copies& copies, int64_t bytes, int n) {
  static std::atomic<uint64_t> sink;
  const int repeats = static_cast<int>(std::clamp(0.2 * 20e9 / double(bytes), 5.0, 2000.0));
  return 1e-9 * double(bytes) / best_seconds(n, repeats, [&](int thread, int round) {
           const uint8_t* p = copies.views[static_cast<size_t>(round) % copies.views.size()].codes;
           const int64_t begin = bytes / 1024 * thread / n, end = bytes / 1024 * (thread + 1) / n;
           const uint64_t* q = reinterpret_cast<const uint64_t*>(p);
           uint64_t sums[16] = {};
           for (int64_t i = begin * 128; i < end * 128; i += 16)
             for (int k = 0; k < 16; ++k) sums[k] += q[i + k];
           uint64_t sum = 0;
           for (uint64_t v : sums) sum += v;
           sink = sum;
         });
}

void measure(const LinearKernel& k, const Copies& copies, int64_t bytes, const Shape& s, int64_t tokens, int threads,
             double read) {
  const WeightView& w = copies.views[0];
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
  const double seconds = best_seconds(threads, repeats, [&](int thread, int round) {
    const int64_t m = k.out_multiple, units = (s.out + m - 1) / m;
    const int64_t begin = units * thread / threads * m, end = std::min(s.out, units * (thread + 1) / threads * m);
    k.run(copies.views[static_cast<size_t>(round) % copies.views.size()], x.data(), s.in, prepared.p.get(), tokens, begin, end, y.data(), s.out, Epilogue{nullptr, nullptr, 0},
          scratch[static_cast<size_t>(thread)].p.get());
  });
  row(k.name, w.packed, s, copies.views.size() > 1 ? "memory" : "cache", tokens, threads, 1e-9 * double(bytes) / seconds, read, 1e-9 * work / seconds);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "", what = argc > 2 ? argv[2] : "all", shape = argc > 3 ? argv[3] : "";
  const CpuFeatures cpu = detect_cpu_features();
  std::printf("kernel,layout,out,in,weights_in,tokens,threads,gb_per_s,plain_read_gb_per_s,gop_per_s\n");
  for (const Shape& s : {Shape{1536, 576}, Shape{576, 1536}, Shape{49152, 576}, Shape{2048, 8192}}) {
    if (!shape.empty() && shape != std::to_string(s.out) + "x" + std::to_string(s.in)) continue;
    for (const char* format : kFormats) {
      if (format[3] == 'k' && s.in % 256) continue;
      std::unique_ptr<TestWeight> weight;
      std::vector<LinearKernel> kernels(linear_kernels().begin(), linear_kernels().end());
      kernels.insert(kernels.end(), bf16_linear_kernels().begin(), bf16_linear_kernels().end());
      for (const LinearKernel& k : kernels) {
        if (!std::strstr(k.name, name.c_str()) || std::strncmp(k.name, format, std::strlen(format)) != 0) continue;
        if (!weight) weight = std::make_unique<TestWeight>(format, s.out, s.in, 1);
        if (!k.usable(cpu, weight->view)) continue;
        for (const LinearKernel* packed : {static_cast<const LinearKernel*>(nullptr), &k}) {
          if (packed && !k.pack) continue;
          const Copies one(*weight, 1, packed), many(*weight, static_cast<int>(kMemoryBytes / weight->bytes() + 2), packed);
          for (int threads = 1; threads <= 2; ++threads) {
            for (const Copies* c : {&one, &many}) {
              if (what == "gemm") continue;
              const double read = read_speed(*c, weight->bytes(), threads);
              for (const int64_t tokens : {1, 2, 4, 8, 16}) measure(k, *c, weight->bytes(), s, tokens, threads, read);
            }
            if (what == "gemv" || s.out > 40000) continue;
            for (const int64_t tokens : {64, 512}) measure(k, one, weight->bytes(), s, tokens, threads, 0);
          }
        }
      }
    }
  }
}
