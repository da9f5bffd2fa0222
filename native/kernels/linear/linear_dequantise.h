// Scalar values of stored weights, for the reference kernels and the embedding.
#pragma once

#include "kernels/linear/linear_formats.h"

namespace datong {
namespace {

inline float bits_to_float(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

inline uint16_t load_u16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }

inline float bf16_at(const uint8_t* p) { return bits_to_float(static_cast<uint32_t>(load_u16(p)) << 16); }

// IEEE half: subnormals by a float subtraction, the rest by moving the exponent.
inline float f16_at(const uint8_t* p) {
  const uint32_t h = load_u16(p), sign = (h & 0x8000u) << 16, rest = (h & 0x7fffu) << 13;
  if ((h & 0x7c00u) == 0x7c00u) return bits_to_float(sign | rest | 0x7f800000u);  // infinity, NaN
  if ((h & 0x7c00u) != 0) return bits_to_float(sign | (rest + (112u << 23)));
  const float tiny = bits_to_float(rest + (113u << 23)) - bits_to_float(113u << 23);
  return sign ? -tiny : tiny;
}

inline float f32_at(const uint8_t* p) {
  float f;
  memcpy(&f, p, 4);
  return f;
}

// A scale or min of block b of one row, both levels multiplied.
template <Fmt F>
inline float level_at(const uint8_t* one, const uint8_t* super, int64_t b) {
  if constexpr (!Traits<F>::two_level) return f16_at(one + 2 * b);
  constexpr int64_t kPerSuper = Traits<F>::super / Traits<F>::block;
  const int k = F == Fmt::q6_k ? static_cast<int8_t>(one[b]) : one[b];
  return f16_at(super + b / kPerSuper * 2) * static_cast<float>(k);
}

// Codes of one row as 16-bit integers.
template <Fmt F>
inline void unpack_codes(const uint8_t* row, int64_t in, int16_t* out) {
  if constexpr (Traits<F>::nibbles) {
    for (int64_t i = 0; i < in / 2; ++i) {
      const int lo = row[i] & 15, hi = row[i] >> 4;
      out[2 * i] = static_cast<int16_t>(Traits<F>::is_signed ? (lo ^ 8) - 8 : lo);
      out[2 * i + 1] = static_cast<int16_t>(Traits<F>::is_signed ? (hi ^ 8) - 8 : hi);
    }
  } else {
    for (int64_t i = 0; i < in; ++i) out[i] = Traits<F>::is_signed ? static_cast<int8_t>(row[i]) : row[i];
  }
}

}  // namespace
}  // namespace datong
