// Peaks with AVX2; int8 by the usual pair of instructions, as the block kernels multiply.
#include <immintrin.h>

#include "kernels/limits/limits_list.h"

namespace datong {
namespace {

constexpr int kRegisters = 12;

uint64_t int8(int64_t rounds) {
  __m256i x[kRegisters], a = _mm256_set1_epi8(5), b = _mm256_set1_epi8(3);
  const __m256i ones = _mm256_set1_epi16(1);
  for (auto& value : x) value = _mm256_setzero_si256();
  for (int64_t i = 0; i < rounds; ++i)
    for (auto& value : x) {
      asm volatile("" : "+x"(a), "+x"(b));
      value = _mm256_add_epi32(value, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
    }
  for (auto& value : x) a = _mm256_add_epi32(a, value);
  return static_cast<uint64_t>(_mm256_extract_epi64(a, 0));
}

uint64_t f32(int64_t rounds) {
  __m256 x[kRegisters], a = _mm256_set1_ps(1.0f), b = _mm256_set1_ps(1e-9f);
  for (auto& value : x) value = _mm256_setzero_ps();
  for (int64_t i = 0; i < rounds; ++i) {
    for (auto& value : x) value = _mm256_fmadd_ps(value, a, b);
    asm volatile("" : "+x"(a), "+x"(b));
  }
  for (auto& value : x) a = _mm256_add_ps(a, value);
  return static_cast<uint64_t>(_mm256_cvtss_f32(a));
}

bool has_avx2(const CpuFeatures& cpu) { return cpu.avx2; }

}  // namespace

PeakKernel int8_peak_avx2() { return {"avx2", has_avx2, 2 * 32 * kRegisters, int8}; }
PeakKernel f32_peak_avx2() { return {"avx2", has_avx2, 2 * 8 * kRegisters, f32}; }

}  // namespace datong
