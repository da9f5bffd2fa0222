// The paged K/V cache of a program: one CacheLayer per layer, all with the same blocks.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"

namespace datong {

struct CacheSpec {
  int64_t layer, kv_heads, key_dim, value_dim, window;  // window in tokens; 0: unlimited
  bool operator==(const CacheSpec&) const = default;
};

int64_t cache_bytes_per_block(const std::vector<CacheSpec>& specs, CacheType type);

class Cache {
 public:
  // Throws Error(DT_OUT_OF_MEMORY). Memory is reserved now and taken from the system when first written.
  Cache(const std::vector<CacheSpec>& specs, CacheType type, int64_t blocks);
  ~Cache();
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  int64_t blocks() const { return blocks_; }
  int64_t bytes() const { return bytes_; }
  CacheType type() const { return type_; }
  const CacheLayer& at(size_t index) const { return layers_[index]; }  // in the order of the specs
  const std::vector<CacheSpec>& specs() const { return specs_; }
  void copy_block(int64_t source, int64_t target);  // throws Error(DT_INVALID)

 private:
  std::vector<CacheSpec> specs_;
  CacheType type_;
  int64_t blocks_, bytes_ = 0;
  uint8_t* memory_ = nullptr;
  std::vector<CacheLayer> layers_;
};

}  // namespace datong
