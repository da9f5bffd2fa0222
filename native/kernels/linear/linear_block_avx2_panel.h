// AVX2, many tokens: what linear_block_panel.h asks for. Included by one file only.
//
// A block of nibble codes is added up in 16 bits: 16 products of 15 * 127 stay below 2^15. Byte codes, made unsigned, are
// cut into their high and low nibbles, which are two such sums: vpmaddubsw of whole bytes would overflow, and with signs
// taken care of for each product it costs as many multiplications and more of the rest.
#pragma once

#include "kernels/linear/linear_block_avx2_rows.h"
#include "kernels/linear/linear_block_panel.h"

namespace datong {
namespace {

struct Avx2Panel {
  using Float = __m256;
  using Int = __m256i;
  static constexpr int64_t kLanes = 8;
  static constexpr int kVectors = 2;
  template <Fmt F>
  static constexpr int kTokens = Traits<F>::nibbles ? 4 : 3;  // 8 sums, or 12, and the vectors that meet: 16 registers
  template <Fmt F>
  static constexpr int kPlanes = Traits<F>::nibbles ? 1 : 2;
  template <Fmt F>
  static constexpr int kBias = Traits<F>::is_signed ? 1 : 0;

  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static void store_codes(uint8_t* p, Int v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static Float splat(float f) { return _mm256_set1_ps(f); }
  static Int splat_ints(int32_t i) { return _mm256_set1_epi32(i); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float widen(Int v) { return _mm256_cvtepi32_ps(v); }
  static Int add_ints(Int a, Int b) { return _mm256_add_epi32(a, b); }

  static Int load_codes(const uint8_t* p, int64_t bytes) {
    return bytes >= 32 ? load256(p) : _mm256_zextsi128_si256(load128(p));
  }

  template <Fmt F>
  static Float levels(const uint8_t* one, const uint8_t* super, int64_t b, int64_t count) {
    return count == 8 ? levels8<F, true>(one, super, b, 8) : levels8<F, false>(one, super, b, count);
  }

  static void transpose(Float v[8]) {
    __m256 a[8], c[8];
    UNROLL for (int i = 0; i < 8; i += 2) {
      a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
      a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    UNROLL for (int i = 0; i < 8; i += 4) {
      c[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
      c[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
      c[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
      c[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    UNROLL for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_permute2f128_ps(c[i], c[i + 4], 0x20);
      v[i + 4] = _mm256_permute2f128_ps(c[i], c[i + 4], 0x31);
    }
  }
  static void transpose(Int v[8]) {
    Float f[8];
    UNROLL for (int i = 0; i < 8; ++i) f[i] = _mm256_castsi256_ps(v[i]);
    transpose(f);
    UNROLL for (int i = 0; i < 8; ++i) v[i] = _mm256_castps_si256(f[i]);
  }

  // Nibbles: even codes, odd ones. Bytes: low nibbles, high ones.
  template <Fmt F>
  static void unpack(Int v, Int out[2]) {
    const __m256i low = _mm256_set1_epi8(15);
    if (Traits<F>::is_signed) v = _mm256_xor_si256(v, _mm256_set1_epi8(static_cast<char>(Traits<F>::nibbles ? 0x88 : 0x80)));
    out[0] = _mm256_and_si256(v, low);
    out[1] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
  }

  template <Fmt F>
  static Int times_extra(const uint8_t* p, Int e) {
    __m256i d = _mm256_madd_epi16(_mm256_maddubs_epi16(load256(p), e), _mm256_set1_epi16(1));
    if constexpr (kPlanes<F> == 2)
      d = _mm256_add_epi32(d, _mm256_madd_epi16(_mm256_maddubs_epi16(load256(p + kPanelRows<Avx2Panel> * 4), e), _mm256_set1_epi16(16)));
    return _mm256_slli_epi32(d, 6);
  }

  template <Fmt F, int T, int kFrom, int kCount>
  static void dots(Int d[kVectors][T], const uint8_t* codes, const uint8_t* const x[T], int64_t at) {
    constexpr int64_t kBytes = kPanelRows<Avx2Panel> * 4;
    __m256i sum[kPlanes<F>][kVectors][T];
    UNROLL for (int j = kFrom; j < kFrom + kCount; ++j) {
      const uint8_t* p = codes + j * kPlanes<F> * kBytes;
      const int64_t offset = at + (Traits<F>::nibbles ? j / 4 * 64 + j % 4 * 4 : j * 4);
      UNROLL for (int t = 0; t < T; ++t) {
        const __m256i a = splat_ints(int_at(x[t] + offset));
        UNROLL for (int v = 0; v < kVectors; ++v) {
          UNROLL for (int plane = 0; plane < kPlanes<F>; ++plane) {
            const __m256i product = _mm256_maddubs_epi16(load256(p + plane * kBytes + v * 32), a);
            __m256i& s = sum[plane][v][t];
            s = j == kFrom ? product : _mm256_add_epi16(s, product);
            asm("" : "+x"(s));  // or GCC adds up later, and keeps all products in memory until then
          }
        }
      }
    }
    UNROLL for (int t = 0; t < T; ++t) {
      UNROLL for (int v = 0; v < kVectors; ++v) {
        d[v][t] = _mm256_madd_epi16(sum[0][v][t], _mm256_set1_epi16(1));
        if constexpr (kPlanes<F> == 2)
          d[v][t] = _mm256_add_epi32(d[v][t], _mm256_madd_epi16(sum[1][v][t], _mm256_set1_epi16(16)));
      }
    }
  }
};

}  // namespace
}  // namespace datong
