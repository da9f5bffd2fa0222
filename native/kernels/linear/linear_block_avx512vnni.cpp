// Block formats with AVX-512 VNNI: activations to int8, then few tokens by rows, many tokens by panels.
#include "kernels/linear/linear_block_avx512_gemm.h"
#include "kernels/linear/linear_block_avx512_gemv.h"
#include "kernels/linear/linear_list.h"

namespace datong {
namespace {

// From this many tokens on, unpacking a panel pays.
constexpr int64_t kGemmTokens = 7;

inline __m512i abs_bits(__m512 v) { return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff)); }

inline __m128i max_to128(__m512i v) {
  const __m256i half = _mm256_max_epu32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
  return _mm_max_epu32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// Bit patterns of max|x| of four blocks. Compared as integers, a NaN is the largest and is not lost.
inline __m128 max_abs4(const __m512 v[8]) {
  __m128i m[4];
  UNROLL for (int i = 0; i < 4; ++i) m[i] = max_to128(_mm512_max_epu32(abs_bits(v[2 * i]), abs_bits(v[2 * i + 1])));
  const __m128i ab = _mm_max_epu32(_mm_unpacklo_epi32(m[0], m[1]), _mm_unpackhi_epi32(m[0], m[1]));
  const __m128i cd = _mm_max_epu32(_mm_unpacklo_epi32(m[2], m[3]), _mm_unpackhi_epi32(m[2], m[3]));
  return _mm_castsi128_ps(_mm_max_epu32(_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd)));
}

// Four blocks (128 elements), of which `count` elements exist.
template <bool kNibbles>
inline void prepare4(const float* x, int64_t count, int64_t b, const PreparedLayout& layout, uint8_t* out) {
  __m512 v[8];
  UNROLL for (int i = 0; i < 8; ++i)
    v[i] = _mm512_maskz_loadu_ps(first16(count - 16 * i < 0 ? 0 : count - 16 * i), x + 16 * i);
  const __m128 top = max_abs4(v), d = _mm_div_ps(top, _mm_set1_ps(127.0f));
  const __mmask8 normal = _mm_cmp_ps_mask(top, _mm_set1_ps(kTiny), _CMP_GT_OQ);
  const __m128 inverse = _mm_maskz_div_ps(normal, _mm_set1_ps(127.0f), top);
  // A block of tiny values gets d = 0; a NaN stays in d.
  const __m128 scale = _mm_maskz_mov_ps(_mm_cmp_ps_mask(top, _mm_set1_ps(kTiny), _CMP_NLE_UQ), d);
  __m128i q[8];
  UNROLL for (int i = 0; i < 4; ++i) {
    const __m512 k = _mm512_permutexvar_ps(_mm512_set1_epi32(i), _mm512_castps128_ps512(inverse));
    q[2 * i] = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v[2 * i], k)));
    q[2 * i + 1] = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v[2 * i + 1], k)));
  }
  __m512i s[2];  // sums of 16 in every lane of their quarter
  __m512i codes[2];
  UNROLL for (int i = 0; i < 2; ++i) {
    const __m256i lo = _mm256_set_m128i(q[4 * i + 1], q[4 * i]), hi = _mm256_set_m128i(q[4 * i + 3], q[4 * i + 2]);
    codes[i] = _mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1);
    const __m512i four = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), codes[i]);
    const __m512i eight = _mm512_add_epi32(four, _mm512_shuffle_epi32(four, _MM_PERM_CDAB));
    s[i] = _mm512_add_epi32(eight, _mm512_shuffle_epi32(eight, _MM_PERM_BADC));
  }
  const __m512i evens = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 16, 8, 0);  // first half of a block
  const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(4));
  const __m128i first = _mm512_castsi512_si128(_mm512_permutex2var_epi32(s[0], evens, s[1]));
  const __m128i second = _mm512_castsi512_si128(_mm512_permutex2var_epi32(s[0], odds, s[1]));
  const __m128i sum = _mm_add_epi32(first, second);
  _mm_storeu_ps(reinterpret_cast<float*>(out + layout.scale) + b, scale);
  _mm_storeu_ps(reinterpret_cast<float*>(out + layout.sums) + b, _mm_mul_ps(scale, _mm_cvtepi32_ps(sum)));
  int32_t* bias = reinterpret_cast<int32_t*>(out + layout.bias);
  if constexpr (kNibbles) {
    UNROLL for (int half = 0; half < 2; ++half) {
      const __m256i a = _mm512_cvtepi16_epi8(half ? _mm512_srli_epi16(codes[0], 8) : codes[0]);
      const __m256i c = _mm512_cvtepi16_epi8(half ? _mm512_srli_epi16(codes[1], 8) : codes[1]);
      _mm512_storeu_si512(out + b * 32 + half * 64, _mm512_inserti64x4(_mm512_castsi256_si512(a), c, 1));
    }
    const __m128i eight = _mm_slli_epi32(sum, 3);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bias + b), _mm_sub_epi32(_mm_setzero_si128(), eight));
  } else {
    _mm512_storeu_si512(out + b * 32, codes[0]);
    _mm512_storeu_si512(out + b * 32 + 64, codes[1]);
    const __m128i lo = _mm_sub_epi32(_mm_setzero_si128(), _mm_slli_epi32(_mm_unpacklo_epi32(first, second), 7));
    const __m128i hi = _mm_sub_epi32(_mm_setzero_si128(), _mm_slli_epi32(_mm_unpackhi_epi32(first, second), 7));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bias + 2 * b), lo);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bias + 2 * b + 4), hi);
  }
}

template <bool kNibbles>
void prepare(const float* x, int64_t x_stride, int64_t in, int64_t row_begin, int64_t row_end, void* prepared) {
  const PreparedLayout layout(in, kNibbles);
  for (int64_t t = row_begin; t < row_end; ++t) {
    uint8_t* out = static_cast<uint8_t*>(prepared) + t * layout.size;
    int64_t b = 0;
    for (; b < layout.blocks; b += 4) prepare4<kNibbles>(x + t * x_stride + b * 32, in - b * 32, b, layout, out);
    for (; b < round_up(layout.blocks, 16); b += 4) {  // padding
      memset(out + layout.scale + b * 4, 0, 16);
      memset(out + layout.sums + b * 4, 0, 16);
      memset(out + layout.bias + b * (kNibbles ? 4 : 8), 0, kNibbles ? 16 : 32);
    }
  }
}

template <Fmt F>
bool usable(const CpuFeatures& cpu, const WeightView& w) {
  return cpu.avx512_vnni && fits<F>(w);
}

template <Fmt F>
size_t scratch_bytes(const WeightView& w, int64_t tokens) {
  return tokens < kGemmTokens ? 0 : static_cast<size_t>(Panel::bytes<F>(w.in));
}

template <Fmt F>
void run(const WeightView& view, const float*, int64_t, const void* prepared, int64_t tokens, int64_t out_begin,
         int64_t out_end, float* y, int64_t y_stride, const Epilogue& e, void* scratch) {
  const Matrix<F> w(view);
  const PreparedLayout layout(view.in, Traits<F>::nibbles);
  const uint8_t* x = static_cast<const uint8_t*>(prepared);
  int64_t row = out_begin;
  if (tokens < kGemmTokens) {
    for (; row + 4 <= out_end; row += 4) gemv_rows<F, 4>(w, row, x, layout, tokens, y, y_stride, e);
    for (; row < out_end; ++row) gemv_rows<F, 1>(w, row, x, layout, tokens, y, y_stride, e);
    return;
  }
  const Panel panel = Panel::in_scratch<F>(scratch, view.in);
  for (; row < out_end; row += 16) {
    const int64_t count = out_end - row < 16 ? out_end - row : 16;
    unpack_panel<F>(w, row, count, panel);
    gemm_panel<kTileOf<F>>(panel, x, layout, tokens, row, first16(count), y, y_stride, e);
  }
}

template <Fmt F>
constexpr LinearKernel kernel(const char* name) {
  constexpr bool n = Traits<F>::nibbles;
  return {name, usable<F>, prepared_bytes<n>, prepare<n>, scratch_bytes<F>, run<F>, 16};
}

constexpr LinearKernel kKernels[] = {
    kernel<Fmt::q4_0>("q4_0_avx512vnni"), kernel<Fmt::q4_1>("q4_1_avx512vnni"), kernel<Fmt::q5_0>("q5_0_avx512vnni"),
    kernel<Fmt::q5_1>("q5_1_avx512vnni"), kernel<Fmt::q8_0>("q8_0_avx512vnni"), kernel<Fmt::q4_k>("q4_k_avx512vnni"),
    kernel<Fmt::q5_k>("q5_k_avx512vnni"), kernel<Fmt::q6_k>("q6_k_avx512vnni"),
};

}  // namespace

KernelTable linear_block_avx512vnni() { return {kKernels, sizeof kKernels / sizeof kKernels[0]}; }

}  // namespace datong
