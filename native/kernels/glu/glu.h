// y[r, i] = silu(gate[r, i]) * up[r, i],  silu(g) = g / (1 + exp(-g))
//
//   gate, up, y  [rows, n] f32, each with its own row stride (floats); y may be gate or up, no other overlap
//
// Any rows, n >= 0. Does not allocate, does not throw. Source: HF LlamaMLP; Shazeer 2020 (SwiGLU).
#pragma once

#include <cstdint>
#include <span>

#include "core/dispatch.h"

namespace datong {

struct GluArgs {
  const float* gate;
  int64_t gate_stride;
  const float* up;
  int64_t up_stride;
  float* y;
  int64_t y_stride;
  int64_t rows, n;
};

using Glu = void (*)(const GluArgs&);
std::span<const Variant<Glu>> silu_glu_variants();

void silu_glu_ref(const GluArgs&);
void silu_glu_avx2(const GluArgs&);
void silu_glu_avx512(const GluArgs&);
void silu_glu_neon(const GluArgs&);

}  // namespace datong
