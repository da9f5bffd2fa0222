// f16 and bf16 to f32 and back, one value at a time. Internal linkage: safe to include in ISA files.
#pragma once

#include <stdint.h>
#include <string.h>

namespace datong {

static inline float bits_to_f32(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

static inline uint32_t f32_to_bits(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}

static inline float bf16_to_f32(uint16_t h) { return bits_to_f32(static_cast<uint32_t>(h) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
static inline uint16_t f32_to_bf16(float f) {
  const uint32_t bits = f32_to_bits(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

// Exact for all values: subnormals are scaled by a power of two, infinities and NaN keep their class.
static inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return bits_to_f32(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  if (rest >= 0x400u) return bits_to_f32(sign | ((rest << 13) + (112u << 23)));
  const float small = static_cast<float>(rest) * 5.9604644775390625e-8f;  // 2^-24
  return bits_to_f32(sign | f32_to_bits(small));
}

// Round to nearest, ties to even; above 65504 becomes infinity; NaN stays NaN.
static inline uint16_t f32_to_f16(float f) {
  const uint32_t bits = f32_to_bits(f);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
  if (rest < 0x38800000u) {                                              // below 2^-14: subnormal
    const float shifted = bits_to_f32(rest) + 0.5f;  // ulp of [0.5, 1) is 2^-24: the adder rounds for us
    return static_cast<uint16_t>(sign | (f32_to_bits(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = rest + 0xfffu + ((rest >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

}  // namespace datong
