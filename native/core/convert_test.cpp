// f16: all 65536 values go to f32 and back; rounding at the edges. bf16: rounding, NaN.
#include "core/convert.h"

#include "testing/check.h"

using namespace datong;

int main() {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float f = f16_to_f32(static_cast<uint16_t>(h));
    const uint16_t back = f32_to_f16(f);
    const bool nan = (h & 0x7fff) > 0x7c00;
    CHECK(nan ? std::isnan(f) && (back & 0x7fff) > 0x7c00 : back == h, "%04x -> %g -> %04x", h, f, back);
    if (nan || (h & 0x7c00) == 0x7c00) continue;
    // the halfway point to the next value rounds to the even one
    const float next = f16_to_f32(static_cast<uint16_t>(h + 1));
    if (std::isinf(next)) continue;
    const uint16_t middle = f32_to_f16((f + next) / 2);
    if (h != 0x7fff) CHECK(middle == (h & 1 ? h + 1 : h), "between %04x and its neighbour: %04x", h, middle);
  }
  CHECK(f16_to_f32(0x3c00) == 1.0f && f16_to_f32(0xc000) == -2.0f && f16_to_f32(0x0001) == std::ldexp(1.0f, -24));
  CHECK(f32_to_f16(65519.0f) == 0x7bff && f32_to_f16(65520.0f) == 0x7c00 && f32_to_f16(1e-10f) == 0);
  CHECK(f32_to_bf16(1.0f) == 0x3f80 && f32_to_bf16(bits_to_f32(0x3f808000)) == 0x3f80);
  CHECK(f32_to_bf16(bits_to_f32(0x3f818000)) == 0x3f82 && f32_to_bf16(bits_to_f32(0x3f808001)) == 0x3f81);
  CHECK(std::isnan(bf16_to_f32(f32_to_bf16(bits_to_f32(0x7f800001)))));
  CHECK(bf16_to_f32(0xc040) == -3.0f);
  return testing::result();
}
