// sum[g, i] = x[g, i] + add[g, i]                                          (only where add is given)
// y[g, i]   = s[g, i] / sqrt(mean_i(s[g, :]^2) + eps) * (weight[i] + offset)      with s = sum or x
//
//   x, add, sum, y  [groups, n] f32, row-major, contiguous; add and sum are both null or both given;
//                   y may be x, sum may be x or add, no other overlap
//   weight          [n] f32
//   eps             > 0; added to the mean of squares, not to the root
//
// Accumulates in f32. Any groups >= 0, n >= 1. Does not allocate, does not throw.
// Source: ONNX RMSNormalization-23 with axis = -1; HF LlamaRMSNorm.
#pragma once

#include <cstdint>
#include <span>

#include "core/dispatch.h"

namespace datong {

struct RmsNormArgs {
  const float* x;
  const float* add;
  float* sum;
  const float* weight;
  float* y;
  int64_t groups, n;
  float eps, offset;
};

using RmsNorm = void (*)(const RmsNormArgs&);
std::span<const Variant<RmsNorm>> rms_norm_variants();

void rms_norm_ref(const RmsNormArgs&);
void rms_norm_avx2(const RmsNormArgs&);
void rms_norm_avx512(const RmsNormArgs&);
void rms_norm_neon(const RmsNormArgs&);

}  // namespace datong
