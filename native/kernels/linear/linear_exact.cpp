// Block formats with f32 activations: rows are dequantised into scratch and multiplied by the plain f32 kernel. Nothing is
// rounded to 8 bits, so results agree with the definition to f32 rounding, whatever the batch. Slower: it is for comparing
// and for judging what 8-bit activations cost, and is chosen by the option `activations=f32`.
#include "kernels/embedding/embedding.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_list.h"

namespace datong {
namespace {

constexpr int64_t kRows = 16;  // 16 rows of 4096 floats are 256 KiB: they stay in L2 while the tokens pass

size_t no_preparation(int64_t) { return 0; }

// What the f32 kernel sees: `count` rows in scratch.
WeightView in_f32(const float* rows, int64_t count, int64_t in) {
  return {"f32",   1,       count,   in,      0, 0, false, 1, reinterpret_cast<const uint8_t*>(rows),
          nullptr, nullptr, nullptr, nullptr};
}

// The first kernel of each plain table is the one for f32.
template <KernelTable (*plain)()>
size_t exact_scratch(const WeightView& w, int64_t tokens) {
  const LinearKernel& f32 = plain().items[0];
  const size_t inner = f32.scratch_bytes ? f32.scratch_bytes(in_f32(nullptr, kRows, w.in), tokens) : 0;
  return static_cast<size_t>(kRows * w.in) * sizeof(float) + inner;
}

template <KernelTable (*plain)()>
void run_exact(const WeightView& w, const float* x, int64_t x_stride, const void*, int64_t tokens, int64_t out_begin,
               int64_t out_end, float* y, int64_t y_stride, const Epilogue& e, void* scratch) {
  float* rows = static_cast<float*>(scratch);
  for (int64_t o = out_begin; o < out_end; o += kRows) {
    const int64_t count = out_end - o < kRows ? out_end - o : kRows;
    for (int64_t r = 0; r < count; ++r) embedding_row(w, o + r, rows + r * w.in);
    const Epilogue part{e.bias ? e.bias + o : nullptr, e.residual ? e.residual + o : nullptr, e.residual_stride};
    plain().items[0].run(in_f32(rows, count, w.in), x, x_stride, nullptr, tokens, 0, count, y + o, y_stride, part,
                         rows + kRows * w.in);
  }
}

[[maybe_unused]] bool with_avx512(const CpuFeatures& cpu, const WeightView& w) { return cpu.avx512 && w.block > 0; }
[[maybe_unused]] bool with_avx2(const CpuFeatures& cpu, const WeightView& w) { return cpu.avx2 && w.block > 0; }
[[maybe_unused]] bool with_neon(const CpuFeatures& cpu, const WeightView& w) { return cpu.neon && w.block > 0; }
bool always(const CpuFeatures&, const WeightView& w) { return w.block > 0; }

template <KernelTable (*plain)()>
constexpr LinearKernel exact(const char* name, bool (*usable)(const CpuFeatures&, const WeightView&)) {
  return {name, usable, no_preparation, nullptr, exact_scratch<plain>, run_exact<plain>, kRows};
}

constexpr LinearKernel kKernels[] = {
#if DATONG_X86
    exact<linear_plain_avx512>("exact_avx512", with_avx512),
    exact<linear_plain_avx2>("exact_avx2", with_avx2),
#elif DATONG_ARM64
    exact<linear_plain_neon>("exact_neon", with_neon),
#endif
    exact<linear_ref>("exact_ref", always),
};

}  // namespace

std::span<const LinearKernel> exact_linear_kernels() { return kKernels; }

}  // namespace datong
