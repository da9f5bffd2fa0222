// Contract of the linear kernels: y = x @ dequantise(w).T (+ bias) (+ residual), weights as they lie in the file.
//
// The executor splits `out` among threads and calls `run` once per thread; kernels know nothing of threads. Kernels do
// not allocate and do not throw. Activations and results are f32, row-major; weight pointers have any alignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/cpu_features.h"

namespace datong {

// A weight `[out, in]` as stored (datong/spec/formats.py). With nb = in / block, ns = in / super_block:
//
//   codes        plain: [out, in] f32|f16|bf16;  blocks: [out, nb, block] i4 u4 (low nibble first) i8 u8
//   scale, min   one level: [out, nb] f16;  two levels: [out, ns, super_block / block] u8 or i8
//   super_*      [out, ns] f16
//
// w = scale * codes + min_sign * min.  Pointers of absent pieces are null.
//
// Tile formats: `tile` rows of `block` columns share a scale, the last tiles may be partial:
//
//   codes        [out, in] f8e4m3, or f4e2m1 i4 u4 (low nibble first) i8 u8
//   scale        [ceil(all rows / tile), ceil(in / block)] of scale_dtype; the view begins at row `first_row` of them
//   zero         like scale, u8
//   factor       [1] f32: scales are multiplied with it, or divided by it
//
// w = (codes - zero) * (scale * factor), rounded to f32 after each operation.
struct WeightView {
  const char* format;   // a name of datong/spec/formats.py
  int32_t codes_dtype;  // dt_dtype
  int64_t out, in;
  int32_t block, super_block;  // 0: plain; 0: one level
  bool has_min;
  int32_t min_sign;  // +1 or -1
  const uint8_t* codes;
  const void* scale;
  const void* min;
  const uint16_t* super_scale;
  const uint16_t* super_min;
  int32_t tile = 0;  // 0: no tile format
  int32_t scale_dtype = 0;
  int64_t first_row = 0;
  const uint8_t* zero = nullptr;
  const uint8_t* factor = nullptr;  // of any alignment
  bool divides = false;             // by the factor
  bool less8 = false;               // every zero is 8
  const uint8_t* packed = nullptr;  // what LinearKernel::pack made of all rows; only that kernel may be given the view
};

// Added to each result; either may be null.
struct Epilogue {
  const float* bias;        // [out]
  const float* residual;    // [tokens, residual_stride]; may be y itself
  int64_t residual_stride;  // floats
};

// Rows are prepared in groups: `prepare` is called with row_begin a multiple of this, and with row_end a multiple of it
// or the number of tokens; the buffer has room for a whole last group. So a kernel may interleave a group's rows.
constexpr int64_t kPrepareRows = 8;

struct LinearKernel {
  const char* name;  // format and ISA: `q4_1_avx512vnni`

  // False for a processor or shape that it cannot do.
  bool (*usable)(const CpuFeatures&, const WeightView&);

  // Bytes per token of prepared activations, a multiple of 64; 0: x is used as it is (then `prepare` may be null).
  size_t (*prepared_bytes)(int64_t in);

  // Quantise rows [row_begin, row_end) of x. `prepared` is the start of the whole buffer (row 0), 64-byte aligned.
  // Kernels with the same `prepare` share prepared activations.
  void (*prepare)(const float* x, int64_t x_stride, int64_t in, int64_t row_begin, int64_t row_end, void* prepared);

  // Scratch per thread for `run`, 64-byte aligned; may be null: none. Called at compile time with the largest count.
  size_t (*scratch_bytes)(const WeightView&, int64_t tokens);

  // y[t, o] for all tokens and o in [out_begin, out_end). Strides in floats. The view's rows from out_end on are those that
  // the same thread asks for next, if any: a kernel may fetch them into its caches.
  void (*run)(const WeightView&, const float* x, int64_t x_stride, const void* prepared, int64_t tokens,
              int64_t out_begin, int64_t out_end, float* y, int64_t y_stride, const Epilogue&, void* scratch);

  int64_t out_multiple;  // out_begin is a multiple of this; out_end too, unless it is `out`

  // A layout of the kernel's own, which it runs faster than the stored one; null: none. `packed` has room for
  // packed_bytes(w), 64-byte aligned; `pack` fills in the part of rows [row_begin, row_end), bounds as out_begin, out_end.
  // A view with `packed` needs the stored pieces no more.
  size_t (*packed_bytes)(const WeightView&) = nullptr;
  void (*pack)(const WeightView&, int64_t row_begin, int64_t row_end, uint8_t* packed) = nullptr;

  // Columns [column, column + columns) of one row of a packed matrix, as they were stored, in `room`. Both are multiples of
  // the format's super block, or of its block if it has none; columns <= kStoredColumns.
  WeightView (*stored)(const WeightView&, int64_t row, int64_t column, int64_t columns, uint8_t* room) = nullptr;
};

constexpr int64_t kStoredColumns = 256, kStoredRoom = 512;

// Best first; the reference of each format last, which works everywhere.
std::span<const LinearKernel> linear_kernels();

// For block formats with activations left in f32, best first: linear_exact.cpp.
std::span<const LinearKernel> exact_linear_kernels();

// With activations rounded to bf16; empty where no processor of this architecture has instructions for it.
std::span<const LinearKernel> bf16_linear_kernels();

}  // namespace datong
