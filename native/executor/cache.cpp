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
  return s.kv_heads * padded_value_dim(s.kept_values()) * kBlockSize * cache_type_bytes(type);
}

long long number(int64_t n) { return static_cast<long long>(n); }

void check_copy(const char* what, int64_t source, int64_t target, int64_t count) {
  if (source < 0 || source >= count || target < 0 || target >= count)
    throw Error(DT_INVALID, text("[cpu] %s %lld was to be copied to %lld, the cache has %lld", what, number(source),
                                 number(target), number(count)));
}

}  // namespace

int64_t cache_bytes_per_block(const std::vector<CacheSpec>& specs, CacheType type, bool windows) {
  int64_t bytes = 0;
  for (const CacheSpec& s : specs)
    if (!s.is_state() && s.is_window() == windows) bytes += key_block_bytes(s, type) + value_block_bytes(s, type);
  return bytes;
}

int64_t cache_bytes_per_state(const std::vector<CacheSpec>& specs) {
  int64_t bytes = 0;
  for (const CacheSpec& s : specs)
    if (s.is_state()) bytes += 4 * s.kv_heads * s.key_dim * s.value_dim;
  return bytes;
}

int64_t Cache::blocks_of(const CacheSpec& s) const {
  return s.is_window() && size_.window_blocks ? size_.window_blocks : size_.blocks;
}

Cache::Cache(const std::vector<CacheSpec>& specs, CacheType type, CacheSize size) : specs_(specs), type_(type), size_(size) {
  for (int64_t count : {size.blocks, size.window_blocks, size.states})
    if (count < 0) throw Error(DT_INVALID, text("[cpu] a cache has 0 or more of everything, %lld were asked for", number(count)));
  constexpr int64_t kMost = int64_t{1} << 46;
  auto add = [&](int64_t each, int64_t count) {
    if (each && count > (kMost - bytes_) / each)
      throw Error(DT_OUT_OF_MEMORY,
                  text("[cpu] a cache of %lld times %lld bytes is beyond any memory", number(count), number(each)));
    bytes_ += each * count;
  };
  for (const CacheSpec& s : specs) {
    if (s.is_state()) add(cache_bytes_per_state({s}), size.states);
    else add(key_block_bytes(s, type) + value_block_bytes(s, type), blocks_of(s));
  }
  if (bytes_) {
    // zeroed by the system: padding stays 0 and unwritten slots are finite
    void* p = ::mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
      throw Error(DT_OUT_OF_MEMORY, text("[cpu] no memory for a cache of %lld bytes", number(bytes_)));
    memory_ = static_cast<uint8_t*>(p);
  }
  uint8_t* at = memory_;
  for (const CacheSpec& s : specs) {
    CacheLayer layer{at, nullptr, type, s.kv_heads, s.key_dim, s.value_dim, padded_value_dim(s.kept_values())};
    states_.push_back(s.is_state() ? reinterpret_cast<float*>(at) : nullptr);
    if (s.is_state()) {
      layer.keys = nullptr;
      at += cache_bytes_per_state({s}) * size.states;
    } else {
      at += key_block_bytes(s, type) * blocks_of(s);
      layer.values = at;
      at += value_block_bytes(s, type) * blocks_of(s);
    }
    layers_.push_back(layer);
  }
}

Cache::~Cache() {
  if (memory_) ::munmap(memory_, static_cast<size_t>(bytes_));
}

void Cache::copy_block(int64_t source, int64_t target) {
  check_copy("block", source, target, size_.blocks);
  if (source == target) return;
  const int64_t size = cache_type_bytes(type_);
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (specs_[i].is_state() || is_apart(i)) continue;
    const CacheLayer& l = layers_[i];
    const int64_t keys = l.kv_heads * l.key_dim * kBlockSize * size, values = l.kv_heads * l.value_pad * kBlockSize * size;
    std::memcpy(l.keys + target * keys, l.keys + source * keys, static_cast<size_t>(keys));
    std::memcpy(l.values + target * values, l.values + source * values, static_cast<size_t>(values));
  }
}

void Cache::copy_state(int64_t source, int64_t target) {
  check_copy("state", source, target, size_.states);
  if (source == target) return;
  for (size_t i = 0; i < specs_.size(); ++i)
    if (specs_[i].is_state())
      std::memcpy(state(i, target), state(i, source), static_cast<size_t>(state_floats(specs_[i])) * sizeof(float));
}

}  // namespace datong
