// Block formats with NEON: int8 activations, four rows x T tokens at once, the vector along the row. Included by one file
// per instruction set, which defines
//
//   Dot::of(a, b)          int8x16 -> int32x4: the 16 products added up in some way to four sums
//   Dot::of(a, b, c, d)    of(a, b) + of(c, d)
//
// Codes become signed bytes: i4 are used as 16 * c (the high nibble stays where it is, the low one is shifted up), which
// the block's sum takes back; u8 as u - 128, which `bias` of linear_prepared.h takes back. So no product of two is larger
// than 128 * 127, and a sum of two fits in 16 bits. The sums of a block are added up as integers, of four rows together:
// so a block of four rows is one vector, whose float sums go as linear_formats.h says.
#pragma once

#include "kernels/linear/linear_block_neon_prepare.h"
#include "kernels/linear/linear_formats.h"
#include "kernels/linear/linear_list.h"

namespace datong {
namespace {

#define UNROLL _Pragma("GCC unroll 32")

constexpr int64_t kAhead = 8192;  // bytes of codes; as in linear_block_avx512_gemv.h

template <Fmt F>
constexpr bool kHasBias = !Traits<F>::nibbles && !Traits<F>::is_signed;
template <Fmt F>
constexpr int64_t kBlockBytes = Traits<F>::block / (Traits<F>::nibbles ? 2 : 1);

inline float half_at(const uint8_t* p) {
  uint16_t h;
  memcpy(&h, p, 2);
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
}

// Values of blocks [b, b + 4) of one row (b a multiple of 4), of which `count` exist, the others 0: a scale or min, both
// levels multiplied.
template <Fmt F, bool kFull>
inline float32x4_t levels4(const uint8_t* one, const uint8_t* super, int64_t b, int64_t count) {
  if constexpr (!Traits<F>::two_level) {
    uint8_t copy[8] = {};
    if (!kFull) memcpy(copy, one + 2 * b, static_cast<size_t>(2 * count));
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(kFull ? one + 2 * b : copy)));
  } else {  // whole super blocks: 4 blocks always exist
    uint32_t four;
    memcpy(&four, one + b, 4);
    const uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(four));
    const float32x4_t k = F == Fmt::q6_k
                              ? vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(bytes)))))
                              : vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
    return vmulq_n_f32(k, half_at(super + b / (Traits<F>::super / Traits<F>::block) * 2));
  }
}

struct Token {
  const int8_t *codes, *extra;
  const float *scale, *sums;
  const int32_t* bias;
  const uint8_t* group;
  Token() = default;
  Token(const uint8_t* p, const PreparedLayout& l)
      : codes(reinterpret_cast<const int8_t*>(p)), extra(codes + l.extra), scale(floats_at(p, l.scale)), sums(floats_at(p, l.sums)),
        bias(ints_at(p, l.bias)), group(p + l.group) {}
};

// As a matrix.
inline void transpose4(float32x4_t v[4]) {
  const float32x4_t a = vtrn1q_f32(v[0], v[1]), b = vtrn2q_f32(v[0], v[1]);
  const float32x4_t c = vtrn1q_f32(v[2], v[3]), d = vtrn2q_f32(v[2], v[3]);
  v[0] = vcombine_f32(vget_low_f32(a), vget_low_f32(c));
  v[1] = vcombine_f32(vget_low_f32(b), vget_low_f32(d));
  v[2] = vcombine_f32(vget_high_f32(a), vget_high_f32(c));
  v[3] = vcombine_f32(vget_high_f32(b), vget_high_f32(d));
}

// Block b of a row as signed bytes: nibbles: even elements, odd ones; bytes: first half, second half (q6_k has one).
struct Codes {
  int8x16_t v[2];
};
template <Fmt F>
inline Codes unpack(const uint8_t* p) {
  const uint8x16_t a = vld1q_u8(p);
  if constexpr (Traits<F>::nibbles && Traits<F>::is_signed) {
    return {{vreinterpretq_s8_u8(vshlq_n_u8(a, 4)), vreinterpretq_s8_u8(vandq_u8(a, vdupq_n_u8(0xf0)))}};
  } else if constexpr (Traits<F>::nibbles) {
    return {{vreinterpretq_s8_u8(vandq_u8(a, vdupq_n_u8(15))), vreinterpretq_s8_u8(vshrq_n_u8(a, 4))}};
  } else {
    const uint8x16_t flip = vdupq_n_u8(Traits<F>::is_signed ? 0 : 0x80), b = Traits<F>::block == 16 ? a : vld1q_u8(p + 16);
    return {{vreinterpretq_s8_u8(veorq_u8(a, flip)), vreinterpretq_s8_u8(veorq_u8(b, flip))}};
  }
}

// Products of weight block b's codes with bytes of activations.
template <Fmt F>
inline int32x4_t products(const Codes& w, const int8_t* x, int64_t b) {
  if constexpr (Traits<F>::block == 16) return Dot::of(w.v[0], vld1q_s8(x + b * 16));
  const int8_t* p = Traits<F>::nibbles ? x + b / 4 * 128 + b % 4 * 16 : x + b * 32;
  return Dot::of(w.v[0], vld1q_s8(p), w.v[1], vld1q_s8(p + (Traits<F>::nibbles ? 64 : 16)));
}

template <Fmt F>
inline int32x4_t block_dot(const Codes& w, const Token& x, int64_t b) {
  int32x4_t d = products<F>(w, x.codes, b);
  if (x.group[Traits<F>::block == 16 ? b / 2 : b] != kNoGroup) [[unlikely]] d = vaddq_s32(d, vshlq_n_s32(products<F>(w, x.extra, b), 6));
  if constexpr (kHasBias<F>) d = vsubq_s32(d, vcombine_s32(vld1_s32(x.bias + 2 * b), vdup_n_s32(0)));
  return d;
}

// v[r]: four sums of row r -> lane r: the sum of all.
template <Fmt F>
inline int32x4_t add_up(const int32x4_t v[4]) {
  const int32x4_t sums = vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]));
  return Traits<F>::nibbles && Traits<F>::is_signed ? vshrq_n_s32(sums, 4) : sums;
}

// Four blocks from b on, or the last `count` of them. acc[t][i], lane r: blocks of row r with number % 4 == i.
template <Fmt F, int T, bool kFull>
inline void four_blocks(float32x4_t acc[T][4], const FourRows<F>& w, int64_t ahead, const Token x[T], int64_t b,
                        int64_t count) {
  float32x4_t scale[4], min[4];
  UNROLL for (int r = 0; r < 4; ++r) {
    scale[r] = levels4<F, kFull>(w.scale[r], w.super_scale[r], b, count);
    if constexpr (Traits<F>::has_min) min[r] = levels4<F, kFull>(w.min[r], w.super_min[r], b, count);
  }
  transpose4(scale);
  if constexpr (Traits<F>::has_min) transpose4(min);
  if (kFull) {  // the rows that come next
    const uint8_t* next = w.codes[0] + ahead + b * kBlockBytes<F> * 4;
    UNROLL for (int64_t i = 0; i < 16 * kBlockBytes<F>; i += 64) __builtin_prefetch(next + i, 0, 2);
  }
  UNROLL for (int64_t i = 0; i < 4; ++i) {
    if (!kFull && i >= count) continue;
    int32x4_t d[T][4];
    UNROLL for (int r = 0; r < 4; ++r) {
      const Codes codes = unpack<F>(w.codes[r] + (b + i) * kBlockBytes<F>);
      UNROLL for (int t = 0; t < T; ++t) d[t][r] = block_dot<F>(codes, x[t], b + i);
    }
    UNROLL for (int t = 0; t < T; ++t) {
      const float32x4_t both = vmulq_n_f32(scale[i], x[t].scale[Traits<F>::block == 16 ? (b + i) / 2 : b + i]);
      acc[t][i] = vfmaq_f32(acc[t][i], vcvtq_f32_s32(add_up<F>(d[t])), both);
      if constexpr (Traits<F>::has_min) {
        const float32x4_t sums = vdupq_n_f32(x[t].sums[b + i]);
        acc[t][i] = Traits<F>::min_sign > 0 ? vfmaq_f32(acc[t][i], min[i], sums) : vfmsq_f32(acc[t][i], min[i], sums);
      }
    }
  }
}

// Rows [row, row + count), at most four, for T tokens from t0 on.
template <Fmt F, int T>
[[gnu::noinline]] void tile(const Matrix<F>& w, int64_t row, int64_t count, const uint8_t* prepared,
                            const PreparedLayout& layout, int64_t t0, float* y, int64_t y_stride, const Epilogue& e) {
  Token x[T];
  UNROLL for (int t = 0; t < T; ++t) x[t] = Token(prepared + (t0 + t) * layout.size, layout);
  const FourRows<F> four(w, row, count);
  const int64_t ahead = 4 * w.codes_stride > kAhead ? 4 * w.codes_stride : kAhead;
  float32x4_t acc[T][4];
  UNROLL for (int t = 0; t < T; ++t) {
    UNROLL for (int i = 0; i < 4; ++i) acc[t][i] = vdupq_n_f32(0);
  }
  int64_t b = 0;
  for (; b + 4 <= w.blocks; b += 4) four_blocks<F, T, true>(acc, four, ahead, x, b, 4);
  if (b < w.blocks) four_blocks<F, T, false>(acc, four, ahead, x, b, w.blocks - b);
  UNROLL for (int t = 0; t < T; ++t) {
    float v[4];
    vst1q_f32(v, vaddq_f32(vaddq_f32(vaddq_f32(acc[t][0], acc[t][1]), acc[t][2]), acc[t][3]));
    for (int64_t r = 0; r < count; ++r) {
      const int64_t o = row + r;
      if (e.bias) v[r] += e.bias[o];
      if (e.residual) v[r] += e.residual[(t0 + t) * e.residual_stride + o];
      y[(t0 + t) * y_stride + o] = v[r];
    }
  }
}

template <Fmt F>
void rows(const Matrix<F>& w, int64_t row, int64_t count, const uint8_t* x, const PreparedLayout& layout, int64_t tokens,
          float* y, int64_t y_stride, const Epilogue& e) {
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4) tile<F, 4>(w, row, count, x, layout, t, y, y_stride, e);
  if (t + 2 <= tokens) {
    tile<F, 2>(w, row, count, x, layout, t, y, y_stride, e);
    t += 2;
  }
  if (t < tokens) tile<F, 1>(w, row, count, x, layout, t, y, y_stride, e);
}

// Tokens in blocks whose activations stay in half of a 512 KB L2 cache, that of Kunpeng 920 and of FT-2000+ per core.
constexpr int64_t kTokenBlockBytes = 256 * 1024;

template <Fmt F>
void run_rows(const WeightView& view, const float*, int64_t, const void* prepared, int64_t tokens, int64_t out_begin,
         int64_t out_end, float* y, int64_t y_stride, const Epilogue& e, void*) {
  const Matrix<F> w(view);
  const PreparedLayout layout(view.in, Traits<F>::nibbles);
  const int64_t fit = kTokenBlockBytes / layout.size, block = fit < 16 ? 16 : fit;
  for (int64_t t = 0; t < tokens; t += block) {
    const int64_t count = tokens - t < block ? tokens - t : block;
    const uint8_t* x = static_cast<const uint8_t*>(prepared) + t * layout.size;
    const Epilogue part{e.bias, e.residual ? e.residual + t * e.residual_stride : nullptr, e.residual_stride};
    float* to = y + t * y_stride;
    for (int64_t row = out_begin; row < out_end; row += 4)
      rows<F>(w, row, out_end - row < 4 ? out_end - row : 4, x, layout, count, to, y_stride, part);
  }
}

}  // namespace
}  // namespace datong
