// NEON with the dot product, many tokens: what linear_block_panel.h asks for. Included by one file only.
//
// SDOT by element multiplies four codes of each of four rows with one four of activations, which stay in registers: 16
// bytes of a token are four fours. Codes are signed bytes, u8 as u - 128.
#pragma once

#include "kernels/linear/linear_block_neon.h"
#include "kernels/linear/linear_block_panel.h"

namespace datong {
namespace {

struct NeonPanel {
  using Float = float32x4_t;
  using Int = int32x4_t;
  static constexpr int64_t kLanes = 4;
  static constexpr int kVectors = 2;
  template <Fmt F>
  static constexpr int kTokens = 4;  // 8 accumulators, 8 sums, 4 activations, 2 codes: 22 of 32 registers
  template <Fmt F>
  static constexpr int kPlanes = 1;
  template <Fmt F>
  static constexpr int kBias = !Traits<F>::nibbles && !Traits<F>::is_signed ? -1 : 0;

  static Float load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Float v) { vst1q_f32(p, v); }
  static void store_codes(uint8_t* p, Int v) { vst1q_u8(p, vreinterpretq_u8_s32(v)); }
  static Float splat(float f) { return vdupq_n_f32(f); }
  static Int splat_ints(int32_t i) { return vdupq_n_s32(i); }
  static Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
  static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static Float widen(Int v) { return vcvtq_f32_s32(v); }
  static Int add_ints(Int a, Int b) { return vaddq_s32(a, b); }
  static Int load_codes(const uint8_t* p, int64_t) { return vreinterpretq_s32_u8(vld1q_u8(p)); }  // a row has 16 bytes

  template <Fmt F>
  static Float levels(const uint8_t* one, const uint8_t* super, int64_t b, int64_t count) {
    return count == 4 ? levels4<F, true>(one, super, b, 4) : levels4<F, false>(one, super, b, count);
  }

  static void transpose(Float v[4]) { transpose4(v); }
  static void transpose(Int v[4]) {
    Float f[4];
    for (int k = 0; k < 4; ++k) f[k] = vreinterpretq_f32_s32(v[k]);
    transpose4(f);
    for (int k = 0; k < 4; ++k) v[k] = vreinterpretq_s32_f32(f[k]);
  }

  // Nibbles: even codes, odd ones.
  template <Fmt F>
  static void unpack(Int v, Int out[2]) {
    const uint8x16_t a = vreinterpretq_u8_s32(v);
    if constexpr (Traits<F>::nibbles) {
      const uint8x16_t eight = vdupq_n_u8(Traits<F>::is_signed ? 8 : 0);  // (n ^ 8) - 8: a nibble's sign
      const uint8x16_t even = vandq_u8(a, vdupq_n_u8(15)), odd = vshrq_n_u8(a, 4);
      out[0] = vreinterpretq_s32_u8(vsubq_u8(veorq_u8(even, eight), eight));
      out[1] = vreinterpretq_s32_u8(vsubq_u8(veorq_u8(odd, eight), eight));
    } else {
      out[0] = vreinterpretq_s32_u8(veorq_u8(a, vdupq_n_u8(Traits<F>::is_signed ? 0 : 0x80)));
    }
  }

  template <int T, int kLane>
  static void four(Int d[kVectors][T], const uint8_t* p, const int8x16_t a[T]) {
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const int8x16_t w = vreinterpretq_s8_u8(vld1q_u8(p + v * 16));
      UNROLL for (int t = 0; t < T; ++t) d[v][t] = vdotq_laneq_s32(d[v][t], w, a[t], kLane);
    }
  }

  template <Fmt F>
  static Int times_extra(const uint8_t* p, Int e) {
    return vshlq_n_s32(vdotq_s32(vdupq_n_s32(0), vreinterpretq_s8_u8(vld1q_u8(p)), vreinterpretq_s8_s32(e)), 6);
  }

  template <Fmt F, int T, int kFrom, int kCount>
  static void dots(Int d[kVectors][T], const uint8_t* codes, const uint8_t* const x[T], int64_t at) {
    constexpr int64_t kBytes = kPanelRows<NeonPanel> * 4;
    UNROLL for (int v = 0; v < kVectors; ++v) {
      UNROLL for (int t = 0; t < T; ++t) d[v][t] = vdupq_n_s32(0);
    }
    UNROLL for (int j = kFrom; j < kFrom + kCount; j += 4) {
      int8x16_t a[T];
      UNROLL for (int t = 0; t < T; ++t)
        a[t] = vreinterpretq_s8_u8(vld1q_u8(x[t] + at + (Traits<F>::nibbles ? j / 4 * 64 : j * 4)));
      four<T, 0>(d, codes + j * kBytes, a);
      four<T, 1>(d, codes + (j + 1) * kBytes, a);
      four<T, 2>(d, codes + (j + 2) * kBytes, a);
      four<T, 3>(d, codes + (j + 3) * kBytes, a);
    }
  }
};

}  // namespace
}  // namespace datong
