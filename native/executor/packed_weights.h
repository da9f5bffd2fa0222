// Matrices in the layouts that kernels prefer, made once and kept in a file: docs/adr/0029.
//
// The file begins with its key, a text that names the layouts, the matrices and the files they come from with size and time
// of change; then come the matrices, at multiples of 64 bytes. It is used if its key is the one wanted.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "core/mapped_file.h"
#include "core/thread_pool.h"
#include "executor/weights.h"
#include "kernels/linear/linear.h"

namespace datong {

class PackedWeights {
 public:
  PackedWeights() = default;
  ~PackedWeights();
  PackedWeights(const PackedWeights&) = delete;
  PackedWeights& operator=(const PackedWeights&) = delete;

  // Where the address of the weight as `kernel` packs it will stand after `make`; lives as long as this object. kernel.pack
  // is not null, the weight is mapped.
  const uint8_t* const* want(const LinearKernel& kernel, const Weight& weight);

  // A weight that is read row by row, and not at all from its file if somebody wants it packed.
  struct Reader {
    const uint8_t* codes;                  // of the weight
    const LinearKernel* kernel = nullptr;  // whose layout `packed` has; null until `make`, and where nobody packs it
    const uint8_t* packed = nullptr;
  };
  const Reader* read(const Weight& weight);  // as long-lived as this object

  // Finds the file of everything wanted in `directory`, or makes it. Packs into memory of this process where that cannot be
  // written, where little is wanted, and where `directory` is empty. Pages of the original files that are read for it are given
  // back to the system. Throws Error(DT_OUT_OF_MEMORY).
  void make(const std::string& directory, ThreadPool& pool);

  int64_t mapped_bytes() const { return file_ ? bytes_ : 0; }
  int64_t private_bytes() const { return file_ ? 0 : bytes_; }
  int64_t original_bytes() const;  // of the weights in their files

 private:
  struct Item {
    const LinearKernel* kernel;
    WeightView view;
    std::vector<Weight::Piece> pieces;
    int64_t original, bytes, offset;  // offset: from the first matrix
    const uint8_t* at;
  };
  struct Sink;
  std::string key() const;
  bool find(const std::string& path, const std::string& key);
  bool write(const std::string& directory, const std::string& path, const std::string& key, ThreadPool& pool) const;
  void pack(const Sink& sink, ThreadPool& pool) const;
  void pack_to_memory(ThreadPool& pool);

  std::deque<Item> items_;
  std::deque<Reader> readers_;
  int64_t bytes_ = 0;
  std::unique_ptr<MappedFile> file_;
  uint8_t* memory_ = nullptr;
};

}  // namespace datong
