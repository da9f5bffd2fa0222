// Every index is done once, barriers separate phases, several callers queue up, sleeping threads wake.
#include "core/thread_pool.h"

#include <chrono>

#include "testing/check.h"

using namespace datong;

int main() {
  for (int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    for (int64_t n : {0, 1, 2, 7, 64, 1000}) {
      for (int64_t multiple : {1, 16}) {
        std::vector<std::atomic<int>> hits(static_cast<size_t>(n));
        pool.run([&](Team& team) {
          const Range r = team.share(n, multiple);
          if (r.begin < r.end) CHECK(r.begin % multiple == 0, "share begins at %lld", static_cast<long long>(r.begin));
          for (int64_t i = r.begin; i < r.end; ++i) ++hits[static_cast<size_t>(i)];
        });
        for (int64_t i = 0; i < n; ++i) CHECK(hits[static_cast<size_t>(i)] == 1, "index %lld", static_cast<long long>(i));
      }
    }
    std::vector<int> phase(static_cast<size_t>(threads), 0);
    std::atomic<int> early{0};
    for (int job = 0; job < 6; ++job) {
      if (job == 3) std::this_thread::sleep_for(std::chrono::milliseconds(5));  // workers have gone to sleep by then
      pool.run([&](Team& team) {
        for (int step = 0; step < 25; ++step) {
          ++phase[static_cast<size_t>(team.index())];
          team.barrier();
          for (int other : phase)
            if (other != phase[static_cast<size_t>(team.index())]) ++early;
          team.barrier();
        }
      });
    }
    CHECK(early == 0 && phase[0] == 150, "%d early, phase %d", early.load(), phase[0]);
    std::atomic<int> total{0};
    std::thread second([&] {
      for (int i = 0; i < 100; ++i) pool.run([&](Team&) { ++total; });
    });
    for (int i = 0; i < 100; ++i) pool.run([&](Team&) { ++total; });
    second.join();
    CHECK(total == 200 * threads, "%d", total.load());
  }
  CHECK(default_thread_count() >= 1);
  return testing::result();
}
