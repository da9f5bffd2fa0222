// NEON: activations to int8, in the layout of linear_prepared.h. Included by one file per instruction set.
#pragma once

#include <arm_neon.h>
#include <string.h>

#include "kernels/linear/linear_prepared.h"

namespace datong {
namespace {

// Bit pattern of max|x| of 32 values. Compared as integers, a NaN is the largest and is not lost.
inline float max_abs32(const float* x) {
  uint32x4_t top = vdupq_n_u32(0);
  for (int i = 0; i < 8; ++i)
    top = vmaxq_u32(top, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + 4 * i)), vdupq_n_u32(0x7fffffffu)));
  const uint32_t bits = vmaxvq_u32(top);
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

inline int32_t minus_times(int32_t sum, uint32_t factor) {  // unsigned: the sums of an infinite block are not small
  return static_cast<int32_t>(0u - factor * static_cast<uint32_t>(sum));
}

template <bool kNibbles>
inline void prepare_block(const float* x, int64_t b, const PreparedLayout& layout, uint8_t* out) {
  const float top = max_abs32(x), inverse = top > kTiny ? 127.0f / top : 0.0f;
  int8x16_t q[2];  // plain order
  int32_t sum[2];
  for (int h = 0; h < 2; ++h) {
    int32x4_t v[4];
    for (int i = 0; i < 4; ++i) v[i] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 16 * h + 4 * i), inverse));
    sum[h] = vaddvq_s32(vaddq_s32(vaddq_s32(v[0], v[1]), vaddq_s32(v[2], v[3])));
    const int16x8_t low = vcombine_s16(vqmovn_s32(v[0]), vqmovn_s32(v[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(v[2]), vqmovn_s32(v[3]));
    q[h] = vcombine_s8(vqmovn_s16(low), vqmovn_s16(high));
  }
  const float d = top <= kTiny ? 0.0f : top / 127.0f;  // a NaN passes
  const int32_t all = static_cast<int32_t>(static_cast<uint32_t>(sum[0]) + static_cast<uint32_t>(sum[1]));
  reinterpret_cast<float*>(out + layout.scale)[b] = d;
  reinterpret_cast<float*>(out + layout.sums)[b] = d * static_cast<float>(all);
  int32_t* bias = reinterpret_cast<int32_t*>(out + layout.bias);
  if (kNibbles) {
    bias[b] = minus_times(all, 8);
    int8_t* p = reinterpret_cast<int8_t*>(out + b / 4 * 128 + b % 4 * 16);
    vst1q_s8(p, vuzp1q_s8(q[0], q[1]));
    vst1q_s8(p + 64, vuzp2q_s8(q[0], q[1]));
  } else {
    for (int h = 0; h < 2; ++h) bias[2 * b + h] = minus_times(sum[h], 128);
    for (int h = 0; h < 2; ++h) vst1q_s8(reinterpret_cast<int8_t*>(out + b * 32 + 16 * h), q[h]);
  }
}

template <bool kNibbles>
void prepare(const float* x, int64_t x_stride, int64_t in, int64_t row_begin, int64_t row_end, void* prepared) {
  const PreparedLayout layout(in, kNibbles);
  for (int64_t t = row_begin; t < row_end; ++t) {
    uint8_t* out = static_cast<uint8_t*>(prepared) + t * layout.size;
    memset(out + layout.scale, 0, static_cast<size_t>(layout.size - layout.scale));
    for (int64_t b = 0; b < layout.blocks; ++b) prepare_block<kNibbles>(x + t * x_stride + b * kBlock, b, layout, out);
  }
}

}  // namespace
}  // namespace datong
