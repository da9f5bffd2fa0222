// Plain formats with AVX2, FMA and F16C.
#include <immintrin.h>

#include "kernels/linear/linear_list.h"
#include "kernels/linear/linear_plain.h"

namespace datong {
namespace {

struct V {
  using Reg = __m256;
  static constexpr int64_t kLanes = 8;
  static constexpr int kTokens = 2;  // 8 accumulators, 4 rows, 1 token: 13 of 16 registers
  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static Reg load(const float* p, int64_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane));
  }
  static void store(float* p, Reg v) { _mm256_storeu_ps(p, v); }
  static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static void sum4(Reg a, Reg b, Reg c, Reg d, float out[4]) {
    const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }
};

// 16-bit values; there is no masked load for them.
inline __m128i load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline __m128i load16(const uint8_t* p, int64_t count) {
  uint8_t copy[16] = {};
  memcpy(copy, p, static_cast<size_t>(count) * 2);
  return load16(copy);
}

struct F16Source {
  static constexpr int64_t kBytes = 2;
  static __m256 load(const uint8_t* p) { return _mm256_cvtph_ps(load16(p)); }
  static __m256 load(const uint8_t* p, int64_t count) { return _mm256_cvtph_ps(load16(p, count)); }
};

struct Bf16Source {
  static constexpr int64_t kBytes = 2;
  static __m256 widen(__m128i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }
  static __m256 load(const uint8_t* p) { return widen(load16(p)); }
  static __m256 load(const uint8_t* p, int64_t count) { return widen(load16(p, count)); }
};

bool is_f32(const CpuFeatures& cpu, const WeightView& w) { return cpu.avx2 && strcmp(w.format, "f32") == 0; }
bool is_f16(const CpuFeatures& cpu, const WeightView& w) { return cpu.avx2 && strcmp(w.format, "f16") == 0; }
bool is_bf16(const CpuFeatures& cpu, const WeightView& w) { return cpu.avx2 && strcmp(w.format, "bf16") == 0; }

constexpr LinearKernel kKernels[] = {
    {"f32_avx2", is_f32, no_bytes, nullptr, nullptr, run_plain<V, F32Source<V>>, 4},
    {"f16_avx2", is_f16, no_bytes, nullptr, plain_scratch<V, F16Source>, run_plain<V, F16Source>, 4},
    {"bf16_avx2", is_bf16, no_bytes, nullptr, plain_scratch<V, Bf16Source>, run_plain<V, Bf16Source>, 4},
};

}  // namespace

KernelTable linear_plain_avx2() { return {kKernels, sizeof kKernels / sizeof kKernels[0]}; }

}  // namespace datong
