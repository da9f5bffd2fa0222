// Block formats with AVX-512 VNNI: activations to int8; then packed matrices by panels, others few tokens by rows, many by
// panels unpacked on the way.
#include "kernels/linear/linear_block_avx512_gemm.h"
#include "kernels/linear/linear_block_avx512_gemv.h"
#include "kernels/linear/linear_block_avx512_packed.h"
#include "kernels/linear/linear_block_avx512_prepare.h"
#include "kernels/linear/linear_list.h"

namespace datong {
namespace {

template <Fmt F>
bool usable(const CpuFeatures& cpu, const WeightView& w) {
  return cpu.avx512_vnni && fits<F>(w);
}

template <Fmt F>
size_t scratch_bytes(const WeightView& w, int64_t tokens) {
  return tokens < kGemmTokens ? 0 : static_cast<size_t>(gemm_scratch<Traits<F>::nibbles>(w.in, tokens));
}

template <Fmt F>
void run(const WeightView& view, const float*, int64_t, const void* prepared, int64_t tokens, int64_t out_begin,
         int64_t out_end, float* y, int64_t y_stride, const Epilogue& e, void* scratch) {
  const Matrix<F> w(view);
  const uint8_t* x = static_cast<const uint8_t*>(prepared);
  if (tokens >= kGemmTokens) return gemm<F>(view, x, tokens, out_begin, out_end, y, y_stride, e, scratch);
  if (view.packed) return packed_gemv<F>(view, x, tokens, out_begin, out_end, y, y_stride, e);
  const PreparedLayout layout(view.in, Traits<F>::nibbles);
  for (int64_t row = out_begin; row < out_end; row += 4)
    gemv_rows<F>(w, row, out_end - row < 4 ? out_end - row : 4, x, layout, tokens, y, y_stride, e);
}

template <Fmt F>
constexpr LinearKernel kernel(const char* name) {
  constexpr bool n = Traits<F>::nibbles;
  return {name, usable<F>, prepared_bytes_either<n>, prepare<n>, scratch_bytes<F>, run<F>, kPanelRows, packed_bytes<F>, pack<F>, stored<F>};
}

constexpr LinearKernel kKernels[] = {
    kernel<Fmt::q4_0>("q4_0_avx512vnni"), kernel<Fmt::q4_1>("q4_1_avx512vnni"), kernel<Fmt::q5_0>("q5_0_avx512vnni"),
    kernel<Fmt::q5_1>("q5_1_avx512vnni"), kernel<Fmt::q8_0>("q8_0_avx512vnni"), kernel<Fmt::q4_k>("q4_k_avx512vnni"),
    kernel<Fmt::q5_k>("q5_k_avx512vnni"), kernel<Fmt::q6_k>("q6_k_avx512vnni"),
};

}  // namespace

KernelTable linear_block_avx512vnni() { return {kKernels, sizeof kKernels / sizeof kKernels[0]}; }

}  // namespace datong
