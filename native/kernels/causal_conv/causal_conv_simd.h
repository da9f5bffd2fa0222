// Body of the vector variants; included by each ISA file. As in causal_conv_ref.cpp, kLanes channels at a time.
#include "core/simd.h"
#include "kernels/causal_conv/causal_conv.h"

namespace datong {
namespace {

inline Vec silu(Vec z) {  // h = exp(-|z| / 2): neither overflows nor vanishes where the result is a number
  const Vec h = exp(-0.5f * max(z, -z));
  return (z >= 0.0f ? z : z * h * h) / (1.0f + h * h);
}

inline Vec load_some(const float* p, int64_t n) { return n == kLanes ? load(p) : load_part(p, n); }
inline void store_some(float* p, Vec v, int64_t n) { n == kLanes ? store(p, v) : store_part(p, v, n); }

// Channels c .. c + n.
inline void lanes_simd(const CausalConvArgs& a, int64_t c, int64_t n) {
  const int64_t kept = a.taps - 1;
  Vec line[kMostTaps] = {};
  for (int64_t j = 0; j < kept && !a.fresh; ++j) {
    float lanes[kLanes] = {};
    for (int64_t i = 0; i < n; ++i) lanes[i] = a.state[(c + i) * kept + j];
    line[j + 1] = load(lanes);
  }
  const Vec bias = a.bias ? load_some(a.bias + c, n) : Vec{};
  for (int64_t t = 0; t < a.tokens; ++t) {
    Vec z = bias;
    for (int64_t j = 0; j < kept; ++j) {
      line[j] = line[j + 1];
      z += load_some(a.weight + j * a.weight_stride + c, n) * line[j];
    }
    line[kept] = load_some(a.x + t * a.x_stride + c, n);
    z += load_some(a.weight + kept * a.weight_stride + c, n) * line[kept];
    store_some(a.y + t * a.y_stride + c, a.silu ? silu(z) : z, n);
  }
  for (int64_t j = 0; j < kept; ++j) {
    float lanes[kLanes];
    store(lanes, line[j + 1]);
    for (int64_t i = 0; i < n; ++i) a.state[(c + i) * kept + j] = lanes[i];
  }
}

inline void causal_conv_simd(const CausalConvArgs& a) {
  for (int64_t c = 0; c < a.channels; c += kLanes) lanes_simd(a, c, a.channels - c < kLanes ? a.channels - c : kLanes);
}

}  // namespace
}  // namespace datong
