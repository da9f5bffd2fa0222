// Against values in double precision; position 0; scale.
#include "kernels/rope_table/rope_table.h"

#include "testing/check.h"

using namespace datong;
using namespace datong::testing;

int main() {
  const int64_t positions[] = {0, 1, 17, 131071};
  const float freq[] = {1.0f, 0.1f, 1e-4f};
  Guarded cos(12), sin(12);
  rope_table_ref(positions, freq, 2.0f, cos.data(), sin.data(), 4, 3);
  for (int r = 0; r < 4; ++r)
    for (int i = 0; i < 3; ++i) {
      const double angle = static_cast<float>(positions[r]) * freq[i];  // rounded to f32, as in training
      CHECK(std::fabs(cos[r * 3 + i] - 2 * std::cos(angle)) < 3e-7, "cos %d %d: %g", r, i, cos[r * 3 + i]);
      CHECK(std::fabs(sin[r * 3 + i] - 2 * std::sin(angle)) < 3e-7, "sin %d %d: %g", r, i, sin[r * 3 + i]);
    }
  CHECK(cos.intact() && sin.intact());
  return result();
}
