// Every chunk is done once, phases do not overlap, whoever opens one is alone, several callers queue up, sleeping threads
// wake, and threads that have lost their processor are not waited for.
#include "core/thread_pool.h"

#include <chrono>
#include <functional>

#include "testing/check.h"

using namespace datong;

namespace {

// Phases of the given sizes; each chunk looks whether all of the phase before are done and none of the next begun.
class Phases : public Job {
 public:
  explicit Phases(std::vector<int> sizes) : sizes_(std::move(sizes)), hits_(sizes_.size()) {
    for (size_t i = 0; i < sizes_.size(); ++i) hits_[i] = std::vector<std::atomic<int>>(static_cast<size_t>(sizes_[i]));
  }
  int open(int) override {
    if (inside_.load() != 0) ++wrong;
    for (size_t i = 0; i < at_; ++i)
      for (auto& hit : hits_[i])
        if (hit != 1) ++wrong;
    return at_ < sizes_.size() ? sizes_[at_++] : 0;  // at_ is no atomic: TSan would see two threads here
  }
  void chunk(int index, int thread) override {
    ++inside_;
    if (thread < 0 || thread > 7) ++wrong;
    ++hits_[at_ - 1][static_cast<size_t>(index)];
    --inside_;
  }
  bool complete() {
    bool all = at_ == sizes_.size() && wrong == 0;
    for (auto& phase : hits_)
      for (auto& hit : phase) all = all && hit == 1;
    return all;
  }
  std::atomic<int> wrong{0};

 private:
  std::vector<int> sizes_;
  std::vector<std::vector<std::atomic<int>>> hits_;
  size_t at_ = 0;
  std::atomic<int> inside_{0};
};

void check_pieces() {
  for (int64_t n : {0, 1, 2, 7, 64, 1000})
    for (int64_t multiple : {1, 16})
      for (int64_t pieces : {1, 2, 3, 5, 40}) {
        int64_t end = 0;
        for (int64_t i = 0; i < pieces; ++i) {
          const Range r = piece_of(n, multiple, pieces, i);
          CHECK(r.begin == end && r.begin <= r.end, "pieces of %lld", static_cast<long long>(n));
          if (r.begin < r.end) CHECK(r.begin % multiple == 0, "piece begins at %lld", static_cast<long long>(r.begin));
          end = r.end;
        }
        CHECK(end == n, "%lld of %lld", static_cast<long long>(end), static_cast<long long>(n));
      }
}

void check_phases(int threads) {
  ThreadPool pool(threads);
  CHECK(pool.size() == threads);
  for (int round = 0; round < 20; ++round) {
    if (round % 7 == 3) std::this_thread::sleep_for(std::chrono::milliseconds(5));  // workers have gone to sleep by then
    Phases job({1, 2, 3, 100, 1, threads, 7, 2, 1000, 1});
    pool.run(job);
    CHECK(job.complete(), "%d threads, round %d, %d wrong", threads, round, job.wrong.load());
  }
  Phases empty({});
  pool.run(empty);
  CHECK(empty.complete());
  const auto many = [&pool] {
    for (int i = 0; i < 100; ++i) {
      Phases job({2, 3});
      pool.run(job);
      CHECK(job.complete(), "two callers");
    }
  };
  std::thread second(many);
  many();
  second.join();
}

// Chunk 0 is held until all others, of this and only this phase, are done: nobody waits for its thread.
class Held : public Job {
 public:
  int open(int) override { return phase_++ == 0 ? kChunks : 0; }
  void chunk(int index, int) override {
    if (index == 0)
      while (finished.load() < kChunks - 1) std::this_thread::yield();
    ++finished;
  }
  static constexpr int kChunks = 50;
  std::atomic<int> finished{0};

 private:
  int phase_ = 0;
};

}  // namespace

int main() {
  check_pieces();
  for (int threads : {1, 2, 3, 5}) check_phases(threads);
  ThreadPool two(2);
  Held job;
  two.run(job);
  CHECK(job.finished == Held::kChunks);
  CHECK(default_thread_count() >= 1);
  return testing::result();
}
