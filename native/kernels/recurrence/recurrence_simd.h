// Body of the vector variants; included by each ISA file. As in recurrence_ref.cpp, but with
//   y = decay * q^T S + (q . k) u,
// so that what a token reads of S is gathered while the token before it is written: one pass per token.
#include "core/simd.h"
#include "kernels/recurrence/recurrence.h"

namespace datong {
namespace {

constexpr int kWide = 4;  // vectors of columns: of q^T S, k^T S, u and S itself, 16 registers

// The columns in W vectors; the last of them has `rest` columns, kLanes where it is full.
template <int W>
struct Columns {
  int64_t rest;
  Vec at(const float* p, int w) const {
    return w == W - 1 && rest < kLanes ? load_part(p + w * kLanes, rest) : load(p + w * kLanes);
  }
  void put(float* p, Vec v, int w) const {
    if (w == W - 1 && rest < kLanes) return store_part(p + w * kLanes, v, rest);
    store(p + w * kLanes, v);
  }
};

inline float dot(const float* a, const float* b, int64_t n) {
  Vec total = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) total += load(a + i) * load(b + i);
  if (i < n) total += load_part(a + i, n - i) * load_part(b + i, n - i);
  return sum(total);
}

// Columns from `c` on. A state that lies in a row of `kept` floats of its own: the first cache.
template <int W>
void columns_simd(const RecurrenceArgs& a, int64_t c, int64_t rest) {
  const Columns<W> cut{rest};
  float* state = a.state + c;
  float decay = 1;
  Vec u[W] = {};
  for (int64_t t = 0; t < a.tokens; ++t) {
    const float *q = a.q + t * a.q_stride, *k = a.k + t * a.k_stride, *before = k - a.k_stride;
    const bool first = t == 0;
    Vec by_q[W] = {}, by_k[W] = {};
    for (int64_t i = 0; i < a.keys; ++i) {
      float* row = state + i * a.state_stride;
      const Vec of_q = splat(q[i]), of_k = splat(k[i]);
      for (int w = 0; w < W; ++w) {
        Vec s;
        if (first) {
          s = a.fresh ? Vec{} : cut.at(row, w);
        } else {
          s = (first || (t == 1 && a.fresh) ? Vec{} : cut.at(row, w)) * decay + before[i] * u[w];
          cut.put(row, s, w);
        }
        by_q[w] += of_q * s;
        by_k[w] += of_k * s;
      }
    }
    decay = a.decay[t * a.decay_stride];
    const float both = dot(q, k, a.keys);
    for (int w = 0; w < W; ++w) {
      u[w] = cut.at(a.v + t * a.v_stride + c, w);
      if (a.beta) u[w] = a.beta[t * a.beta_stride] * (u[w] - decay * by_k[w]);
      cut.put(a.y + t * a.y_stride + c, decay * by_q[w] + both * u[w], w);
    }
  }
  if (a.tokens == 0) return;
  const float* k = a.k + (a.tokens - 1) * a.k_stride;
  const bool empty = a.tokens == 1 && a.fresh;
  for (int64_t i = 0; i < a.keys; ++i) {
    float* row = state + i * a.state_stride;
    for (int w = 0; w < W; ++w) cut.put(row, (empty ? Vec{} : cut.at(row, w)) * decay + k[i] * u[w], w);
  }
}

inline void recurrence_simd(const RecurrenceArgs& a) {
  int64_t c = 0;
  for (; c + kWide * kLanes <= a.columns; c += kWide * kLanes) columns_simd<kWide>(a, c, kLanes);
  while (c < a.columns) {
    const int64_t left = a.columns - c < kLanes ? a.columns - c : kLanes;
    columns_simd<1>(a, c, left);
    c += left;
  }
}

}  // namespace
}  // namespace datong
