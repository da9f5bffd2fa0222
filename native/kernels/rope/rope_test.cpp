// Each variant against _ref: odd halves, partial rotation, both pairings, in place.
#include "kernels/rope/rope.h"

#include "testing/check.h"

using namespace datong;
using namespace datong::testing;

int main() {
  // a quarter turn: (1, 2) -> (-2, 1); the rest passes
  const float x[] = {1, 10, 2, 20, 5}, c[] = {0, 1}, s[] = {1, 0};
  float y[5];
  rope_ref({x, c, s, y, 1, 1, 5, 2, false});
  CHECK(y[0] == -2 && y[2] == 1 && y[1] == 10 && y[3] == 20 && y[4] == 5);
  rope_ref({x, c, s, y, 1, 1, 5, 2, true});
  CHECK(y[0] == -10 && y[1] == 1 && y[2] == 2 && y[3] == 20 && y[4] == 5);
  const CpuFeatures features = detect_cpu_features();
  for (const auto& variant : rope_variants()) {
    if (!variant.usable(features)) continue;
    for (int64_t half : {0, 1, 3, 4, 7, 8, 9, 16, 31, 32, 33, 64})
      for (int64_t rest : {0, 1, 6})
        for (bool interleaved : {false, true}) {
          const int64_t rows = 3, heads = 2, dim = 2 * half + rest, count = rows * heads * dim;
          if (dim == 0) continue;
          auto in = random_floats(count, 1);
          const auto cos = random_floats(rows * half, 2), sin = random_floats(rows * half, 3);
          std::vector<float> want(static_cast<size_t>(count));
          rope_ref({in.data(), cos.data(), sin.data(), want.data(), rows, heads, dim, half, interleaved});
          Guarded got(count);
          variant.kernel({in.data(), cos.data(), sin.data(), got.data(), rows, heads, dim, half, interleaved});
          CHECK(nmse(got.data(), want.data(), count) <= 1e-13, "%s half %lld", variant.name, static_cast<long long>(half));
          CHECK(got.intact(), "%s writes outside", variant.name);
          variant.kernel({in.data(), cos.data(), sin.data(), in.data(), rows, heads, dim, half, interleaved});
          CHECK(nmse(in.data(), want.data(), count) <= 1e-13, "%s in place", variant.name);
        }
  }
  return result();
}
