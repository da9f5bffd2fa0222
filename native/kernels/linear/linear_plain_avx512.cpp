// Plain formats with AVX-512.
#include <immintrin.h>

#include "kernels/linear/linear_list.h"
#include "kernels/linear/linear_plain.h"

namespace datong {
namespace {

inline __mmask16 first16(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

struct V {
  using Reg = __m512;
  static constexpr int64_t kLanes = 16;
  static constexpr int kTokens = 4;  // 16 accumulators, 4 rows, 1 token: 21 of 32 registers
  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static Reg load(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(first16(count), p); }
  static void store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static void sum4(Reg a, Reg b, Reg c, Reg d, float out[4]) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }
};

struct F16Source {
  static constexpr int64_t kBytes = 2;
  static __m512 load(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static __m512 load(const uint8_t* p, int64_t count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first16(count), p));
  }
};

struct Bf16Source {
  static constexpr int64_t kBytes = 2;
  static __m512 widen(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
  static __m512 load(const uint8_t* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static __m512 load(const uint8_t* p, int64_t count) { return widen(_mm256_maskz_loadu_epi16(first16(count), p)); }
};

bool is_f32(const CpuFeatures& cpu, const WeightView& w) { return cpu.avx512 && strcmp(w.format, "f32") == 0; }
bool is_f16(const CpuFeatures& cpu, const WeightView& w) { return cpu.avx512 && strcmp(w.format, "f16") == 0; }
bool is_bf16(const CpuFeatures& cpu, const WeightView& w) { return cpu.avx512 && strcmp(w.format, "bf16") == 0; }

constexpr LinearKernel kKernels[] = {
    {"f32_avx512", is_f32, no_bytes, nullptr, nullptr, run_plain<V, F32Source<V>>, 4},
    {"f16_avx512", is_f16, no_bytes, nullptr, plain_scratch<V, F16Source>, run_plain<V, F16Source>, 4},
    {"bf16_avx512", is_bf16, no_bytes, nullptr, plain_scratch<V, Bf16Source>, run_plain<V, Bf16Source>, 4},
};

}  // namespace

KernelTable linear_plain_avx512() { return {kKernels, sizeof kKernels / sizeof kKernels[0]}; }

}  // namespace datong
