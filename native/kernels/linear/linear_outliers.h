// Outliers of activations (docs/adr/0030), for all kernels that round activations to int8; and one block with an outlier,
// portably. Private to kernels/linear.
//
// A block with an outlier gives its four codes (the group: those that are multiplied and added up together) more bits, so
// that the others keep theirs. It has one if top, its largest |x|, exceeds rest, the largest outside the group, by more than
// kOutlier times the mean of top over the token's blocks:
//
//   d = max(rest / 127, top / 8191.5),  n = round(x / d),  in the group n = q + 64 e, elsewhere n = q;  q, e: i8
//
// Groups of a block: in byte order four elements that follow one another, in nibble order the even or the odd ones of eight.
#pragma once

#include "kernels/linear/linear_prepared.h"

namespace datong {
namespace {

constexpr float kOutlier = 1.5f;
constexpr uint8_t kNoGroup = 0xff;

// Element i, 0 to 3, of a group in its block.
inline int64_t element_of(bool nibbles, int64_t group, int64_t i) {
  return nibbles ? group / 2 * 8 + group % 2 + 2 * i : group * 4 + i;
}

// Where the four codes of block b's group lie among a token's codes, in bytes.
inline int64_t group_at(bool nibbles, int64_t b, int64_t group) {
  return nibbles ? b / 4 * 128 + b % 4 * 16 + group % 2 * 64 + group / 2 * 4 : b * kBlock + group * 4;
}

// By how much top must exceed rest.
inline float outlier_limit(const float* tops, int64_t blocks) {
  float lanes[4] = {0, 0, 0, 0};
  for (int64_t b = 0; b < blocks; ++b) lanes[b % 4] += tops[b];
  return kOutlier * (((lanes[0] + lanes[2]) + (lanes[1] + lanes[3])) / static_cast<float>(blocks));
}

// False for what is not finite.
inline bool has_outlier(float top, float rest, float limit) {
  return top > kTiny && top - rest > limit && top < __builtin_inff();
}

struct OutlierBlock {
  int8_t q[kBlock], e[4];  // q in plain order
  uint8_t group;
  float d;
  int32_t first, second;  // sum of n of each half
};

inline void quantise_outlier(const float* x, float top, float rest, bool nibbles, OutlierBlock& out) {
  const float a = rest / 127.0f, b = top / 8191.5f, c = 127.0f / rest, e = 8191.5f / top;
  const float inverse = c < e ? c : e;
  out.d = a > b ? a : b;
  int32_t sums[2] = {0, 0};
  int64_t largest = 0;
  for (int64_t i = 0; i < kBlock; ++i) {
    const auto n = static_cast<int32_t>(__builtin_rintf(x[i] * inverse));
    if (__builtin_fabsf(x[i]) == top) largest = i;
    sums[i / 16] += n;
    out.q[i] = static_cast<int8_t>(n);  // those outside the group fit
  }
  out.group = static_cast<uint8_t>(nibbles ? largest / 8 * 2 + largest % 2 : largest / 4);
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t at = element_of(nibbles, out.group, i);
    const auto n = static_cast<int32_t>(__builtin_rintf(x[at] * inverse));
    int32_t high = n > 127 || n < -127 ? (n + 32) >> 6 : 0;
    high = high > 127 ? 127 : high < -127 ? -127 : high;
    out.e[i] = static_cast<int8_t>(high);
    out.q[at] = static_cast<int8_t>(n - 64 * high);
  }
  out.first = sums[0];
  out.second = sums[1];
}

}  // namespace
}  // namespace datong
