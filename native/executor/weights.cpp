#include "executor/weights.h"

#include <algorithm>
#include <cstdio>
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
  int32_t tile = 0;      // rows that share a scale; 0: no tile format
  int32_t factor = 0;    // dtype of the one factor on all scales
  bool divides = false;  // by the factor
  bool e2m1 = false;     // 4-bit codes are floats
  bool has_zero = false;
  bool less8 = false;    // 4-bit codes stand for themselves less 8
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
    {"fp8_128", DT_F8E4M3, 128, 0, DT_F32, 0, 1, 128},
    {"fp8_128_bf16", DT_F8E4M3, 128, 0, DT_BF16, 0, 1, 128},
    {"mxfp8", DT_F8E4M3, 32, 0, DT_F8E8M0, 0, 1, 1},
    {"fp8_128_e8m0", DT_F8E4M3, 128, 0, DT_F8E8M0, 0, 1, 128},
    {"mxfp4", DT_U4, 32, 0, DT_F8E8M0, 0, 1, 1, 0, false, true},
    {"nvfp4", DT_U4, 16, 0, DT_F8E4M3, 0, 1, 1, DT_F32, false, true},
    {"nvfp4_div", DT_U4, 16, 0, DT_F8E4M3, 0, 1, 1, DT_F32, true, true},
};

constexpr int32_t kWhole = 1 << 30;  // as block or tile: all columns, all rows

// `<codes>_<group>_<type of the scale>` of datong/spec/formats.py; false: no such name.
bool read_grouped(const char* name, Format& f) {
  char codes[8], group[8], scale[8];
  int end = 0;
  if (std::sscanf(name, "%7[a-z0-9]_%7[a-z0-9]_%7[a-z0-9]%n", codes, group, scale, &end) != 3 || name[end]) return false;
  const auto is = [](const char* a, const char* b) { return !std::strcmp(a, b); };
  f = {name, 0, 0, 0, 0, 0, 1};
  if (is(codes, "i8")) f.codes = DT_I8;
  if (is(codes, "f8")) f.codes = DT_F8E4M3;
  if (is(codes, "u4m8")) f.codes = DT_U4, f.less8 = true;
  if (is(codes, "u4z")) f.codes = DT_U4, f.has_zero = true;
  if (is(codes, "u8z")) f.codes = DT_U8, f.has_zero = true;
  f.scale = is(scale, "f16") ? DT_F16 : is(scale, "bf16") ? DT_BF16 : is(scale, "f32") ? DT_F32 : 0;
  f.tile = is(group, "all") ? kWhole : 1;
  f.block = is(group, "row") || is(group, "all") ? kWhole : is(group, "32") ? 32 : is(group, "64") ? 64 : is(group, "128") ? 128 : 0;
  return f.codes && f.scale && f.block;
}

int64_t dtype_bits(int32_t dtype) {
  switch (dtype) {
    case DT_F32: case DT_I32: return 32;
    case DT_F16: case DT_BF16: return 16;
    case DT_I64: return 64;
    case DT_I4: case DT_U4: case DT_F4E2M1: return 4;
    default: return 8;
  }
}

bool is_swapped(const dt_value& value) {
  return value.struct_size >= offsetof(dt_value, swapped) + sizeof value.swapped && value.swapped;
}

// Rank and dims -> experts (1: no stack), out, in. Checks what can be said about them without pieces.
struct Shape {
  int64_t experts, out, in;
};

Shape read_shape(const dt_value& value, const Format& format) {
  if (value.rank < 1 || value.rank > 3)
    throw Error(DT_UNSUPPORTED, text("[cpu] weight `%s` has %d dimensions, 1 to 3 are wanted", value.name, value.rank));
  const Shape s{value.rank == 3 ? value.dims[0] : 1, value.rank >= 2 ? value.dims[value.rank - 2] : 1,
                value.dims[value.rank - 1]};
  constexpr int64_t kMost = int64_t{1} << 40;  // elements; keeps every product below in range
  if (s.experts < 1 || s.out < 1 || s.in < 1 || s.experts > kMost || s.out > kMost / s.experts ||
      s.in > kMost / s.experts / s.out)
    throw Error(DT_INVALID, text("[cpu] weight `%s` has a size that is not positive or too large", value.name));
  const int32_t unit = format.super_block ? format.super_block : format.block;
  if (unit && s.in % unit && !format.tile)
    throw Error(DT_INVALID, text("[cpu] weight `%s` has rows of %lld, format %s wants a multiple of %d", value.name,
                                 static_cast<long long>(s.in), format.name, unit));
  if (is_swapped(value) && (format.block || value.rank < 2))
    throw Error(DT_INVALID, text("[cpu] weight `%s` is stored swapped, which only plain matrices may be", value.name));
  return s;
}

int64_t tiles_of(const Format& format, int64_t out, int64_t in) {
  return (out + format.tile - 1) / format.tile * ((in + format.block - 1) / format.block);
}

// Takes pieces [begin, end) of a value, which are those of `stack` matrices together.
struct Pieces {
  const dt_value& value;
  int32_t begin, end;
  int64_t stack = 1;

  const dt_piece& find(const char* format, const char* role, int32_t dtype, int64_t elements) const {
    for (int32_t i = begin; i < end; ++i) {
      const dt_piece& piece = item(value.pieces, i);
      if (!piece.role || std::strcmp(piece.role, role)) continue;
      const int64_t bytes = (elements * dtype_bits(dtype) + 7) / 8;
      if (piece.dtype != dtype)
        throw Error(DT_INVALID, text("[cpu] piece %s of weight `%s` has dtype %d, format %s wants %d", role, value.name,
                                     piece.dtype, format, dtype));
      if (piece.length != bytes)
        throw Error(DT_INVALID, text("[cpu] piece %s of weight `%s` has %lld bytes, its shape wants %lld", role,
                                     value.name, static_cast<long long>(piece.length), static_cast<long long>(bytes)));
      if (!piece.file) throw Error(DT_INVALID, text("[cpu] piece %s of weight `%s` names no file", role, value.name));
      return piece;
    }
    throw Error(DT_INVALID, text("[cpu] weight `%s` of format %s lacks the piece %s", value.name, format, role));
  }
};

// Checks the pieces of `view.out` rows and, with `files`, points the view at them.
void take_pieces(const Format& format, const Pieces& pieces, MappedFiles* files, WeightView& view, Weight& weight) {
  const auto take = [&](const char* role, int32_t dtype, int64_t elements) -> const uint8_t* {
    const dt_piece& piece = pieces.find(format.name, role, dtype, elements);
    weight.bytes += piece.length;
    if (!files) return nullptr;
    std::shared_ptr<MappedFile> file = files->open(piece.file);
    const uint8_t* at = file->at(piece.offset, piece.length);
    weight.pieces.push_back({std::move(file), at, piece.length});
    return at;
  };
  const int64_t count = view.out * view.in;
  view.codes = take("codes", format.codes, count);
  if (!format.block) return;
  if (format.tile) {
    const int64_t stack = pieces.stack, out = view.out / stack;
    view.scale = take("scale", format.scale, stack * tiles_of(format, out, view.in));
    if (format.factor) view.factor = take("factor", format.factor, stack);
    if (format.has_zero) view.zero = take("zero", DT_U8, stack * tiles_of(format, out, view.in));
    return;
  }
  view.scale = take("scale", format.scale, count / format.block);
  if (format.min) view.min = take("min", format.min, count / format.block);
  if (!format.super_block) return;
  view.super_scale = reinterpret_cast<const uint16_t*>(take("super_scale", DT_F16, count / format.super_block));
  if (format.min)
    view.super_min = reinterpret_cast<const uint16_t*>(take("super_min", DT_F16, count / format.super_block));
}

// Scales of matrix `index` of a stack: those of each begin anew, whole tiles or not.
void begin_tiles(const Format& format, const WeightView& all, int64_t index, int64_t out, WeightView& view) {
  view.first_row = 0;
  const auto move = [&](const void* p, int64_t count, int32_t dtype) {
    return p ? static_cast<const uint8_t*>(p) + index * count * dtype_bits(dtype) / 8 : nullptr;
  };
  view.scale = move(all.scale, tiles_of(format, out, all.in), format.scale);
  view.factor = move(all.factor, 1, DT_F32);
  view.zero = move(all.zero, tiles_of(format, out, all.in), DT_U8);
}

int32_t roles_of(const Format& format) {
  return format.block ? 2 + (format.min != 0) + (format.super_block != 0) * (1 + (format.min != 0)) + (format.factor != 0) + format.has_zero : 1;
}

// [in, out] -> [out, in], in squares that stay in the L1 cache.
template <class Code>
void transpose(const uint8_t* from, int64_t in, int64_t out, uint8_t* to) {
  constexpr int64_t kSide = 32;
  for (int64_t o = 0; o < out; o += kSide)
    for (int64_t i = 0; i < in; i += kSide)
      for (int64_t r = o; r < std::min(o + kSide, out); ++r)
        for (int64_t c = i; c < std::min(i + kSide, in); ++c)
          std::memcpy(to + (r * in + c) * static_cast<int64_t>(sizeof(Code)),
                      from + (c * out + r) * static_cast<int64_t>(sizeof(Code)), sizeof(Code));
}

// The matrices of a swapped weight, as the kernels want them, in memory of our own.
void swap_back(const Shape& shape, std::vector<WeightView>& views, Weight& weight) {
  const int64_t size = dtype_bits(views[0].codes_dtype) / 8, each = shape.out * shape.in * size;
  weight.transposed.reset(new uint8_t[static_cast<size_t>(each * shape.experts)]);
  for (size_t e = 0; e < views.size(); ++e) {
    uint8_t* to = weight.transposed.get() + static_cast<int64_t>(e) * each;
    if (size == 4) transpose<uint32_t>(views[e].codes, shape.in, shape.out, to);
    else transpose<uint16_t>(views[e].codes, shape.in, shape.out, to);
    views[e].codes = to;
  }
  weight.own_bytes = weight.bytes;
  weight.bytes = 0;
  weight.pieces.clear();
}

}  // namespace

Weight read_weight(const dt_value& value, MappedFiles* files) {
  const Format* format = nullptr;
  for (const Format& f : kFormats)
    if (value.format && !std::strcmp(value.format, f.name)) format = &f;
  Format grouped{};
  if (!format && value.format && read_grouped(value.format, grouped)) format = &grouped;
  if (!format)
    throw Error(DT_UNSUPPORTED,
                text("[cpu] weight `%s` has format `%s`, which no kernel reads", value.name, value.format ? value.format : ""));
  const Shape shape = read_shape(value, *format);

  Weight weight;
  weight.view = WeightView{};
  WeightView& v = weight.view;
  v.format = format == &grouped ? "grouped" : format->name;  // the part is not needed later
  v.codes_dtype = format->e2m1 ? DT_F4E2M1 : format->codes;
  v.less8 = format->less8;
  v.out = shape.out;
  v.in = shape.in;
  v.block = format->block;
  v.super_block = format->super_block;
  v.has_min = format->min != 0;
  v.min_sign = format->min_sign;
  v.tile = format->tile;
  v.scale_dtype = format->scale;
  v.divides = format->divides;
  if (value.piece_count == 0 && !files) return weight;  // a question, not a compilation: pieces may be left out

  const int32_t roles = roles_of(*format);
  std::vector<WeightView> views(static_cast<size_t>(shape.experts), v);
  if (shape.experts > 1 && value.piece_count != roles) {  // apart
    if (value.piece_count != roles * shape.experts)
      throw Error(DT_INVALID, text("[cpu] weight `%s` of %lld experts has %d pieces, %d or that many for each are wanted",
                                   value.name, static_cast<long long>(shape.experts), value.piece_count, roles));
    for (int32_t e = 0; e < static_cast<int32_t>(views.size()); ++e)
      take_pieces(*format, {value, e * roles, (e + 1) * roles}, files, views[static_cast<size_t>(e)], weight);
  } else {
    WeightView all = v;
    all.out = shape.experts * shape.out;
    take_pieces(*format, {value, 0, value.piece_count, shape.experts}, files, all, weight);
    for (size_t e = 0; e < views.size(); ++e) {
      const auto index = static_cast<int64_t>(e);
      views[e] = rows_of(all, index * shape.out, shape.out);
      if (format->tile) begin_tiles(*format, all, index, shape.out, views[e]);
    }
  }
  if (files && is_swapped(value)) swap_back(shape, views, weight);
  weight.view = views[0];
  if (value.rank == 3) weight.experts = std::move(views);
  return weight;
}

WeightView rows_of(const WeightView& view, int64_t begin, int64_t count) {
  WeightView part = view;
  part.out = count;
  const int64_t start = begin * view.in;
  if (view.codes) part.codes += start * dtype_bits(view.codes_dtype) / 8;
  if (view.tile) part.first_row += begin;
  if (!view.block || view.tile) return part;
  const auto move = [&](const void* p) {  // scales and mins are bytes below a super block, else f16
    return p ? static_cast<const uint8_t*>(p) + start / view.block * (view.super_block ? 1 : 2) : nullptr;
  };
  part.scale = move(view.scale);
  part.min = move(view.min);
  if (view.super_scale) part.super_scale += start / view.super_block;
  if (view.super_min) part.super_min += start / view.super_block;
  return part;
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
