// Parts for the C++ tests of the executor: the structs, and a file with the weights.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include <unistd.h>

#include "core/error.h"
#include "kernels/linear/linear_test_weights.h"
#include "testing/check.h"

namespace datong::testing {

// A file that goes away.
class File {
 public:
  File() {
    const int fd = mkstemp(path);
    CHECK(fd >= 0);
    file_ = fdopen(fd, "wb");
  }
  ~File() {
    close();
    unlink(path);
  }
  File(const File&) = delete;
  int64_t append(const void* data, int64_t bytes) {
    const int64_t at = size_;
    std::fwrite(data, 1, static_cast<size_t>(bytes), file_);
    size_ += bytes;
    return at;
  }
  int64_t size() const { return size_; }
  void close() {
    if (file_) std::fclose(file_);
    file_ = nullptr;
  }
  char path[32] = "/tmp/datong_program_XXXXXX";

 private:
  std::FILE* file_ = nullptr;
  int64_t size_ = 0;
};

// The structs of a part. A deque does not move what it holds.
class TestPart {
 public:
  dt_part part() const {
    return {sizeof(dt_part), static_cast<int32_t>(values_.size()), static_cast<int32_t>(nodes_.size()),
            static_cast<int32_t>(inputs_.size()), static_cast<int32_t>(outputs_.size()), static_cast<int32_t>(caches_.size()),
            values_.data(), nodes_.data(), inputs_.data(), outputs_.data(), caches_.data(), 0, 0};
  }

 protected:
  void close() { file_.close(); }  // before the part is compiled
  int64_t size() const { return file_.size(); }
  const char* path() const { return file_.path; }
  // The bytes of a piece at the end of the file once more.
  void copy(const dt_piece& piece) {
    const std::vector<uint8_t>& bytes = bytes_[piece.offset];
    file_.append(bytes.data(), static_cast<int64_t>(bytes.size()));
  }
  const int64_t* dims_of(std::vector<int64_t> dims) { return dims_.emplace_back(std::move(dims)).data(); }
  int add(dt_value v) {
    v.struct_size = sizeof v;
    v.name = names_.emplace_back(v.name ? v.name : text("v%zu", values_.size())).c_str();
    values_.push_back(v);
    return static_cast<int>(values_.size()) - 1;
  }
  int value(const char* name, int32_t kind, int32_t dtype, std::vector<int64_t> dims) {
    dt_value v{};
    v.name = name;
    v.kind = kind;
    v.dtype = dtype;
    v.rank = static_cast<int32_t>(dims.size());
    v.dims = dims_of(std::move(dims));
    return add(v);
  }
  int temp(int64_t width, int64_t lead = DT_DIM_TOKENS) { return value(nullptr, DT_TEMP, DT_F32, {lead, width}); }
  int constant(std::vector<float> floats) {
    const int i = value(nullptr, DT_CONST, DT_F32, {static_cast<int64_t>(floats.size())});
    values_.back().data = floats_.emplace_back(std::move(floats)).data();
    return i;
  }
  // The pieces, in the file from now on. One level of blocks of 32, or plain.
  std::vector<dt_piece> pieces_of(const TestWeight& w) {
    std::vector<dt_piece> pieces;
    const auto piece = [&](const char* role, const void* data, int32_t dtype, int64_t bytes) {
      const int64_t at = file_.append(data, bytes);
      bytes_[at].assign(static_cast<const uint8_t*>(data), static_cast<const uint8_t*>(data) + bytes);
      pieces.push_back({sizeof(dt_piece), role, file_.path, at, bytes, dtype, 0, nullptr});
    };
    const int64_t count = w.view.out * w.view.in;
    const bool nibbles = w.view.codes_dtype == DT_I4 || w.view.codes_dtype == DT_U4 || w.view.codes_dtype == DT_F4E2M1;
    const int64_t plain = w.view.codes_dtype == DT_F32 ? 4 : 2;
    piece("codes", w.view.codes, w.view.codes_dtype == DT_F4E2M1 ? DT_U4 : w.view.codes_dtype, !w.view.block ? count * plain : nibbles ? count / 2 : count);
    if (w.view.tile) {
      const int64_t tiles = (w.view.out + w.view.tile - 1) / w.view.tile * ((w.view.in + w.view.block - 1) / w.view.block);
      const int bytes = w.view.scale_dtype == DT_F32 ? 4 : w.view.scale_dtype == DT_BF16 ? 2 : 1;
      piece("scale", w.view.scale, w.view.scale_dtype, tiles * bytes);
      if (w.view.factor) piece("factor", w.view.factor, DT_F32, 4);
      return pieces;
    }
    if (w.view.block) piece("scale", w.view.scale, DT_F16, count / 32 * 2);
    if (w.view.has_min) piece("min", w.view.min, DT_F16, count / 32 * 2);
    return pieces;
  }
  int weight(const char* format, std::vector<int64_t> dims, std::vector<dt_piece> pieces) {
    const int i = value(nullptr, DT_WEIGHT, DT_F32, std::move(dims));
    const auto& kept = pieces_.emplace_back(std::move(pieces));
    values_.back().format = format;
    values_.back().piece_count = static_cast<int32_t>(kept.size());
    values_.back().pieces = kept.data();
    return i;
  }

  static dt_attr number(const char* name, int64_t i) { return {sizeof(dt_attr), name, 'i', i, 0, nullptr}; }
  static dt_attr real(const char* name, double f) { return {sizeof(dt_attr), name, 'f', 0, f, nullptr}; }
  static dt_attr word(const char* name, const char* s) { return {sizeof(dt_attr), name, 's', 0, 0, s}; }
  void node(const char* op, std::vector<int32_t> in, std::vector<int32_t> out, std::vector<dt_attr> attrs = {}) {
    const auto& i = indices_.emplace_back(std::move(in));
    const auto& o = indices_.emplace_back(std::move(out));
    const auto& a = attrs_.emplace_back(std::move(attrs));
    nodes_.push_back({sizeof(dt_node), op, names_.emplace_back(text("n%zu", nodes_.size())).c_str(),
                      static_cast<int32_t>(i.size()), static_cast<int32_t>(o.size()), static_cast<int32_t>(a.size()), i.data(),
                      o.data(), a.data()});
  }

  File file_;
  std::map<int64_t, std::vector<uint8_t>> bytes_;  // of each piece, by its place in the file
  std::vector<dt_value> values_;
  std::vector<dt_node> nodes_;
  std::vector<dt_cache_spec> caches_;
  std::vector<int32_t> inputs_, outputs_;
  std::deque<std::string> names_;
  std::deque<std::vector<int64_t>> dims_;
  std::deque<std::vector<float>> floats_;
  std::deque<std::vector<dt_piece>> pieces_;
  std::deque<std::vector<int32_t>> indices_;
  std::deque<std::vector<dt_attr>> attrs_;
};

}  // namespace datong::testing
