// Rotates the first 2*half channels of each head, the others pass:
//
//   a, b = x[r, h, i], x[r, h, i + half]          interleaved = false (HF checkpoints)
//   a, b = x[r, h, 2i], x[r, h, 2i + 1]           interleaved = true
//   a' = a * cos[r, i] - b * sin[r, i];  b' = b * cos[r, i] + a * sin[r, i]
//
//   x, y      [rows, heads, dim] f32, contiguous; y may be x
//   cos, sin  [rows, half] f32; 2 * half <= dim
//
// Any rows, heads >= 0. Does not allocate, does not throw.
// Source: Su et al. 2021, eq. 34; ONNX RotaryEmbedding-23.
#pragma once

#include <cstdint>
#include <span>

#include "core/dispatch.h"

namespace datong {

struct RopeArgs {
  const float* x;
  const float* cos;
  const float* sin;
  float* y;
  int64_t rows, heads, dim, half;
  bool interleaved;
};

using Rope = void (*)(const RopeArgs&);
std::span<const Variant<Rope>> rope_variants();

void rope_ref(const RopeArgs&);
void rope_avx2(const RopeArgs&);
void rope_neon(const RopeArgs&);

}  // namespace datong
