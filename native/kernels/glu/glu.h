// Gated linear units: y[r, i] = f(gate[r, i], up[r, i]), with L = limit
//
//   silu        silu(g) * u,  silu(g) = g / (1 + exp(-g))                     source: HF LlamaMLP; Shazeer 2020 (SwiGLU)
//   gelu_tanh   0.5 g (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3))) * u           source: HF Gemma3MLP
//   silu_clamp  min(silu(g), L) * clip(u, -L, L)                              source: vLLM step3p5.py, swiglustep
//   oai         h * sigmoid(alpha h) * (clip(u, -L, L) + 1),  h = min(g, L)   source: HF GptOssExperts
//
//   gate, up, y  [rows, n] f32, each with its own row stride (floats); y may be gate or up, no other overlap
//
// Any rows, n >= 0. Does not allocate, does not throw.
#pragma once

#include <cstdint>
#include <span>

#include "core/dispatch.h"

namespace datong {

enum class GluKind { silu, gelu_tanh, silu_clamp, oai };
constexpr const char* kGluKinds[] = {"silu", "gelu_tanh", "silu_clamp", "oai"};  // datong/spec/ops.py

struct GluArgs {
  const float* gate;
  int64_t gate_stride;
  const float* up;
  int64_t up_stride;
  float* y;
  int64_t y_stride;
  int64_t rows, n;
  float limit = 0, alpha = 0;
};

using Glu = void (*)(const GluArgs&);
std::span<const Variant<Glu>> glu_variants(GluKind kind);

#define DATONG_GLU(isa)                   \
  void silu_glu_##isa(const GluArgs&);       \
  void gelu_tanh_glu_##isa(const GluArgs&);  \
  void silu_clamp_glu_##isa(const GluArgs&); \
  void oai_glu_##isa(const GluArgs&);
DATONG_GLU(ref)
DATONG_GLU(avx2)
DATONG_GLU(avx512)
DATONG_GLU(neon)
#undef DATONG_GLU

}  // namespace datong
