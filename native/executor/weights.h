// From the pieces of a weight to what the kernels take.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/mapped_file.h"
#include "datong/backend.h"
#include "kernels/linear/linear.h"

namespace datong {

// Reads values[i] of an array that the host laid out: its structs may be longer than ours.
template <class Struct>
const Struct& item(const Struct* array, int64_t i) {
  return *reinterpret_cast<const Struct*>(reinterpret_cast<const char*>(array) +
                                          i * static_cast<int64_t>(array->struct_size));
}

struct Weight {
  WeightView view;                  // pointers are null until mapped; of a stack: the first expert
  std::vector<WeightView> experts;  // of a mapped stack
  struct Piece {
    std::shared_ptr<MappedFile> file;
    const uint8_t* at;
    int64_t bytes;
  };
  std::vector<Piece> pieces;  // in files
  std::shared_ptr<uint8_t[]> transposed;  // the values where they are stored swapped
  int64_t bytes = 0, own_bytes = 0;       // of all pieces in files; of `transposed`
};

// Checks format, dims ([out, in]; [n]: out = 1; [E, out, in]: a stack) and pieces of a value of kind DT_WEIGHT. With
// `files` the pieces are mapped too. Throws Error: DT_UNSUPPORTED for an unknown format, DT_INVALID for pieces that do
// not fit, DT_IO.
Weight read_weight(const dt_value& value, MappedFiles* files);

// Rows [begin, begin + count) of a matrix.
WeightView rows_of(const WeightView& view, int64_t begin, int64_t count);

// Values of a mapped plain weight (f32, f16, bf16) as f32: norm weights and biases, which are small.
std::vector<float> plain_values(const WeightView& view);

}  // namespace datong
