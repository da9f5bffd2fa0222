// bf16 weights with AVX512_BF16: activations rounded to bf16, products and sums in f32. Twice the products of f32 per
// instruction, but each activation moves by up to 2^-9 of itself, so it runs only where `activations=bf16` asks for it.
#include <immintrin.h>
#include <string.h>

#include "kernels/linear/linear_list.h"

namespace datong {
namespace {

#define UNROLL _Pragma("GCC unroll 32")

inline __mmask32 first32(int64_t n) { return n >= 32 ? ~0u : (1u << n) - 1; }
inline int64_t padded(int64_t in) { return (in + 31) / 32 * 32; }

size_t prepared_bytes(int64_t in) { return static_cast<size_t>(padded(in) * 2); }

void prepare(const float* x, int64_t x_stride, int64_t in, int64_t row_begin, int64_t row_end, void* prepared) {
  for (int64_t t = row_begin; t < row_end; ++t) {
    const float* from = x + t * x_stride;
    uint8_t* to = static_cast<uint8_t*>(prepared) + t * padded(in) * 2;
    for (int64_t i = 0; i < in; i += 32) {
      const __mmask32 m = first32(in - i);
      const __m512 lo = _mm512_maskz_loadu_ps(static_cast<__mmask16>(m), from + i);
      const __m512 hi = _mm512_maskz_loadu_ps(static_cast<__mmask16>(m >> 16), from + i + 16);
      const __m512bh v = _mm512_cvtne2ps_pbh(hi, lo);
      memcpy(to + 2 * i, &v, 64);
    }
  }
}

inline __m512bh load32(const uint8_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
inline __m512bh load32(const uint8_t* p, __mmask32 m) { return (__m512bh)_mm512_maskz_loadu_epi16(m, p); }

constexpr int64_t kAhead = 8192;  // bytes; as in linear_block_avx512_gemv.h

// R rows x T tokens; `w` the first row, `x` the first token.
template <int R, int T>
[[gnu::noinline]] void tile(const uint8_t* w, const uint8_t* x, int64_t in, int64_t t0, int64_t o, float* y,
                            int64_t y_stride, const Epilogue& e) {
  const int64_t ahead = R * in * 2 > kAhead ? R * in * 2 : kAhead;
  __m512 acc[R][T];
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int t = 0; t < T; ++t) acc[r][t] = _mm512_setzero_ps();
  }
  const auto step = [&](int64_t i, __mmask32 m) __attribute__((always_inline)) {
    __m512bh rows[R];
    UNROLL for (int r = 0; r < R; ++r) {
      const uint8_t* p = w + (r * in + i) * 2;
      if (t0 == 0) _mm_prefetch(w + ahead + (i * R + r * 32) * 2, _MM_HINT_T1);
      rows[r] = m == ~0u ? load32(p) : load32(p, m);
    }
    UNROLL for (int t = 0; t < T; ++t) {
      const __m512bh a = load32(x + (t * padded(in) + i) * 2);
      UNROLL for (int r = 0; r < R; ++r) acc[r][t] = _mm512_dpbf16_ps(acc[r][t], rows[r], a);
    }
  };
  int64_t i = 0;
  for (; i + 32 <= in; i += 32) step(i, ~0u);
  if (i < in) step(i, first32(in - i));
  UNROLL for (int t = 0; t < T; ++t) {
    UNROLL for (int r = 0; r < R; ++r) {
      float v = _mm512_reduce_add_ps(acc[r][t]);
      if (e.bias) v += e.bias[o + r];
      if (e.residual) v += e.residual[(t0 + t) * e.residual_stride + o + r];
      y[(t0 + t) * y_stride + o + r] = v;
    }
  }
}

template <int R>
void rows(const uint8_t* w, const uint8_t* x, int64_t in, int64_t t, int64_t end, int64_t o, float* y, int64_t y_stride,
          const Epilogue& e) {
  const int64_t stride = padded(in) * 2;
  for (; t + 4 <= end; t += 4) tile<R, 4>(w, x + t * stride, in, t, o, y, y_stride, e);
  for (; t < end; ++t) tile<R, 1>(w, x + t * stride, in, t, o, y, y_stride, e);
}

constexpr int64_t kTokenBlockBytes = 256 * 1024;  // of activations; a quarter of a Zen 4 core's L2

void run(const WeightView& w, const float*, int64_t, const void* prepared, int64_t tokens, int64_t out_begin,
         int64_t out_end, float* y, int64_t y_stride, const Epilogue& e, void*) {
  const uint8_t* x = static_cast<const uint8_t*>(prepared);
  const int64_t fit = kTokenBlockBytes / (padded(w.in) * 2) / 4 * 4, block = fit < 16 ? 16 : fit;
  for (int64_t t = 0; t < tokens; t += block) {
    const int64_t end = t + block < tokens ? t + block : tokens;
    int64_t o = out_begin;
    for (; o + 4 <= out_end; o += 4) rows<4>(w.codes + o * w.in * 2, x, w.in, t, end, o, y, y_stride, e);
    for (; o < out_end; ++o) rows<1>(w.codes + o * w.in * 2, x, w.in, t, end, o, y, y_stride, e);
  }
}

bool usable(const CpuFeatures& cpu, const WeightView& w) { return cpu.avx512_bf16 && strcmp(w.format, "bf16") == 0; }

constexpr LinearKernel kKernels[] = {{"bf16_avx512bf16", usable, prepared_bytes, prepare, nullptr, run, 4}};

}  // namespace

KernelTable linear_plain_avx512bf16() { return {kKernels, sizeof kKernels / sizeof kKernels[0]}; }

}  // namespace datong
