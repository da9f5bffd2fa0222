// Peaks with AVX-512: twelve registers are more than latency times throughput of any core so far.
#include <immintrin.h>

#include "kernels/limits/limits_list.h"

namespace datong {
namespace {

constexpr int kRegisters = 12;

uint64_t int8(int64_t rounds) {
  __m512i x[kRegisters], a = _mm512_set1_epi8(5), b = _mm512_set1_epi8(3);
  for (auto& value : x) value = _mm512_setzero_si512();
  for (int64_t i = 0; i < rounds; ++i) {
    for (auto& value : x) value = _mm512_dpbusd_epi32(value, a, b);
    asm volatile("" : "+v"(a), "+v"(b));
  }
  for (auto& value : x) a = _mm512_add_epi32(a, value);
  return static_cast<uint64_t>(static_cast<uint32_t>(_mm512_reduce_add_epi32(a)));
}

uint64_t f32(int64_t rounds) {
  __m512 x[kRegisters], a = _mm512_set1_ps(1.0f), b = _mm512_set1_ps(1e-9f);
  for (auto& value : x) value = _mm512_setzero_ps();
  for (int64_t i = 0; i < rounds; ++i) {
    for (auto& value : x) value = _mm512_fmadd_ps(value, a, b);
    asm volatile("" : "+v"(a), "+v"(b));
  }
  for (auto& value : x) a = _mm512_add_ps(a, value);
  return static_cast<uint64_t>(_mm512_reduce_add_ps(a));
}

bool has_vnni(const CpuFeatures& cpu) { return cpu.avx512_vnni; }
bool has_avx512(const CpuFeatures& cpu) { return cpu.avx512; }

}  // namespace

PeakKernel int8_peak_avx512vnni() { return {"avx512vnni", has_vnni, 2 * 64 * kRegisters, int8}; }
PeakKernel f32_peak_avx512() { return {"avx512", has_avx512, 2 * 16 * kRegisters, f32}; }

}  // namespace datong
