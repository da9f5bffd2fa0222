// Short convolution over the tokens of one sequence, each channel on its own:
//
//   y[t, c] = act(bias[c] + sum_j weight[j, c] * x[t - (taps - 1) + j, c]),  act the identity or z * sigmoid(z)
//
//   x, y    [tokens, channels] f32, with a row stride; y is not x
//   weight  [taps, channels] f32, `weight_stride` floats between taps; bias [channels] or null
//   state   [channels, taps - 1] f32: the inputs before the first token, oldest first; read unless `fresh` (then they are 0),
//           and afterwards the last inputs
//
// taps 1 .. kMostTaps, anything else >= 0. Does not allocate, does not throw.
#pragma once

#include <cstdint>
#include <span>

#include "core/dispatch.h"

namespace datong {

constexpr int64_t kMostTaps = 16;

struct CausalConvArgs {
  const float* x;
  int64_t x_stride;
  const float* weight;
  int64_t weight_stride;
  const float* bias;
  float* state;
  float* y;
  int64_t y_stride;
  int64_t tokens, channels, taps;
  bool silu, fresh;
};

using CausalConv = void (*)(const CausalConvArgs&);
std::span<const Variant<CausalConv>> causal_conv_variants();

void causal_conv_ref(const CausalConvArgs&);
void causal_conv_avx2(const CausalConvArgs&);
void causal_conv_avx512(const CausalConvArgs&);
void causal_conv_neon(const CausalConvArgs&);

}  // namespace datong
