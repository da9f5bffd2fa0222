// A matrix-valued state that decays and takes up one outer product per token: the inner loop of linear attention and of the
// gated delta rule, for some columns of one head's state.
//
//   u[t]  = v[t], or with delta: beta[t] * (v[t] - decay[t] * k[t]^T S)
//   y[t]  = q[t]^T (decay[t] * S + k[t] u[t]^T)
//   S     = decay[t] * S + k[t] u[t]^T
//
//   S  [keys, stride] f32, of which `columns` are used; read (unless fresh: then it is 0) and written
//   q, k  [tokens, keys] f32 with a row stride each; v, y  [tokens, columns] f32 with a row stride
//
// Columns do not meet: a head's state can be cut at any of them. One pass over S per token. Source: Yang et al. 2024, eq.
// 10; Qin et al. 2024, Lightning Attention-2, eq. 4. Any sizes >= 0, columns <= kMostColumns. Does not allocate or throw.
#pragma once

#include <cstdint>
#include <span>

#include "core/dispatch.h"

namespace datong {

constexpr int64_t kMostColumns = 64;  // of 128 keys: 32 KiB, which the first cache holds

struct RecurrenceArgs {
  float* state;
  int64_t state_stride;
  int64_t keys, columns, tokens;
  const float *q, *k, *v;
  int64_t q_stride, k_stride, v_stride;
  const float* decay;  // [tokens], with decay_stride; 0: the same for all
  int64_t decay_stride;
  const float* beta;  // as decay; null: no delta rule
  int64_t beta_stride;
  float* y;
  int64_t y_stride;
  bool fresh;
};

using Recurrence = void (*)(const RecurrenceArgs&);
std::span<const Variant<Recurrence>> recurrence_variants();

void recurrence_ref(const RecurrenceArgs&);
void recurrence_avx2(const RecurrenceArgs&);
void recurrence_avx512(const RecurrenceArgs&);
void recurrence_neon(const RecurrenceArgs&);

}  // namespace datong
