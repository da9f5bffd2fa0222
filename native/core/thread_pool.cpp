#include "core/thread_pool.h"

#include <cstdio>
#include <set>
#include <utility>

#ifdef __linux__
#include <sched.h>
#endif

namespace datong {
namespace {

// About 0.2 ms on a 3 GHz core, a pause being some 50 cycles: longer than a phase takes, and than the engine needs between
// two steps. With more threads than processors nobody spins: the one that is waited for needs the processor.
constexpr int kSpins = 10000;

void pause() {
#if DATONG_X86
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The parts of ThreadPool::state_.
constexpr uint64_t kTaken = 0xffff;
int taken(uint64_t state) { return static_cast<int>(state & kTaken); }
int chunks(uint64_t state) { return static_cast<int>(state >> 16 & kTaken); }
uint64_t next_phase(uint64_t state, int chunks) {
  return ((state >> 32) + 1) << 32 | static_cast<uint64_t>(chunks) << 16;
}

// Processors that this process may run on.
int processors() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

Range piece_of(int64_t n, int64_t multiple, int64_t pieces, int64_t index) {
  const int64_t units = (n + multiple - 1) / multiple, each = units / pieces, rest = units % pieces;
  const int64_t first = each * index + (index < rest ? index : rest);
  const int64_t last = first + each + (index < rest ? 1 : 0);
  return {first * multiple < n ? first * multiple : n, last * multiple < n ? last * multiple : n};
}

ThreadPool::ThreadPool(int threads) : size_(threads), spins_(threads <= processors() ? kSpins : 0) {
  for (int i = 1; i < threads; ++i) threads_.emplace_back([this, i] { serve(i, false); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  bell_.fetch_add(1);
  bell_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void ThreadPool::run(Job& job) {
  std::lock_guard<std::mutex> lock(busy_);
  if (size_ == 1) {
    while (const int n = job.open(0))
      for (int i = 0; i < n; ++i) job.chunk(i, 0);
    return;
  }
  job_ = &job;
  open(0, state_.load(std::memory_order_acquire));
  serve(0, true);
}

// Publishes the phase after `state`. The sleepers' side of this is wait_change: whoever does not see the new state has set
// asleep_ before we look at it.
void ThreadPool::open(int thread, uint64_t state) {
  const int n = job_->open(thread);
  done_.store(0, std::memory_order_relaxed);
  state_.store(next_phase(state, n), std::memory_order_seq_cst);
  if (asleep_.load(std::memory_order_seq_cst) && asleep_.exchange(false)) {
    bell_.fetch_add(1);
    bell_.notify_all();
  }
}

// The caller stays until the job is done, the others until the pool ends.
void ThreadPool::serve(int thread, bool caller) {
  for (;;) {
    uint64_t state = state_.load(std::memory_order_acquire);
    if (taken(state) < chunks(state)) {
      if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) continue;
      job_->chunk(taken(state), thread);
      if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == chunks(state)) open(thread, state);
    } else if (caller && chunks(state) == 0) {
      return;
    } else if (stop_.load(std::memory_order_relaxed)) {
      return;
    } else {
      wait_change(state);
    }
  }
}

// Returns when state_ may differ from `state`.
void ThreadPool::wait_change(uint64_t state) {
  for (int i = 0; i < spins_; ++i) {
    if (state_.load(std::memory_order_acquire) != state) return;
    pause();
  }
  const uint32_t bell = bell_.load();
  asleep_.store(true, std::memory_order_seq_cst);
  if (state_.load(std::memory_order_seq_cst) == state && !stop_.load()) bell_.wait(bell);
}

int default_thread_count() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    std::set<std::pair<int, int>> cores;  // (package, core): two hyperthreads of one core count once
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &set)) continue;
      auto read = [cpu](const char* name, int otherwise) {
        char path[96];
        std::snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/%s", cpu, name);
        int value = otherwise;
        if (std::FILE* file = std::fopen(path, "r")) {
          if (std::fscanf(file, "%d", &value) != 1) value = otherwise;
          std::fclose(file);
        }
        return value;
      };
      cores.emplace(read("physical_package_id", 0), read("core_id", cpu));
    }
    if (!cores.empty()) return static_cast<int>(cores.size());
  }
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n ? static_cast<int>(n) : 1;
}

}  // namespace datong
