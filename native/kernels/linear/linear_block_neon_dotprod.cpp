// Block formats with NEON and the dot product of ARMv8.2, SDOT: Kunpeng 920, Neoverse.
#include <arm_neon.h>

#include "kernels/linear/linear.h"

namespace datong {
namespace {

struct Dot {
  static bool usable(const CpuFeatures& cpu) { return cpu.neon_dotprod; }
  static int32x4_t of(int8x16_t a, int8x16_t b) { return vdotq_s32(vdupq_n_s32(0), a, b); }
  static int32x4_t of(int8x16_t a, int8x16_t b, int8x16_t c, int8x16_t d) { return vdotq_s32(of(a, b), c, d); }
};

}  // namespace
}  // namespace datong

#include "kernels/linear/linear_block_neon.h"

namespace datong {
namespace {

constexpr LinearKernel kKernels[] = {
    kernel<Fmt::q4_0>("q4_0_neon_dotprod"), kernel<Fmt::q4_1>("q4_1_neon_dotprod"), kernel<Fmt::q5_0>("q5_0_neon_dotprod"),
    kernel<Fmt::q5_1>("q5_1_neon_dotprod"), kernel<Fmt::q8_0>("q8_0_neon_dotprod"), kernel<Fmt::q4_k>("q4_k_neon_dotprod"),
    kernel<Fmt::q5_k>("q5_k_neon_dotprod"), kernel<Fmt::q6_k>("q6_k_neon_dotprod"),
};

}  // namespace

KernelTable linear_block_neon_dotprod() { return {kKernels, sizeof kKernels / sizeof kKernels[0]}; }

}  // namespace datong
