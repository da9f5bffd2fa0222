#include "executor/weights.h"

#include <cstring>

#include "core/convert.h"
#include "core/error.h"

namespace datong {
namespace {

// One row of datong/spec/formats.py; dtypes are dt_dtype, 0: no such piece.
struct Format {
  const char* name;
  int32_t codes;
  int32_t block, super_block;
  int32_t scale, min;
  int32_t min_sign;
};

constexpr Format kFormats[] = {
    {"f32", DT_F32, 0, 0, 0, 0, 1},
    {"f16", DT_F16, 0, 0, 0, 0, 1},
    {"bf16", DT_BF16, 0, 0, 0, 0, 1},
    {"q4_0", DT_I4, 32, 0, DT_F16, 0, 1},
    {"q4_1", DT_U4, 32, 0, DT_F16, DT_F16, 1},
    {"q5_0", DT_I8, 32, 0, DT_F16, 0, 1},
    {"q5_1", DT_U8, 32, 0, DT_F16, DT_F16, 1},
    {"q8_0", DT_I8, 32, 0, DT_F16, 0, 1},
    {"q4_k", DT_U4, 32, 256, DT_U8, DT_U8, -1},
    {"q5_k", DT_U8, 32, 256, DT_U8, DT_U8, -1},
    {"q6_k", DT_I8, 16, 256, DT_I8, 0, 1},
};

int64_t dtype_bits(int32_t dtype) {
  switch (dtype) {
    case DT_F32: case DT_I32: return 32;
    case DT_F16: case DT_BF16: return 16;
    case DT_I64: return 64;
    case DT_I4: case DT_U4: return 4;
    default: return 8;
  }
}

const dt_piece& find_piece(const dt_value& value, const char* role, int32_t dtype, int64_t elements) {
  for (int32_t i = 0; i < value.piece_count; ++i) {
    const dt_piece& piece = item(value.pieces, i);
    if (!piece.role || std::strcmp(piece.role, role)) continue;
    const int64_t bytes = (elements * dtype_bits(dtype) + 7) / 8;
    if (piece.dtype != dtype)
      throw Error(DT_INVALID, text("[cpu] piece %s of weight `%s` has dtype %d, format %s wants %d", role, value.name,
                                   piece.dtype, value.format, dtype));
    if (piece.length != bytes)
      throw Error(DT_INVALID, text("[cpu] piece %s of weight `%s` has %lld bytes, its shape wants %lld", role,
                                   value.name, static_cast<long long>(piece.length), static_cast<long long>(bytes)));
    if (!piece.file) throw Error(DT_INVALID, text("[cpu] piece %s of weight `%s` names no file", role, value.name));
    return piece;
  }
  throw Error(DT_INVALID, text("[cpu] weight `%s` of format %s lacks the piece %s", value.name, value.format, role));
}

}  // namespace

Weight read_weight(const dt_value& value, MappedFiles* files) {
  const Format* format = nullptr;
  for (const Format& f : kFormats)
    if (value.format && !std::strcmp(value.format, f.name)) format = &f;
  if (!format)
    throw Error(DT_UNSUPPORTED,
                text("[cpu] weight `%s` has format `%s`, which no kernel reads", value.name, value.format ? value.format : ""));
  if (value.rank != 1 && value.rank != 2)
    throw Error(DT_UNSUPPORTED, text("[cpu] weight `%s` has %d dimensions, 1 or 2 are wanted", value.name, value.rank));
  const int64_t out = value.rank == 2 ? value.dims[0] : 1, in = value.dims[value.rank - 1];
  constexpr int64_t kMost = int64_t{1} << 40;  // elements; keeps every product below in range
  if (out < 1 || in < 1 || out > kMost || in > kMost || out > kMost / in)
    throw Error(DT_INVALID, text("[cpu] weight `%s` has a size that is not positive or too large", value.name));
  const int32_t unit = format->super_block ? format->super_block : format->block;
  if (unit && in % unit)
    throw Error(DT_INVALID, text("[cpu] weight `%s` has rows of %lld, format %s wants a multiple of %d", value.name,
                                 static_cast<long long>(in), format->name, unit));

  Weight weight;
  weight.view = WeightView{};
  WeightView& v = weight.view;
  v.format = format->name;
  v.codes_dtype = format->codes;
  v.out = out;
  v.in = in;
  v.block = format->block;
  v.super_block = format->super_block;
  v.has_min = format->min != 0;
  v.min_sign = format->min_sign;
  if (value.piece_count == 0 && !files) return weight;  // a question, not a compilation: pieces may be left out

  auto take = [&](const char* role, int32_t dtype, int64_t elements) -> const uint8_t* {
    const dt_piece& piece = find_piece(value, role, dtype, elements);
    weight.bytes += piece.length;
    if (!files) return nullptr;
    std::shared_ptr<MappedFile> file = files->open(piece.file);
    weight.files.push_back(file);
    return file->at(piece.offset, piece.length);
  };
  const int64_t count = out * in;
  v.codes = take("codes", format->codes, count);
  if (!format->block) return weight;
  v.scale = take("scale", format->scale, count / format->block);
  if (format->min) v.min = take("min", format->min, count / format->block);
  if (!format->super_block) return weight;
  v.super_scale = reinterpret_cast<const uint16_t*>(take("super_scale", DT_F16, count / format->super_block));
  if (format->min)
    v.super_min = reinterpret_cast<const uint16_t*>(take("super_min", DT_F16, count / format->super_block));
  return weight;
}

std::vector<float> plain_values(const WeightView& view) {
  std::vector<float> values(static_cast<size_t>(view.out * view.in));
  for (size_t i = 0; i < values.size(); ++i) {
    if (view.codes_dtype == DT_F32) {
      std::memcpy(&values[i], view.codes + i * 4, 4);
    } else {
      uint16_t half;
      std::memcpy(&half, view.codes + i * 2, 2);
      values[i] = view.codes_dtype == DT_F16 ? f16_to_f32(half) : bf16_to_f32(half);
    }
  }
  return values;
}

}  // namespace datong
