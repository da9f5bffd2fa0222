// embedding_row against the formula of datong/spec/formats.py.
#include "kernels/embedding/embedding.h"

#include "kernels/linear/linear_test_weights.h"
#include "testing/check.h"

using namespace datong;
using namespace datong::testing;

int main() {
  for (const char* format : kFormats) {
    const bool plain = TestWeight(format, 1, 256, 1).view.block == 0, k = format[0] == 'q' && format[3] == 'k';
    for (const int64_t in : {int64_t{plain ? 37 : k ? 256 : 32}, int64_t{k ? 768 : 576}}) {
      const TestWeight weight(format, 5, in, 3);
      for (const int64_t row : {0, 2, 4}) {
        Guarded y(in);
        embedding_row(weight.view, row, y.data());
        CHECK(y.intact(), "%s wrote outside y", format);
        for (int64_t i = 0; i < in; ++i) {
          // One rounding of the scale (two levels), of the product, of the sum; plain formats have none.
          const double want = weight.at(row, i), error = std::fabs(y[i] - want);
          CHECK(error <= (plain ? 0 : 4e-7 * (std::fabs(want) + (weight.view.has_min ? 1 : 0))),
                "%s row %lld at %lld: %g, wanted %g", format, (long long)row, (long long)i, y[i], want);
        }
      }
    }
  }
  return result();
}
