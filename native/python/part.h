// A part as rows of Python tuples (made by datong/backends/plugin.py) -> the flat structs of datong/backend.h.
#pragma once

#include <deque>
#include <string>
#include <tuple>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "datong/backend.h"

namespace datong {

// role, file, offset, length, dtype, dims
using PieceRow = std::tuple<std::string, std::string, int64_t, int64_t, int32_t, std::vector<int64_t>>;
// name, kind (of a weight that is stored swapped: + kSwapped), dtype, dims, format, pieces, data, arena, arena_offset,
// arena_size
constexpr int32_t kSwapped = 256;
using ValueRow = std::tuple<std::string, int32_t, int32_t, std::vector<int64_t>, std::string, std::vector<PieceRow>,
                            nanobind::bytes, int32_t, int64_t, int64_t>;
// name, kind ('i' 'f' 's' as a number), i, f, s
using AttrRow = std::tuple<std::string, int32_t, int64_t, double, std::string>;
// op, name, inputs, outputs, attrs
using NodeRow = std::tuple<std::string, std::string, std::vector<int32_t>, std::vector<int32_t>, std::vector<AttrRow>>;
// layer, kv_heads, key_dim, value_dim, window, kind
using CacheRow = std::tuple<int32_t, int32_t, int32_t, int32_t, int64_t, int32_t>;

// Owns the structs and keeps the rows, whose text and numbers they point to.
class PartStructs {
 public:
  PartStructs(std::vector<ValueRow> values, std::vector<NodeRow> nodes);
  PartStructs(const PartStructs&) = delete;

  std::vector<dt_value> values;
  std::vector<dt_node> nodes;

 private:
  std::vector<ValueRow> value_rows_;
  std::vector<NodeRow> node_rows_;
  std::deque<std::vector<dt_piece>> pieces_;
  std::deque<std::vector<dt_attr>> attrs_;
};

// Options: pairs that point into the given strings.
class Options {
 public:
  explicit Options(const std::vector<std::tuple<std::string, std::string>>& rows);
  const dt_pairs* get() const { return &pairs_; }

 private:
  std::vector<dt_pair> items_;
  dt_pairs pairs_;
};

}  // namespace datong
