// A team of threads that lives as long as the device. One job at a time; the caller is thread 0.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace datong {

// A half-open range of work.
struct Range {
  int64_t begin, end;
};

// What one thread of the team sees while a job runs.
class Team {
 public:
  // barrier: null for a team of one.
  Team(int index, int size, class Barrier* barrier) : index_(index), size_(size), barrier_(barrier) {}
  int index() const { return index_; }
  int size() const { return size_; }

  // Wait until all threads of the team are here. All threads must call it the same number of times.
  void barrier();

  // This thread's share of [0, n), cut at multiples of `multiple`; shares differ by at most one multiple.
  Range share(int64_t n, int64_t multiple = 1) const;

 private:
  int index_, size_;
  Barrier* barrier_;
};

// Spins for a while, then sleeps in the kernel: steps are short, but a machine may have fewer free cores than threads.
class Barrier {
 public:
  Barrier(int size, int spins) : size_(size), spins_(spins) {}
  void wait();

 private:
  const int size_, spins_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
};

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // >= 1
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // job(team) on every thread; returns when all are done. `job` must not throw. Calls from several threads queue up.
  void run(const std::function<void(Team&)>& job);

 private:
  void work(int index);

  const int size_, spins_;
  Barrier barrier_;
  std::mutex busy_;
  const std::function<void(Team&)>* job_ = nullptr;
  alignas(64) std::atomic<uint32_t> started_{0};  // generation; workers sleep on it
  alignas(64) std::atomic<int> running_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

// Processors that this process may run on, one per physical core.
int default_thread_count();

}  // namespace datong
