// Weights are fetched before they are needed. Decoding waits for memory, which rests while threads norm, attend or wait for
// each other: then each thread fetches the beginning of its share of the next matrix into its L2 cache.
#pragma once

#include <cstdint>
#include <vector>

#include "core/thread_pool.h"

namespace datong {

// Bytes of a mapped file.
struct Stretch {
  const uint8_t* begin;
  int64_t bytes;
};

// Of one thread, in one step.
class Ahead : public Idle {
 public:
  // `stretches` of all tasks in order, those of task i from first[i] on.
  Ahead(const std::vector<Stretch>& stretches, const std::vector<size_t>& first) : stretches_(stretches), first_(first) {}

  // Task i is done: what is fetched now is for those after it.
  void done(size_t task) {
    if (first_[task + 1] > next_) {
      next_ = first_[task + 1];
      offset_ = 0;
    }
    if (first_[task + 1] > first_[task]) left_ = kMost;
    lines(kAtOnce);
  }

  void some() override { lines(2); }

 private:
  static constexpr int64_t kMost = 128 << 10;  // bytes, an eighth of a Zen 4 or Zen 5 core's L2
  static constexpr int64_t kAtOnce = 32;       // lines, about what a core has in flight

  void lines(int64_t n) {
    for (; n > 0 && left_ > 0 && next_ < stretches_.size(); --n) {
      const Stretch& s = stretches_[next_];
      __builtin_prefetch(s.begin + offset_, 0, 2);
      left_ -= 64;
      offset_ += 64;
      if (offset_ < s.bytes) continue;
      ++next_;
      offset_ = 0;
    }
  }

  const std::vector<Stretch>& stretches_;
  const std::vector<size_t>& first_;
  size_t next_ = 0;
  int64_t offset_ = 0, left_ = kMost;
};

}  // namespace datong
