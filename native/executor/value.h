// The values and nodes of a part, checked and copied out of the caller's memory.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "datong/backend.h"
#include "executor/weights.h"

namespace datong {

enum class Lead { none, tokens, rows };  // what the first dimension counts

struct Value {
  std::string name;
  dt_kind kind = DT_TEMP;
  int32_t dtype = DT_F32;
  Lead lead = Lead::none;
  std::vector<int64_t> dims;  // without the leading T or R
  int64_t width = 1;          // product of dims
  Weight weight;              // kind weight
  std::vector<float> floats;  // kind const, f32; and plain weights of rank 1 once mapped
  std::vector<int64_t> ints;  // kind const, i64
  Lead arena = Lead::none;    // kind temp, and part outputs
  int64_t offset = 0, size = 0;

  int64_t row_bytes() const { return width * (dtype == DT_I64 ? 8 : 4); }
};

// Checks everything that can be checked about one value alone. `files` as in read_weight.
Value read_value(const dt_value& value, MappedFiles* files);

// One operator call, its values resolved. Getters throw Error(DT_INVALID or DT_UNSUPPORTED) with the node's name.
class NodeView {
 public:
  NodeView(const dt_node& node, const std::vector<Value>& values);

  const std::string& op() const { return op_; }
  const std::string& name() const { return name_; }
  int input_count() const { return static_cast<int>(inputs_.size()); }
  int output_count() const { return static_cast<int>(outputs_.size()); }
  int input_index(int i) const { return inputs_[static_cast<size_t>(i)]; }  // -1: absent
  int output_index(int i) const { return outputs_[static_cast<size_t>(i)]; }

  void expect_counts(int inputs_min, int inputs_max, int outputs) const;

  // Input i as an activation [T or R, width] f32; width 0 = any. Present, of kind input or temp.
  const Value& activation(int i, int64_t width = 0) const;
  const Value& integers(int i) const;            // [T or R] i64
  const Value& matrix(int i) const;              // weight [out, in], any format
  const Value& stack(int i, int64_t experts, int64_t out, int64_t in) const;  // weight [E, out, in]; out or in 0: any
  const Value* plain_rows(int i, int64_t rows, int64_t n) const;              // plain [rows, n]; null if absent
  const Value* plain_vector(int i, int64_t n) const;  // weight [n] f32|f16|bf16; null if absent
  int64_t vector_length(int i) const;                 // of a weight or constant with one dimension
  const Value& result(int i, Lead lead, int64_t width) const;  // output i, f32
  bool present(int i) const { return i < input_count() && inputs_[static_cast<size_t>(i)] >= 0; }

  int64_t integer(const char* attr) const;
  int64_t integer_or(const char* attr, int64_t otherwise) const;
  double number(const char* attr) const;  // also takes an integer
  double number_or(const char* attr, double otherwise) const;
  std::string word(const char* attr) const;
  std::string word_or(const char* attr, const char* otherwise) const;

  [[noreturn]] void refuse(const std::string& reason) const;   // DT_UNSUPPORTED
  [[noreturn]] void invalid(const std::string& reason) const;  // DT_INVALID

 private:
  struct Attr {
    int32_t kind;
    int64_t i;
    double f;
    std::string s;
  };
  const Value& input(int i) const;
  const Attr* find(const char* attr) const;

  std::string op_, name_;
  std::vector<int> inputs_, outputs_;
  std::map<std::string, Attr> attrs_;
  const std::vector<Value>* values_;
};

}  // namespace datong
