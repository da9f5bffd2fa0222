// angle = position * inv_freq in f32;  cos[r, i] = cos(angle) * scale,  sin[r, i] = sin(angle) * scale
//
//   positions  [rows] i64
//   inv_freq   [half] f32
//   cos, sin   [rows, half] f32
//
// One variant: a step computes it once, rows x half values, for all layers. Any rows, half >= 0.
// Source: HF LlamaRotaryEmbedding (angles in f32, then cos and sin); yarn's attention factor is `scale`.
#pragma once

#include <cstdint>

namespace datong {

void rope_table_ref(const int64_t* positions, const float* inv_freq, float scale, float* cos, float* sin, int64_t rows,
                    int64_t half);

}  // namespace datong
