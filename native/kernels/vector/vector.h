// Sums and products of f32 vectors, as operators need them that have no kernel of their own.
//
//   dot    sum_i a[i] * b[i], in an order that depends on n alone
//   axpy   y[i] += s * x[i]
//   widen  y[i] = x[i], of f16 or bf16
//
// n >= 0, any alignment. Nothing allocates or throws.
#pragma once

#include <cstdint>
#include <span>

#include "core/dispatch.h"

namespace datong {

struct VectorKernel {
  float (*dot)(const float* a, const float* b, int64_t n);
  void (*axpy)(float s, const float* x, float* y, int64_t n);
  void (*widen)(const uint16_t* x, bool bf16, float* y, int64_t n);
};

std::span<const Variant<VectorKernel>> vector_variants();

#define DATONG_VECTOR_VARIANT(isa)                             \
  float dot_##isa(const float* a, const float* b, int64_t n);  \
  void axpy_##isa(float s, const float* x, float* y, int64_t n); \
  void widen_##isa(const uint16_t* x, bool bf16, float* y, int64_t n);
DATONG_VECTOR_VARIANT(ref)
DATONG_VECTOR_VARIANT(avx2)
DATONG_VECTOR_VARIANT(avx512)
DATONG_VECTOR_VARIANT(neon)

}  // namespace datong
