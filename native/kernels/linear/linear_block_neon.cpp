// Block formats with NEON, for processors without a dot product: two products are added in 16 bits, which fits, then in 32.
#include <arm_neon.h>

#include "kernels/linear/linear.h"

namespace datong {
namespace {

struct Dot {
  static int32x4_t of(int8x16_t a, int8x16_t b) {
    return vpaddlq_s16(vmlal_high_s8(vmull_s8(vget_low_s8(a), vget_low_s8(b)), a, b));
  }
  static int32x4_t of(int8x16_t a, int8x16_t b, int8x16_t c, int8x16_t d) {
    const int16x8_t first = vmlal_high_s8(vmull_s8(vget_low_s8(a), vget_low_s8(b)), a, b);
    const int16x8_t second = vmlal_high_s8(vmull_s8(vget_low_s8(c), vget_low_s8(d)), c, d);
    return vpadalq_s16(vpaddlq_s16(first), second);
  }
};

}  // namespace
}  // namespace datong

#include "kernels/linear/linear_block_neon.h"

namespace datong {
namespace {

template <Fmt F>
bool usable(const CpuFeatures& cpu, const WeightView& w) {
  return cpu.neon && fits<F>(w);
}

template <Fmt F>
constexpr LinearKernel kernel(const char* name) {
  constexpr bool n = Traits<F>::nibbles;
  return {name, usable<F>, prepared_bytes<n>, prepare<n>, nullptr, run_rows<F>, 4};
}

constexpr LinearKernel kKernels[] = {
    kernel<Fmt::q4_0>("q4_0_neon"), kernel<Fmt::q4_1>("q4_1_neon"), kernel<Fmt::q5_0>("q5_0_neon"),
    kernel<Fmt::q5_1>("q5_1_neon"), kernel<Fmt::q8_0>("q8_0_neon"), kernel<Fmt::q4_k>("q4_k_neon"),
    kernel<Fmt::q5_k>("q5_k_neon"), kernel<Fmt::q6_k>("q6_k_neon"),
};

}  // namespace

KernelTable linear_block_neon() { return {kKernels, sizeof kKernels / sizeof kKernels[0]}; }

}  // namespace datong
