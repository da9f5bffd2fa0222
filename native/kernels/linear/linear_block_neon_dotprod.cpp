// Block formats with NEON and the dot product of ARMv8.2, SDOT: Kunpeng 920, Neoverse.
#include <arm_neon.h>

#include "kernels/linear/linear.h"

namespace datong {
namespace {

struct Dot {
  static int32x4_t of(int8x16_t a, int8x16_t b) { return vdotq_s32(vdupq_n_s32(0), a, b); }
  static int32x4_t of(int8x16_t a, int8x16_t b, int8x16_t c, int8x16_t d) { return vdotq_s32(of(a, b), c, d); }
};

}  // namespace
}  // namespace datong

#include "kernels/linear/linear_block_neon.h"
#include "kernels/linear/linear_block_neon_panel.h"

namespace datong {
namespace {

// From this many tokens on, panels. A guess from the numbers of instructions: nobody has measured it on such a processor.
constexpr int64_t kPanelTokens = 4;

template <Fmt F>
size_t scratch_bytes(const WeightView& w, int64_t tokens) {
  return tokens < kPanelTokens ? 0 : panels_scratch<NeonPanel, F>(w.in, tokens);
}

template <Fmt F>
void run(const WeightView& w, const float* x, int64_t x_stride, const void* prepared, int64_t tokens, int64_t out_begin,
         int64_t out_end, float* y, int64_t y_stride, const Epilogue& e, void* scratch) {
  if (tokens < kPanelTokens)
    return run_rows<F>(w, x, x_stride, prepared, tokens, out_begin, out_end, y, y_stride, e, scratch);
  run_panels<NeonPanel, F>(Matrix<F>(w), w.in, static_cast<const uint8_t*>(prepared), tokens, out_begin, out_end, y,
                           y_stride, e, scratch);
}

template <Fmt F>
bool usable(const CpuFeatures& cpu, const WeightView& w) {
  return cpu.neon_dotprod && fits<F>(w);
}

template <Fmt F>
constexpr LinearKernel kernel(const char* name) {
  constexpr bool n = Traits<F>::nibbles;
  return {name, usable<F>, prepared_bytes<n>, prepare<n>, scratch_bytes<F>, run<F>, kPanelRows<NeonPanel>};
}

constexpr LinearKernel kKernels[] = {
    kernel<Fmt::q4_0>("q4_0_neon_dotprod"), kernel<Fmt::q4_1>("q4_1_neon_dotprod"), kernel<Fmt::q5_0>("q5_0_neon_dotprod"),
    kernel<Fmt::q5_1>("q5_1_neon_dotprod"), kernel<Fmt::q8_0>("q8_0_neon_dotprod"), kernel<Fmt::q4_k>("q4_k_neon_dotprod"),
    kernel<Fmt::q5_k>("q5_k_neon_dotprod"), kernel<Fmt::q6_k>("q6_k_neon_dotprod"),
};

}  // namespace

KernelTable linear_block_neon_dotprod() { return {kKernels, sizeof kKernels / sizeof kKernels[0]}; }

}  // namespace datong
