#include "kernels/moe/moe.h"

#include <cmath>
#include <limits>

namespace datong {
namespace {

// Descending; NaN comes last.
bool better(double a, double b) { return a > b || (std::isnan(b) && !std::isnan(a)); }

// The `count` best of n values, best first, of equals the lowest index.
void best(const double* values, int64_t n, int64_t count, int32_t* chosen) {
  int64_t held = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (held == count && !better(values[i], values[chosen[held - 1]])) continue;
    int64_t at = held < count ? held++ : count - 1;
    for (; at > 0 && better(values[i], values[chosen[at - 1]]); --at) chosen[at] = chosen[at - 1];
    chosen[at] = static_cast<int32_t>(i);
  }
}

void scores(const Router& r, const float* logits, double* p) {
  if (r.sigmoid) {
    for (int64_t i = 0; i < r.experts; ++i) {
      const double small = std::exp(-std::fabs(static_cast<double>(logits[i])));
      p[i] = (logits[i] >= 0 ? 1 : small) / (1 + small);
    }
    return;
  }
  double top = logits[0], sum = 0;
  for (int64_t i = 1; i < r.experts; ++i) top = logits[i] > top ? logits[i] : top;
  for (int64_t i = 0; i < r.experts; ++i) sum += p[i] = std::exp(logits[i] - top);
  for (int64_t i = 0; i < r.experts; ++i) p[i] /= sum;
}

// Members of the other groups become -inf. `sums` [groups], `picks` [top_groups].
void keep_top_groups(const Router& r, double* choice, double* sums, int32_t* picks) {
  const int64_t size = r.experts / r.groups;
  for (int64_t g = 0; g < r.groups; ++g) {
    const double* member = choice + g * size;
    int32_t two[2];
    const int64_t count = size < 2 ? size : 2;
    best(member, size, count, two);
    sums[g] = member[two[0]] + (count == 2 ? member[two[1]] : 0);
  }
  best(sums, r.groups, r.top_groups, picks);
  for (int64_t g = 0; g < r.groups; ++g) {
    bool kept = false;
    for (int64_t i = 0; i < r.top_groups; ++i) kept |= picks[i] == g;
    for (int64_t i = g * size; !kept && i < (g + 1) * size; ++i) choice[i] = -std::numeric_limits<double>::infinity();
  }
}

}  // namespace

size_t route_scratch(const Router& r) {
  return static_cast<size_t>(2 * r.experts + r.groups) * sizeof(double) + static_cast<size_t>(r.groups) * sizeof(int32_t);
}

void route(const Router& r, const float* logits, int32_t* chosen, float* weights, void* scratch) {
  double *p = static_cast<double*>(scratch), *choice = p + r.experts, *sums = choice + r.experts;
  scores(r, logits, p);
  for (int64_t i = 0; i < r.experts; ++i) choice[i] = p[i] + (r.select_bias ? r.select_bias[i] : 0.0);
  if (r.groups > 1) keep_top_groups(r, choice, sums, reinterpret_cast<int32_t*>(sums + r.groups));
  best(choice, r.experts, r.top_k, chosen);
  double sum = 0;
  for (int64_t k = 0; k < r.top_k; ++k) sum += p[chosen[k]];
  const double divisor = r.renorm ? sum + (r.sigmoid ? 1e-20 : 0.0) : 1.0;
  for (int64_t k = 0; k < r.top_k; ++k) weights[k] = static_cast<float>(p[chosen[k]] / divisor * r.scale);
}

void group_by_expert(const int32_t* chosen, int64_t pairs, int64_t experts, int32_t* starts, int32_t* order) {
  for (int64_t e = 0; e <= experts; ++e) starts[e] = 0;
  for (int64_t i = 0; i < pairs; ++i) ++starts[chosen[i] + 1];
  for (int64_t e = 0; e < experts; ++e) starts[e + 1] += starts[e];
  for (int64_t i = 0; i < pairs; ++i) order[starts[chosen[i]]++] = static_cast<int32_t>(i);
  for (int64_t e = experts; e > 0; --e) starts[e] = starts[e - 1];  // each had moved to the end of its range
  starts[0] = 0;
}

void split_pairs(const float* both, int64_t stride, int64_t rows, int64_t n, float* gate, int64_t gate_stride, float* up,
                 int64_t up_stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < n; ++i) {
      gate[r * gate_stride + i] = both[r * stride + 2 * i];
      up[r * up_stride + i] = both[r * stride + 2 * i + 1];
    }
}

void add_weighted(float* y, float weight, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += weight * x[i];
}

}  // namespace datong
