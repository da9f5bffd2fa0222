// What a program remembers: keys and values in blocks, one CacheLayer per attention, and states, one per sequence.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"

namespace datong {

// datong/spec/program.py, CacheSpec. `tokens`: keys and values, of the last `window` tokens where that is not 0.
// `latent`: rows of key_dim, whose first value_dim channels are the values as well. `index`: keys alone, value_dim is 0.
enum class CacheKind { tokens = 0, latent = 1, index = 2, recurrent = 3, conv = 4 };  // numbers of dt_cache_kind

struct CacheSpec {
  int64_t layer, kv_heads, key_dim, value_dim, window;  // window in tokens; 0: unlimited
  CacheKind kind = CacheKind::tokens;
  bool operator==(const CacheSpec&) const = default;
  bool is_state() const { return kind == CacheKind::recurrent || kind == CacheKind::conv; }
  int64_t kept_values() const { return kind == CacheKind::latent ? 0 : value_dim; }
  bool is_window() const { return !is_state() && window > 0; }
};

// Of the caches that keep something of every token, or of those that keep a window.
int64_t cache_bytes_per_block(const std::vector<CacheSpec>& specs, CacheType type, bool windows);
int64_t cache_bytes_per_state(const std::vector<CacheSpec>& specs);

struct CacheSize {
  int64_t blocks, window_blocks = 0, states = 0;  // window_blocks 0: windows share `blocks`
};

class Cache {
 public:
  // Throws Error(DT_OUT_OF_MEMORY). Memory is reserved now and taken from the system when first written.
  Cache(const std::vector<CacheSpec>& specs, CacheType type, CacheSize size);
  ~Cache();
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  const CacheSize& size() const { return size_; }
  int64_t bytes() const { return bytes_; }
  CacheType type() const { return type_; }
  const CacheLayer& at(size_t index) const { return layers_[index]; }  // in the order of the specs
  // Has this cache blocks of its own, apart from `blocks`?
  bool is_apart(size_t index) const { return size_.window_blocks > 0 && specs_[index].is_window(); }
  // One sequence's state, [kv_heads, key_dim, value_dim].
  float* state(size_t index, int64_t slot) const { return states_[index] + slot * state_floats(specs_[index]); }
  const std::vector<CacheSpec>& specs() const { return specs_; }
  void copy_block(int64_t source, int64_t target);  // of `blocks`; throws Error(DT_INVALID)
  void copy_state(int64_t source, int64_t target);  // throws Error(DT_INVALID)

 private:
  static int64_t state_floats(const CacheSpec& s) { return s.kv_heads * s.key_dim * s.value_dim; }
  int64_t blocks_of(const CacheSpec& s) const;

  std::vector<CacheSpec> specs_;
  CacheType type_;
  CacheSize size_;
  int64_t bytes_ = 0;
  uint8_t* memory_ = nullptr;
  std::vector<CacheLayer> layers_;  // of a state: without memory
  std::vector<float*> states_;      // of a layer of tokens: null
};

}  // namespace datong
