#include "executor/cache.h"

#include <cstring>

#include <sys/mman.h>

#include "core/error.h"

namespace datong {
namespace {

int64_t key_block_bytes(const CacheSpec& s, CacheType type) {
  return s.kv_heads * s.key_dim * kBlockSize * cache_type_bytes(type);
}

int64_t value_block_bytes(const CacheSpec& s, CacheType type) {
  return s.kv_heads * padded_value_dim(s.value_dim) * kBlockSize * cache_type_bytes(type);
}

}  // namespace

int64_t cache_bytes_per_block(const std::vector<CacheSpec>& specs, CacheType type) {
  int64_t bytes = 0;
  for (const CacheSpec& s : specs) bytes += key_block_bytes(s, type) + value_block_bytes(s, type);
  return bytes;
}

Cache::Cache(const std::vector<CacheSpec>& specs, CacheType type, int64_t blocks)
    : specs_(specs), type_(type), blocks_(blocks) {
  if (blocks < 0) throw Error(DT_INVALID, text("[cpu] a cache has 0 blocks or more, %lld were asked for", static_cast<long long>(blocks)));
  const int64_t per_block = cache_bytes_per_block(specs, type);
  if (per_block && blocks > (int64_t{1} << 46) / per_block)
    throw Error(DT_OUT_OF_MEMORY, text("[cpu] a cache of %lld blocks of %lld bytes is beyond any memory",
                                       static_cast<long long>(blocks), static_cast<long long>(per_block)));
  bytes_ = per_block * blocks;
  if (bytes_) {
    // zeroed by the system: padding stays 0 and unwritten slots are finite
    void* p = ::mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
      throw Error(DT_OUT_OF_MEMORY, text("[cpu] no memory for a cache of %lld bytes", static_cast<long long>(bytes_)));
    memory_ = static_cast<uint8_t*>(p);
  }
  uint8_t* at = memory_;
  for (const CacheSpec& s : specs) {
    CacheLayer layer{at, nullptr, type, s.kv_heads, s.key_dim, s.value_dim, padded_value_dim(s.value_dim)};
    at += key_block_bytes(s, type) * blocks;
    layer.values = at;
    at += value_block_bytes(s, type) * blocks;
    layers_.push_back(layer);
  }
}

Cache::~Cache() {
  if (memory_) ::munmap(memory_, static_cast<size_t>(bytes_));
}

void Cache::copy_block(int64_t source, int64_t target) {
  if (source < 0 || source >= blocks_ || target < 0 || target >= blocks_)
    throw Error(DT_INVALID, text("[cpu] block %lld was to be copied to %lld, the cache has %lld", static_cast<long long>(source),
                                 static_cast<long long>(target), static_cast<long long>(blocks_)));
  if (source == target) return;
  const int64_t size = cache_type_bytes(type_);
  for (const CacheLayer& l : layers_) {
    const int64_t keys = l.kv_heads * l.key_dim * kBlockSize * size, values = l.kv_heads * l.value_pad * kBlockSize * size;
    std::memcpy(l.keys + target * keys, l.keys + source * keys, static_cast<size_t>(keys));
    std::memcpy(l.values + target * values, l.values + source * values, static_cast<size_t>(values));
  }
}

}  // namespace datong
