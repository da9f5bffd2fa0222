// The small work of a mixture of experts: which expert gets which token, and what is left around its matrices.
// Nothing here allocates or throws. Portable: the matrices take thousands of times longer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace datong {

// The choice of one token, as `route` of datong/spec/reference.py:
//
//   p      = softmax or sigmoid of the logits, in f64
//   chosen = top_k of p + select_bias within the top_groups groups, which the sum of their two best orders; best first,
//            of equals the lowest index
//   weight = p, divided by the sum of the chosen (plus 1e-20 for sigmoid) if renorm, times scale
struct Router {
  int64_t experts, top_k;
  bool sigmoid, renorm;
  double scale;
  int64_t groups, top_groups;  // groups divides experts; 1 <= top_groups <= groups
  const float* select_bias;    // [experts] or null
};

size_t route_scratch(const Router&);  // bytes, for one token at a time

// logits [experts] -> chosen [top_k], weights [top_k]; scratch: 8-byte aligned.
void route(const Router&, const float* logits, int32_t* chosen, float* weights, void* scratch);

// Sorts the pairs (token, place) by expert, keeping their order: those of expert e are
// order[starts[e]] .. order[starts[e + 1] - 1].  chosen [pairs], starts [experts + 1], order [pairs].
void group_by_expert(const int32_t* chosen, int64_t pairs, int64_t experts, int32_t* starts, int32_t* order);

// both [rows, stride] holds gate and up in turn: gate[r, i] = both[r, 2 i], up[r, i] = both[r, 2 i + 1], i < n.
void split_pairs(const float* both, int64_t stride, int64_t rows, int64_t n, float* gate, int64_t gate_stride, float* up,
                 int64_t up_stride);

// y[i] += weight * x[i]
void add_weighted(float* y, float weight, const float* x, int64_t n);

}  // namespace datong
