#include "executor/value.h"

#include <cstring>

#include "core/error.h"

namespace datong {
namespace {

constexpr int64_t kMostWidth = int64_t{1} << 32;  // elements of one row

const char* or_empty(const char* s) { return s ? s : ""; }

}  // namespace

Value read_value(const dt_value& v, MappedFiles* files) {
  if (v.struct_size < offsetof(dt_value, arena_size) + sizeof v.arena_size)
    throw Error(DT_INVALID, text("[cpu] a dt_value has struct_size %zu, version 1.0 has %zu", v.struct_size, sizeof v));
  if (!v.name) throw Error(DT_INVALID, "[cpu] a value has no name");
  Value out;
  out.name = v.name;
  out.dtype = v.dtype;
  auto bad = [&](const char* what) { throw Error(DT_INVALID, text("[cpu] value `%.200s` %s", v.name, what)); };
  if (v.kind < DT_INPUT || v.kind > DT_TEMP) bad("has an unknown kind");
  out.kind = static_cast<dt_kind>(v.kind);
  if (v.rank < 0 || v.rank > 8 || (v.rank && !v.dims)) bad("has a rank outside 0 to 8, or no dims");
  if (out.kind == DT_WEIGHT) {
    if (v.piece_count < 0 || (v.piece_count && !v.pieces)) bad("has a bad number of pieces");
    out.weight = read_weight(v, files);
    out.dims.assign(v.dims, v.dims + v.rank);
    out.width = out.weight.view.out * out.weight.view.in;
    if (files && v.rank == 1 && !out.weight.view.block) out.floats = plain_values(out.weight.view);
    return out;
  }
  if (out.dtype != DT_F32 && out.dtype != DT_I64) bad("is neither f32 nor i64");
  int32_t first = 0;
  if (v.rank && (v.dims[0] == DT_DIM_TOKENS || v.dims[0] == DT_DIM_ROWS)) {
    out.lead = v.dims[0] == DT_DIM_TOKENS ? Lead::tokens : Lead::rows;
    first = 1;
  }
  for (int32_t i = first; i < v.rank; ++i) {
    if (v.dims[i] < 1 || v.dims[i] > kMostWidth / out.width) bad("has a dimension that is not positive or too large");
    out.dims.push_back(v.dims[i]);
    out.width *= v.dims[i];
  }
  if (out.kind == DT_CONST) {
    if (out.lead != Lead::none) bad("is a constant whose size depends on the step");
    if (v.data && out.dtype == DT_F32) {
      out.floats.resize(static_cast<size_t>(out.width));
      std::memcpy(out.floats.data(), v.data, out.floats.size() * 4);
    } else if (v.data) {
      out.ints.resize(static_cast<size_t>(out.width));
      std::memcpy(out.ints.data(), v.data, out.ints.size() * 8);
    } else if (files) {
      bad("is a constant without data");
    }
    return out;
  }
  if (out.lead == Lead::none) bad("has neither tokens nor rows as its first dimension");
  if (v.arena < 0 || v.arena > DT_ROWS) bad("names an unknown arena");
  if (v.arena) {
    out.arena = v.arena == DT_TOKENS ? Lead::tokens : Lead::rows;
    out.offset = v.arena_offset;
    out.size = v.arena_size;
    if (out.arena != out.lead) bad("lies in the arena of the other kind of rows");
    if (out.offset < 0 || out.offset % 8 || out.size < out.row_bytes())
      bad("has an arena slot that is too small, negative or not a multiple of 8");
  }
  return out;
}

NodeView::NodeView(const dt_node& node, const std::vector<Value>& values) : values_(&values) {
  if (node.struct_size < offsetof(dt_node, attrs) + sizeof node.attrs)
    throw Error(DT_INVALID, text("[cpu] a dt_node has struct_size %zu, version 1.0 has %zu", node.struct_size, sizeof node));
  if (!node.op || !node.name) throw Error(DT_INVALID, "[cpu] a node has no op or no name");
  op_ = node.op;
  name_ = node.name;
  constexpr int32_t kMost = 4096;  // inputs, outputs or attributes of one node
  if (node.input_count < 0 || node.output_count < 0 || node.attr_count < 0 || node.input_count > kMost ||
      node.output_count > kMost || node.attr_count > kMost || (node.input_count && !node.inputs) ||
      (node.output_count && !node.outputs) || (node.attr_count && !node.attrs))
    invalid("has bad counts of inputs, outputs or attributes");
  auto check = [&](int32_t index, int32_t least) {
    if (index < least || index >= static_cast<int64_t>(values.size()))
      invalid(text("refers to value %d of %zu", index, values.size()));
    return index;
  };
  for (int32_t i = 0; i < node.input_count; ++i) inputs_.push_back(check(node.inputs[i], -1));
  for (int32_t i = 0; i < node.output_count; ++i) outputs_.push_back(check(node.outputs[i], 0));
  for (int32_t i = 0; i < node.attr_count; ++i) {
    const dt_attr& a = item(node.attrs, i);
    if (!a.name || (a.kind == 's' && !a.s)) invalid("has an attribute without name or text");
    attrs_[a.name] = {a.kind, a.i, a.f, or_empty(a.kind == 's' ? a.s : nullptr)};
  }
}

void NodeView::refuse(const std::string& reason) const {
  throw Error(DT_UNSUPPORTED, text("[%s] node `%.120s`: ", op_.c_str(), name_.c_str()) + reason);
}

void NodeView::invalid(const std::string& reason) const {
  throw Error(DT_INVALID, text("[%s] node `%.120s` ", op_.c_str(), name_.c_str()) + reason);
}

void NodeView::expect_counts(int inputs_min, int inputs_max, int outputs) const {
  if (input_count() < inputs_min || input_count() > inputs_max)
    invalid(text("has %d inputs, %d to %d are wanted", input_count(), inputs_min, inputs_max));
  if (output_count() != outputs) invalid(text("has %d outputs, %d are wanted", output_count(), outputs));
}

const Value& NodeView::input(int i) const {
  if (!present(i)) invalid(text("lacks input %d", i));
  return (*values_)[static_cast<size_t>(input_index(i))];
}

const Value& NodeView::activation(int i, int64_t width) const {
  const Value& v = input(i);
  if ((v.kind != DT_TEMP && v.kind != DT_INPUT) || v.dtype != DT_F32)
    invalid(text("wants an f32 activation as input %d, `%.120s` came", i, v.name.c_str()));
  if (width && v.width != width)
    invalid(text("wants width %lld for input %d, `%.120s` has %lld", static_cast<long long>(width), i, v.name.c_str(),
                 static_cast<long long>(v.width)));
  return v;
}

const Value& NodeView::integers(int i) const {
  const Value& v = input(i);
  if ((v.kind != DT_TEMP && v.kind != DT_INPUT) || v.dtype != DT_I64 || v.width != 1)
    invalid(text("wants i64 numbers, one per row, as input %d, `%.120s` came", i, v.name.c_str()));
  return v;
}

const Value& NodeView::matrix(int i) const {
  const Value& v = input(i);
  if (v.kind != DT_WEIGHT || v.dims.size() != 2)
    invalid(text("wants a weight matrix as input %d, `%.120s` came", i, v.name.c_str()));
  return v;
}

const Value& NodeView::stack(int i, int64_t experts, int64_t out, int64_t in) const {
  const Value& v = input(i);
  if (v.kind != DT_WEIGHT || v.dims.size() != 3 || v.dims[0] != experts || (out && v.dims[1] != out) ||
      (in && v.dims[2] != in))
    invalid(text("wants weights [%lld, %lld, %lld] (0: any) as input %d, `%.120s` came", static_cast<long long>(experts),
                 static_cast<long long>(out), static_cast<long long>(in), i, v.name.c_str()));
  return v;
}

const Value* NodeView::plain_rows(int i, int64_t rows, int64_t n) const {
  if (!present(i)) return nullptr;
  const Value& v = input(i);
  if ((v.kind != DT_WEIGHT && v.kind != DT_CONST) || v.dims != std::vector<int64_t>{rows, n} || v.dtype != DT_F32)
    invalid(text("wants a [%lld, %lld] as input %d, `%.120s` came", static_cast<long long>(rows),
                 static_cast<long long>(n), i, v.name.c_str()));
  if (v.kind == DT_WEIGHT && v.weight.view.block)
    refuse(text("`%.120s` has block format %s, f32, f16 or bf16 is wanted", v.name.c_str(), v.weight.view.format));
  return &v;
}

const Value* NodeView::plain_vector(int i, int64_t n) const {
  if (!present(i)) return nullptr;
  const Value& v = input(i);
  if ((v.kind != DT_WEIGHT && v.kind != DT_CONST) || v.dims.size() != 1 || v.width != n || v.dtype != DT_F32)
    invalid(text("wants a vector of %lld as input %d, `%.120s` came", static_cast<long long>(n), i, v.name.c_str()));
  if (v.kind == DT_WEIGHT && v.weight.view.block)
    refuse(text("vector `%.120s` has block format %s, f32, f16 or bf16 is wanted", v.name.c_str(), v.weight.view.format));
  return &v;
}

int64_t NodeView::vector_length(int i) const {
  const Value& v = input(i);
  if ((v.kind != DT_WEIGHT && v.kind != DT_CONST) || v.dims.size() != 1)
    invalid(text("wants a vector as input %d, `%.120s` came", i, v.name.c_str()));
  return v.width;
}

const Value& NodeView::result(int i, Lead lead, int64_t width) const {
  const Value& v = (*values_)[static_cast<size_t>(output_index(i))];
  if (v.kind != DT_TEMP || v.dtype != DT_F32) invalid(text("writes `%.120s`, which is no f32 temp", v.name.c_str()));
  if (v.lead != lead || v.width != width)
    invalid(text("makes [%s, %lld] as output %d, `%.120s` is declared [%s, %lld]", lead == Lead::rows ? "R" : "T",
                 static_cast<long long>(width), i, v.name.c_str(), v.lead == Lead::rows ? "R" : "T",
                 static_cast<long long>(v.width)));
  return v;
}

const NodeView::Attr* NodeView::find(const char* attr) const {
  auto at = attrs_.find(attr);
  return at == attrs_.end() ? nullptr : &at->second;
}

int64_t NodeView::integer(const char* attr) const {
  const Attr* a = find(attr);
  if (!a || a->kind != 'i') invalid(text("lacks the integer attribute `%s`", attr));
  return a->i;
}

int64_t NodeView::integer_or(const char* attr, int64_t otherwise) const { return find(attr) ? integer(attr) : otherwise; }

double NodeView::number(const char* attr) const {
  const Attr* a = find(attr);
  if (!a || (a->kind != 'i' && a->kind != 'f')) invalid(text("lacks the number attribute `%s`", attr));
  return a->kind == 'i' ? static_cast<double>(a->i) : a->f;
}

double NodeView::number_or(const char* attr, double otherwise) const { return find(attr) ? number(attr) : otherwise; }

std::string NodeView::word(const char* attr) const {
  const Attr* a = find(attr);
  if (!a || a->kind != 's') invalid(text("lacks the text attribute `%s`", attr));
  return a->s;
}

std::string NodeView::word_or(const char* attr, const char* otherwise) const { return find(attr) ? word(attr) : otherwise; }

}  // namespace datong
