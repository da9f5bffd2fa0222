#include "python/part.h"

namespace datong {
namespace {

template <class T>
const T* data_or_null(const std::vector<T>& v) {
  return v.empty() ? nullptr : v.data();
}

}  // namespace

PartStructs::PartStructs(std::vector<ValueRow> value_rows, std::vector<NodeRow> node_rows)
    : value_rows_(std::move(value_rows)), node_rows_(std::move(node_rows)) {
  for (const auto& [name, kind, dtype, dims, format, piece_rows, data, arena, offset, size] : value_rows_) {
    auto& pieces = pieces_.emplace_back();
    for (const auto& [role, file, at, length, piece_dtype, piece_dims] : piece_rows)
      pieces.push_back({sizeof(dt_piece), role.c_str(), file.c_str(), at, length, piece_dtype,
                        static_cast<int32_t>(piece_dims.size()), data_or_null(piece_dims)});
    values.push_back({sizeof(dt_value), name.c_str(), kind & ~kSwapped, dtype, static_cast<int32_t>(dims.size()), data_or_null(dims),
                      format.c_str(), static_cast<int32_t>(pieces.size()), data_or_null(pieces),
                      data.size() ? data.c_str() : nullptr, arena, offset, size, (kind & kSwapped) != 0});
  }
  for (const auto& [op, name, inputs, outputs, attr_rows] : node_rows_) {
    auto& attrs = attrs_.emplace_back();
    for (const auto& [attr, kind, i, f, s] : attr_rows)
      attrs.push_back({sizeof(dt_attr), attr.c_str(), kind, i, f, s.c_str()});
    nodes.push_back({sizeof(dt_node), op.c_str(), name.c_str(), static_cast<int32_t>(inputs.size()),
                     static_cast<int32_t>(outputs.size()), static_cast<int32_t>(attrs.size()), data_or_null(inputs),
                     data_or_null(outputs), data_or_null(attrs)});
  }
}

Options::Options(const std::vector<std::tuple<std::string, std::string>>& rows) {
  for (const auto& [key, value] : rows) items_.push_back({key.c_str(), value.c_str()});
  pairs_ = {sizeof(dt_pairs), items_.data(), static_cast<int32_t>(items_.size())};
}

}  // namespace datong
