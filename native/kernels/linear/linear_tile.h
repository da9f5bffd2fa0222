// Tile formats: rows are widened to f32 in scratch, a few at a time, and multiplied by the plain f32 kernel of the same
// instruction set. Included by one file per instruction set, which the compiler vectorises for it.
#pragma once

#include <stdint.h>
#include <string.h>

#include "datong/backend.h"
#include "kernels/linear/linear_list.h"

namespace datong {
namespace {

inline float as_float(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

// e4m3fn (OCP OFP8 1.0): bias 7, no infinities, 0x7f is NaN. Subnormals by way of an integer: some processors are slow at
// subnormal floats.
inline float e4m3(uint32_t code) {
  const uint32_t size = code & 0x7f, sign = (code & 0x80) << 24;
  const float small = static_cast<float>(static_cast<int32_t>(size)) * (1.0f / 512);
  uint32_t bits, tiny;
  memcpy(&tiny, &small, 4);
  bits = size < 8 ? tiny : (size << 20) + (120u << 23);
  bits = size == 0x7f ? 0x7fc00000u : bits;
  return as_float(bits | sign);
}

// e2m1 (OCP MX 1.0): 0 0.5 1 1.5 2 3 4 6 and their negatives.
inline float e2m1(uint32_t code) {
  const uint32_t size = code & 7, sign = (code & 8) << 28;
  const uint32_t bits = size < 2 ? (size ? 0x3f000000u : 0u) : (size << 22) + (126u << 23);
  return as_float(bits | sign);
}

// Power of two (OCP MX 1.0): 2^(code - 127), 255 is NaN.
inline float e8m0(uint32_t code) {
  return as_float(code == 0 ? 0x00400000u : code == 255 ? 0x7fc00000u : code << 23);
}

inline float half(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, size = h & 0x7fff;
  if (size >= 0x7c00) return as_float(sign | 0x7f800000u | (size & 0x3ff) << 13);
  if (size >= 0x400) return as_float(sign | ((size << 13) + (112u << 23)));
  const float v = static_cast<float>(size) * 0x1p-24f;
  return sign ? -v : v;
}

inline float scale_at(const WeightView& w, int64_t i) {
  const uint8_t* p = static_cast<const uint8_t*>(w.scale);
  float s = 0;
  uint16_t two = 0;
  switch (w.scale_dtype) {
    case DT_F32: memcpy(&s, p + 4 * i, 4); break;
    case DT_BF16: memcpy(&two, p + 2 * i, 2); s = as_float(static_cast<uint32_t>(two) << 16); break;
    case DT_F16: memcpy(&two, p + 2 * i, 2); s = half(two); break;
    case DT_F8E8M0: s = e8m0(p[i]); break;
    case DT_F8E4M3: s = e4m3(p[i]); break;
  }
  if (!w.factor) return s;
  float factor;
  memcpy(&factor, w.factor, 4);
  return w.divides ? s / factor : s * factor;
}

template <int32_t kCodes>
inline float code_value(uint32_t code) {
  switch (kCodes) {
    case DT_F8E4M3: return e4m3(code);
    case DT_F4E2M1: return e2m1(code);
    case DT_I4: return static_cast<float>(static_cast<int32_t>(code ^ 8) - 8);
    case DT_I8: return static_cast<float>(static_cast<int8_t>(code));
    default: return static_cast<float>(static_cast<int32_t>(code));
  }
}

// y[0 .. n) = (codes[begin .. begin + n) - zero) * scale; begin is even where codes are nibbles.
template <int32_t kCodes>
inline void widen(const uint8_t* codes, int64_t begin, int64_t n, float zero, float scale, float* y) {
  if constexpr (kCodes == DT_F4E2M1 || kCodes == DT_I4 || kCodes == DT_U4) {
    codes += begin / 2;
    for (int64_t i = 0; i < n / 2; ++i) {
      y[2 * i] = (code_value<kCodes>(codes[i] & 15u) - zero) * scale;
      y[2 * i + 1] = (code_value<kCodes>(codes[i] >> 4) - zero) * scale;
    }
    if (n % 2) y[n - 1] = (code_value<kCodes>(codes[n / 2] & 15u) - zero) * scale;
  } else {
    codes += begin;
    for (int64_t i = 0; i < n; ++i) y[i] = (code_value<kCodes>(codes[i]) - zero) * scale;
  }
}

template <int32_t kCodes>
void tile_row_of(const WeightView& w, int64_t row, float* y) {
  constexpr int kBits = kCodes == DT_F4E2M1 || kCodes == DT_I4 || kCodes == DT_U4 ? 4 : 8;
  const uint8_t* codes = w.codes + row * w.in * kBits / 8;
  const int64_t blocks = (w.in + w.block - 1) / w.block, first = (w.first_row + row) / w.tile * blocks;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = b * w.block, n = w.in - begin < w.block ? w.in - begin : w.block;
    const float zero = w.zero ? static_cast<float>(w.zero[first + b]) : w.less8 ? 8.0f : 0.0f;
    widen<kCodes>(codes, begin, n, zero, scale_at(w, first + b), y + begin);
  }
}

// y [in] = row `row`, 0 <= row < w.out.
inline void tile_row(const WeightView& w, int64_t row, float* y) {
  switch (w.codes_dtype) {
    case DT_F8E4M3: return tile_row_of<DT_F8E4M3>(w, row, y);
    case DT_F4E2M1: return tile_row_of<DT_F4E2M1>(w, row, y);
    case DT_I4: return tile_row_of<DT_I4>(w, row, y);
    case DT_U4: return tile_row_of<DT_U4>(w, row, y);
    case DT_I8: return tile_row_of<DT_I8>(w, row, y);
    case DT_U8: return tile_row_of<DT_U8>(w, row, y);
  }
}

constexpr int64_t kTileRows = 16;  // 16 rows of 4096 floats are 256 KiB: they stay in L2 while the tokens pass
constexpr int64_t kFewRows = 4;    // for few tokens, which pass at once: so they stay nearer
constexpr int64_t kFewTokens = 4;

inline WeightView widened(const float* rows, int64_t count, int64_t in) {
  WeightView view{};
  view.format = "f32";
  view.codes_dtype = DT_F32;
  view.out = count;
  view.in = in;
  view.min_sign = 1;
  view.codes = reinterpret_cast<const uint8_t*>(rows);
  return view;
}

inline size_t unprepared(int64_t) { return 0; }

// The first kernel of each plain table is the one for f32.
template <KernelTable (*plain)()>
size_t tile_scratch(const WeightView& w, int64_t tokens) {
  const LinearKernel& f32 = plain().items[0];
  const size_t inner = f32.scratch_bytes ? f32.scratch_bytes(widened(nullptr, kTileRows, w.in), tokens) : 0;
  return static_cast<size_t>(kTileRows * w.in) * sizeof(float) + inner;
}

template <KernelTable (*plain)()>
void run_tile(const WeightView& w, const float* x, int64_t x_stride, const void*, int64_t tokens, int64_t out_begin,
              int64_t out_end, float* y, int64_t y_stride, const Epilogue& e, void* scratch) {
  float* rows = static_cast<float*>(scratch);
  const int64_t step = tokens <= kFewTokens ? kFewRows : kTileRows;
  for (int64_t o = out_begin; o < out_end; o += step) {
    const int64_t count = out_end - o < step ? out_end - o : step;
    for (int64_t r = 0; r < count; ++r) tile_row(w, o + r, rows + r * w.in);
    const Epilogue part{e.bias ? e.bias + o : nullptr, e.residual ? e.residual + o : nullptr, e.residual_stride};
    plain().items[0].run(widened(rows, count, w.in), x, x_stride, nullptr, tokens, 0, count, y + o, y_stride, part,
                         rows + kTileRows * w.in);
  }
}

template <KernelTable (*plain)()>
constexpr LinearKernel tile_kernel(const char* name, bool (*usable)(const CpuFeatures&, const WeightView&)) {
  return {name, usable, unprepared, nullptr, tile_scratch<plain>, run_tile<plain>, kTileRows};
}

}  // namespace
}  // namespace datong
