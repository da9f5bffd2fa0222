// What the C++ tests need: CHECK, random arrays, guarded arrays. No framework: a test is a main() that returns
// datong::testing::result().
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

namespace datong::testing {

inline int failures = 0;

inline int result() {
  if (failures) std::fprintf(stderr, "%d checks failed\n", failures);
  return failures ? 1 : 0;
}

#define CHECK(condition, ...)                                                          \
  do {                                                                                 \
    if (!(condition)) {                                                                \
      ++::datong::testing::failures;                                                   \
      std::fprintf(stderr, "%s:%d: %s is false:", __FILE__, __LINE__, #condition);     \
      std::fprintf(stderr, " " __VA_ARGS__);                                           \
      std::fprintf(stderr, "\n");                                                      \
    }                                                                                  \
  } while (0)

// n values of a normal distribution; the same seed gives the same values.
inline std::vector<float> random_floats(int64_t n, uint32_t seed, float scale = 1.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = normal(engine);
  return v;
}

// n floats between two guards. `intact()` says whether nobody wrote outside.
class Guarded {
 public:
  explicit Guarded(int64_t n) : n_(n), bytes_(static_cast<size_t>(n) * 4 + 2 * kGuard, kFill) {}
  float* data() { return reinterpret_cast<float*>(bytes_.data() + kGuard); }
  float operator[](int64_t i) { return data()[i]; }
  bool intact() const {
    for (size_t i = 0; i < kGuard; ++i)
      if (bytes_[i] != kFill || bytes_[bytes_.size() - 1 - i] != kFill) return false;
    return true;
  }
  int64_t size() const { return n_; }

 private:
  static constexpr size_t kGuard = 256;  // bytes; four widest vectors
  static constexpr uint8_t kFill = 0xA5;
  int64_t n_;
  std::vector<uint8_t> bytes_;
};

// Normalised mean square error sum((a-b)^2) / sum(b^2), the measure of spec/tolerance.py. NaN anywhere gives NaN, so
// compare with `<=`, which is then false.
inline double nmse(const float* a, const float* b, int64_t n) {
  double error = 0, power = 0;
  for (int64_t i = 0; i < n; ++i) {
    error += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
    power += double(b[i]) * b[i];
  }
  return power > 0 ? error / power : error;
}

inline double worst(const float* a, const float* b, int64_t n) {
  double w = 0;
  for (int64_t i = 0; i < n; ++i) {
    double d = std::fabs(double(a[i]) - b[i]);
    if (!(d <= w)) w = d;  // also takes a NaN
  }
  return w;
}

}  // namespace datong::testing
