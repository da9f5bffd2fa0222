// NEON: activations to int8, in the layout of linear_prepared.h. Included by one file per instruction set.
#pragma once

#include <arm_neon.h>
#include <string.h>

#include "kernels/linear/linear_outliers.h"

namespace datong {
namespace {

// Of a block: the largest |x|, and the largest outside its group. Compared as integers, so that a NaN is the largest and is
// not lost.
struct Tops {
  float top, rest;
};
template <bool kNibbles>
inline Tops block_tops(const float* x) {
  uint32x4_t v[8], g[2];  // g: one group to a lane
  for (int i = 0; i < 8; ++i) v[i] = vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + 4 * i)), vdupq_n_u32(0x7fffffffu));
  for (int h = 0; h < 2; ++h) {
    const uint32x4_t* w = v + 4 * h;
    if constexpr (kNibbles) {
      const uint32x4_t a = vmaxq_u32(w[0], w[1]), b = vmaxq_u32(w[2], w[3]);  // even, odd, even, odd of eight elements
      g[h] = vcombine_u32(vmax_u32(vget_low_u32(a), vget_high_u32(a)), vmax_u32(vget_low_u32(b), vget_high_u32(b)));
    } else {
      g[h] = vpmaxq_u32(vpmaxq_u32(w[0], w[1]), vpmaxq_u32(w[2], w[3]));
    }
  }
  uint32x4_t top = vmaxq_u32(g[0], g[1]), rest = vminq_u32(g[0], g[1]);
  const auto merge = [&](uint32x4_t top2, uint32x4_t rest2) {
    rest = vmaxq_u32(vmaxq_u32(rest, rest2), vminq_u32(top, top2));
    top = vmaxq_u32(top, top2);
  };
  merge(vrev64q_u32(top), vrev64q_u32(rest));
  merge(vextq_u32(top, top, 2), vextq_u32(rest, rest, 2));
  return {vgetq_lane_f32(vreinterpretq_f32_u32(top), 0), vgetq_lane_f32(vreinterpretq_f32_u32(rest), 0)};
}

struct Quantised {
  int8x16_t q[2];  // plain order
  float d;
  int32_t sum[2];  // of n of each half
};

inline Quantised quantise(const float* x, float top) {
  const float inverse = top > kTiny ? 127.0f / top : 0.0f;
  Quantised n;
  for (int h = 0; h < 2; ++h) {
    int32x4_t v[4];
    for (int i = 0; i < 4; ++i) v[i] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 16 * h + 4 * i), inverse));
    n.sum[h] = vaddvq_s32(vaddq_s32(vaddq_s32(v[0], v[1]), vaddq_s32(v[2], v[3])));
    const int16x8_t low = vcombine_s16(vqmovn_s32(v[0]), vqmovn_s32(v[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(v[2]), vqmovn_s32(v[3]));
    n.q[h] = vcombine_s8(vqmovn_s16(low), vqmovn_s16(high));
  }
  n.d = top <= kTiny ? 0.0f : top / 127.0f;  // a NaN passes
  return n;
}

inline int32_t minus_times(int32_t sum, uint32_t factor) {  // unsigned: the sums of an infinite block are not small
  return static_cast<int32_t>(0u - factor * static_cast<uint32_t>(sum));
}

template <bool kNibbles>
inline void store_block(const Quantised& n, int64_t b, const PreparedLayout& layout, uint8_t* out) {
  const int32_t all = static_cast<int32_t>(static_cast<uint32_t>(n.sum[0]) + static_cast<uint32_t>(n.sum[1]));
  reinterpret_cast<float*>(out + layout.scale)[b] = n.d;
  reinterpret_cast<float*>(out + layout.sums)[b] = n.d * static_cast<float>(all);
  int32_t* bias = reinterpret_cast<int32_t*>(out + layout.bias);
  if (kNibbles) {
    bias[b] = minus_times(all, 8);
    int8_t* p = reinterpret_cast<int8_t*>(out + b / 4 * 128 + b % 4 * 16);
    vst1q_s8(p, vuzp1q_s8(n.q[0], n.q[1]));
    vst1q_s8(p + 64, vuzp2q_s8(n.q[0], n.q[1]));
  } else {
    for (int h = 0; h < 2; ++h) bias[2 * b + h] = minus_times(n.sum[h], 128);
    for (int h = 0; h < 2; ++h) vst1q_s8(reinterpret_cast<int8_t*>(out + b * 32 + 16 * h), n.q[h]);
  }
}

template <bool kNibbles>
void prepare_token(const float* x, const PreparedLayout& layout, uint8_t* out) {
  memset(out + layout.scale, 0, static_cast<size_t>(layout.group - layout.scale));
  memset(out + layout.group, kNoGroup, static_cast<size_t>(layout.size - layout.group));
  float *const tops = reinterpret_cast<float*>(out + layout.scale), *const rests = reinterpret_cast<float*>(out + layout.sums);
  for (int64_t b = 0; b < layout.blocks; ++b) {  // in the places of d and sums, until these come
    const Tops t = block_tops<kNibbles>(x + b * kBlock);
    tops[b] = t.top;
    rests[b] = t.rest;
  }
  const float limit = outlier_limit(tops, layout.blocks);
  for (int64_t b = 0; b < layout.blocks; ++b, x += kBlock) {
    if (!has_outlier(tops[b], rests[b], limit)) {
      store_block<kNibbles>(quantise(x, tops[b]), b, layout, out);
      continue;
    }
    OutlierBlock o;
    quantise_outlier(x, tops[b], rests[b], kNibbles, o);
    memcpy(out + layout.extra + group_at(kNibbles, b, o.group), o.e, 4);
    out[layout.group + b] = o.group;
    store_block<kNibbles>({{vld1q_s8(o.q), vld1q_s8(o.q + 16)}, o.d, {o.first, o.second}}, b, layout, out);
  }
}

template <bool kNibbles>
void prepare(const float* x, int64_t x_stride, int64_t in, int64_t row_begin, int64_t row_end, void* prepared) {
  const PreparedLayout layout(in, kNibbles);
  for (int64_t t = row_begin; t < row_end; ++t)
    prepare_token<kNibbles>(x + t * x_stride, layout, static_cast<uint8_t*>(prepared) + t * layout.size);
}

}  // namespace
}  // namespace datong
