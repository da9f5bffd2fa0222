// A team of threads that lives as long as the device and runs one job at a time; the caller is thread 0.
//
// A job is a row of phases, a phase a number of chunks. Threads take chunks until there are none; whoever finishes the last
// one opens the next phase. So a phase ends when its work is done, not when every thread has come by: a thread that lost
// its processor to another program holds up nobody unless it lost it in the middle of a chunk, and joins in wherever the
// others are when it comes back.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace datong {

// A half-open range of work.
struct Range {
  int64_t begin, end;
};

// Piece `index` of [0, n) cut into `pieces` at multiples of `multiple`; pieces differ by at most one multiple.
Range piece_of(int64_t n, int64_t multiple, int64_t pieces, int64_t index);

class Job {
 public:
  // Begins the next phase and returns how many chunks it has, at most kMostChunks; 0: the job is done. What it does before
  // it returns is done by this thread alone: all earlier chunks are finished, the next ones not begun.
  virtual int open(int thread) = 0;

  // The chunks of a phase run in any order, on any thread (0 .. size of the pool - 1), each once. Must not throw.
  virtual void chunk(int index, int thread) = 0;

  static constexpr int kMostChunks = (1 << 16) - 1;

 protected:
  ~Job() = default;
};

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // >= 1
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Runs all phases and returns. Calls from several threads queue up.
  void run(Job& job);

 private:
  void serve(int thread, bool caller);
  void open(int thread, uint64_t state);
  void wait_change(uint64_t state);

  const int size_, spins_;
  std::mutex busy_;
  Job* job_ = nullptr;

  // All that a thread must know to take a chunk, in one word: number of the phase (32 bits), its chunks (16), chunks taken
  // (16). A thread that took one knows that the phase, and what it reads, stay until it is done.
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int> done_{0};  // chunks of the phase
  alignas(64) std::atomic<bool> asleep_{false};  // someone may sleep at bell_
  std::atomic<uint32_t> bell_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

// Processors that this process may run on, one per physical core.
int default_thread_count();

}  // namespace datong
