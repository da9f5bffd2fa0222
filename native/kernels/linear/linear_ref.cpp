// Portable linear kernels: plain C++ that the compiler may vectorise. Plain formats in f32; block formats on the same
// rounded activations as the fast variants, so that all agree up to rounding.
#include <math.h>

#include "kernels/linear/linear_dequantise.h"
#include "kernels/linear/linear_list.h"
#include "kernels/linear/linear_outliers.h"

namespace datong {
namespace {

inline void store(float v, int64_t t, int64_t o, float* y, int64_t y_stride, const Epilogue& e) {
  if (e.bias) v += e.bias[o];
  if (e.residual) v += e.residual[t * e.residual_stride + o];
  y[t * y_stride + o] = v;
}

// ---- plain formats: a row is converted to f32, then used for every token ---------------------------------------------

template <float (*kAt)(const uint8_t*), int kBytes>
void run_plain(const WeightView& w, const float* x, int64_t x_stride, const void*, int64_t tokens, int64_t out_begin,
               int64_t out_end, float* y, int64_t y_stride, const Epilogue& e, void* scratch) {
  float* row = static_cast<float*>(scratch);
  for (int64_t o = out_begin; o < out_end; ++o) {
    for (int64_t i = 0; i < w.in; ++i) row[i] = kAt(w.codes + (o * w.in + i) * kBytes);
    for (int64_t t = 0; t < tokens; ++t) {
      constexpr int kLanes = 16;  // independent sums: vectorisable without reordering, and less rounding than one
      float sums[kLanes] = {};
      const float* a = x + t * x_stride;
      int64_t i = 0;
      for (; i + kLanes <= w.in; i += kLanes)
        for (int k = 0; k < kLanes; ++k) sums[k] += a[i + k] * row[i + k];
      for (int k = 0; i < w.in; ++i, ++k) sums[k] += a[i] * row[i];
      float sum = 0;
      for (int k = 0; k < kLanes; ++k) sum += sums[k];
      store(sum, t, o, y, y_stride, e);
    }
  }
}

size_t no_bytes(int64_t) { return 0; }

size_t plain_scratch(const WeightView& w, int64_t) { return static_cast<size_t>(round_up(w.in * 4, 64)); }

bool is_f32(const CpuFeatures&, const WeightView& w) { return strcmp(w.format, "f32") == 0; }
bool is_f16(const CpuFeatures&, const WeightView& w) { return strcmp(w.format, "f16") == 0; }
bool is_bf16(const CpuFeatures&, const WeightView& w) { return strcmp(w.format, "bf16") == 0; }

// ---- block formats -----------------------------------------------------------------------------------------------------

// Of one token: n as linear_outliers.h defines it, in plain order and whole; no sums of halves, for weights keep their signs.
struct WholeLayout {
  int64_t blocks, scale, sums, size;  // codes: [blocks * 32] i16; d and d * sum(n): [blocks] f32
  explicit WholeLayout(int64_t in) : blocks(in / kBlock), scale(in * 2), sums(scale + blocks * 4), size(round_up(sums + blocks * 4, 64)) {}
};

size_t whole_bytes(int64_t in) { return static_cast<size_t>(WholeLayout(in).size); }

// The largest |x|, a NaN being larger than anything, and the largest outside its group.
void find_tops(const float* x, bool nibbles, float& top, float& rest) {
  top = rest = 0;
  for (int64_t g = 0; g < 8; ++g) {
    float most = 0;
    for (int64_t i = 0; i < 4; ++i) {
      const float a = fabsf(x[element_of(nibbles, g, i)]);
      if (a > most || a != a) most = a;
      if (most != most) break;
    }
    if (top != top) continue;
    if (most > top || most != most) {
      rest = top;
      top = most;
    } else if (most > rest) {
      rest = most;
    }
  }
}

template <bool kNibbles>
void prepare(const float* x, int64_t x_stride, int64_t in, int64_t row_begin, int64_t row_end, void* prepared) {
  const WholeLayout layout(in);
  for (int64_t t = row_begin; t < row_end; ++t) {
    uint8_t* out = static_cast<uint8_t*>(prepared) + t * layout.size;
    int16_t* n = reinterpret_cast<int16_t*>(out);
    float *scale = reinterpret_cast<float*>(out + layout.scale), *sums = reinterpret_cast<float*>(out + layout.sums);
    const float* block = x + t * x_stride;
    for (int64_t b = 0; b < layout.blocks; ++b) find_tops(block + b * kBlock, kNibbles, scale[b], sums[b]);  // d comes later
    const float limit = outlier_limit(scale, layout.blocks);
    for (int64_t b = 0; b < layout.blocks; ++b, block += kBlock, n += kBlock) {
      const float top = scale[b];
      if (has_outlier(top, sums[b], limit)) {
        OutlierBlock o;
        quantise_outlier(block, top, sums[b], kNibbles, o);
        for (int64_t i = 0; i < kBlock; ++i) n[i] = o.q[i];
        for (int64_t i = 0; i < 4; ++i) n[element_of(kNibbles, o.group, i)] = static_cast<int16_t>(n[element_of(kNibbles, o.group, i)] + 64 * o.e[i]);
        scale[b] = o.d;
        sums[b] = o.d * static_cast<float>(o.first + o.second);
        continue;
      }
      const float inverse = top > kTiny ? 127.0f / top : 0.0f;
      int sum = 0;
      for (int64_t i = 0; i < kBlock; ++i) {
        const float v = nearbyintf(block[i] * inverse);
        n[i] = static_cast<int16_t>(v >= -127.0f && v <= 127.0f ? v : 0.0f);  // infinity * 0 would be no integer
        sum += n[i];
      }
      scale[b] = top <= kTiny ? 0.0f : top / 127.0f;  // a NaN passes
      sums[b] = scale[b] * static_cast<float>(sum);
    }
  }
}

struct RowScratch {  // one row, unpacked
  int16_t* codes;    // [in]
  float *scale, *min;  // [blocks]
  template <Fmt F>
  static RowScratch in_memory(void* p, int64_t in) {
    RowScratch s;
    s.scale = static_cast<float*>(p);
    s.min = s.scale + in / Traits<F>::block;
    s.codes = reinterpret_cast<int16_t*>(s.min + in / Traits<F>::block);
    return s;
  }
};

template <Fmt F>
size_t block_scratch(const WeightView& w, int64_t) {
  return static_cast<size_t>(round_up(w.in * 2 + w.in / Traits<F>::block * 8, 64));
}

template <Fmt F>
float dot(const RowScratch& row, const uint8_t* x, const WholeLayout& layout) {
  const int16_t* n = reinterpret_cast<const int16_t*>(x);
  const float *d = floats_at(x, layout.scale), *sums = floats_at(x, layout.sums);
  constexpr int64_t kPer = kBlock / Traits<F>::block;  // weight blocks per activation block
  float total = 0;
  for (int64_t b = 0; b < layout.blocks; ++b) {
    float block = 0;
    for (int64_t k = b * kPer; k < (b + 1) * kPer; ++k) {
      int32_t sum = 0;
      for (int64_t i = k * Traits<F>::block; i < (k + 1) * Traits<F>::block; ++i) sum += row.codes[i] * n[i];
      block += row.scale[k] * static_cast<float>(sum);
    }
    total += d[b] * block;
    if constexpr (Traits<F>::has_min) total += row.min[b] * sums[b];
  }
  return total;
}

template <Fmt F>
void run_block(const WeightView& view, const float*, int64_t, const void* prepared, int64_t tokens, int64_t out_begin,
               int64_t out_end, float* y, int64_t y_stride, const Epilogue& e, void* scratch) {
  const Matrix<F> w(view);
  const WholeLayout layout(view.in);
  const RowScratch row = RowScratch::in_memory<F>(scratch, view.in);
  for (int64_t o = out_begin; o < out_end; ++o) {
    unpack_codes<F>(w.codes + o * w.codes_stride, view.in, row.codes);
    for (int64_t b = 0; b < w.blocks; ++b) {
      row.scale[b] = level_at<F>(w.scale + o * w.scale_stride, w.super_scale + o * w.super_stride, b);
      if constexpr (Traits<F>::has_min)
        row.min[b] = static_cast<float>(Traits<F>::min_sign) *
                     level_at<F>(w.min + o * w.scale_stride, w.super_min + o * w.super_stride, b);
    }
    for (int64_t t = 0; t < tokens; ++t)
      store(dot<F>(row, static_cast<const uint8_t*>(prepared) + t * layout.size, layout), t, o, y, y_stride, e);
  }
}

template <Fmt F>
bool usable(const CpuFeatures&, const WeightView& w) {
  return fits<F>(w);
}

template <Fmt F>
constexpr LinearKernel block(const char* name) {
  return {name, usable<F>, whole_bytes, prepare<Traits<F>::nibbles>, block_scratch<F>, run_block<F>, 1};
}

constexpr LinearKernel kKernels[] = {
    {"f32_ref", is_f32, no_bytes, nullptr, plain_scratch, run_plain<f32_at, 4>, 1},
    {"f16_ref", is_f16, no_bytes, nullptr, plain_scratch, run_plain<f16_at, 2>, 1},
    {"bf16_ref", is_bf16, no_bytes, nullptr, plain_scratch, run_plain<bf16_at, 2>, 1},
    block<Fmt::q4_0>("q4_0_ref"),
    block<Fmt::q4_1>("q4_1_ref"),
    block<Fmt::q5_0>("q5_0_ref"),
    block<Fmt::q5_1>("q5_1_ref"),
    block<Fmt::q8_0>("q8_0_ref"),
    block<Fmt::q4_k>("q4_k_ref"),
    block<Fmt::q5_k>("q5_k_ref"),
    block<Fmt::q6_k>("q6_k_ref"),
};

}  // namespace

KernelTable linear_ref() { return {kKernels, sizeof kKernels / sizeof kKernels[0]}; }

}  // namespace datong
