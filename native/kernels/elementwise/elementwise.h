// Operators that treat every value alike.
//
//   add      y[i] = a[i] + b[i]
//   mul      y[i] = a[i] * b[i]
//   sigmoid  y[i] = 1 / (1 + exp(-a[i]))         b is not read
//   scale    y[i] = a[i] * factor
//
//   a, b, y  [n] f32; y may be a or b, no other overlap. Any n >= 0. Do not allocate, do not throw.
#pragma once

#include <cstdint>
#include <span>

#include "core/dispatch.h"

namespace datong {

using Elementwise = void (*)(const float* a, const float* b, float* y, int64_t n);
std::span<const Variant<Elementwise>> add_variants();
std::span<const Variant<Elementwise>> mul_variants();
std::span<const Variant<Elementwise>> sigmoid_variants();

using Scale = void (*)(const float* a, float factor, float* y, int64_t n);
std::span<const Variant<Scale>> scale_variants();

void add_ref(const float*, const float*, float*, int64_t);
void mul_ref(const float*, const float*, float*, int64_t);
void sigmoid_ref(const float*, const float*, float*, int64_t);
void scale_ref(const float*, float, float*, int64_t);
void add_avx2(const float*, const float*, float*, int64_t);
void mul_avx2(const float*, const float*, float*, int64_t);
void sigmoid_avx2(const float*, const float*, float*, int64_t);
void scale_avx2(const float*, float, float*, int64_t);
void add_neon(const float*, const float*, float*, int64_t);
void mul_neon(const float*, const float*, float*, int64_t);
void sigmoid_neon(const float*, const float*, float*, int64_t);
void scale_neon(const float*, float, float*, int64_t);

}  // namespace datong
