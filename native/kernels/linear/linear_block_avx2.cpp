// Block formats with AVX2: activations to int8, then few tokens by rows, many tokens by panels.
#include "kernels/linear/linear_block_avx2_panel.h"
#include "kernels/linear/linear_block_avx2_prepare.h"
#include "kernels/linear/linear_block_avx2_rows.h"
#include "kernels/linear/linear_list.h"

namespace datong {
namespace {

// From this many tokens on, unpacking a panel pays. Measured on Zen 4, 1536x576 in the cache, microseconds by rows | by
// panels: q4_0 with 3 tokens 68 | 41, q4_1 60 | 46; q8_0 with 4 tokens 92 | 99, 5: 120 | 105.
template <Fmt F>
constexpr int64_t kPanelTokens = Traits<F>::nibbles ? 3 : 5;

template <Fmt F>
size_t scratch_bytes(const WeightView& w, int64_t tokens) {
  return tokens < kPanelTokens<F> ? 0 : panels_scratch<Avx2Panel, F>(w.in, tokens);
}

template <Fmt F>
void run(const WeightView& view, const float*, int64_t, const void* prepared, int64_t tokens, int64_t out_begin,
         int64_t out_end, float* y, int64_t y_stride, const Epilogue& e, void* scratch) {
  const Matrix<F> w(view);
  const uint8_t* x = static_cast<const uint8_t*>(prepared);
  if (tokens >= kPanelTokens<F>)
    return run_panels<Avx2Panel, F>(w, view.in, x, tokens, out_begin, out_end, y, y_stride, e, scratch);
  const PreparedLayout layout(view.in, Traits<F>::nibbles);
  for (int64_t row = out_begin; row < out_end; row += 4)
    rows<F>(w, row, out_end - row < 4 ? out_end - row : 4, x, layout, tokens, y, y_stride, e);
}

template <Fmt F>
bool usable(const CpuFeatures& cpu, const WeightView& w) {
  return cpu.avx2 && fits<F>(w);
}

template <Fmt F>
constexpr LinearKernel kernel(const char* name) {
  constexpr bool n = Traits<F>::nibbles;
  return {name, usable<F>, prepared_bytes<n>, prepare<n>, scratch_bytes<F>, run<F>, 16};
}

constexpr LinearKernel kKernels[] = {
    kernel<Fmt::q4_0>("q4_0_avx2"), kernel<Fmt::q4_1>("q4_1_avx2"), kernel<Fmt::q5_0>("q5_0_avx2"),
    kernel<Fmt::q5_1>("q5_1_avx2"), kernel<Fmt::q8_0>("q8_0_avx2"), kernel<Fmt::q4_k>("q4_k_avx2"),
    kernel<Fmt::q5_k>("q5_k_avx2"), kernel<Fmt::q6_k>("q6_k_avx2"),
};

}  // namespace

KernelTable linear_block_avx2() { return {kKernels, sizeof kKernels / sizeof kKernels[0]}; }

}  // namespace datong
