// Storing one token, with the conversions of the processor; included by each ISA file.
#include "core/simd.h"
#include "kernels/attention/attention.h"

namespace datong {
namespace {

template <CacheType type>
void store_kv(const CacheLayer& l, int64_t block, int64_t slot, int64_t head, const float* key, const float* value) {
  const int64_t at = block * l.kv_heads + head;
  const int64_t k = at * l.key_dim * kBlockSize + slot, v = (at * kBlockSize + slot) * l.value_pad;
  if constexpr (type == CacheType::f32) {
    float *keys = reinterpret_cast<float*>(l.keys) + k, *values = reinterpret_cast<float*>(l.values) + v;
    for (int64_t d = 0; d < l.key_dim; ++d) keys[d * kBlockSize] = key[d];
    for (int64_t d = 0; d < l.value_dim; ++d) values[d] = value[d];
  } else {
    uint16_t *keys = reinterpret_cast<uint16_t*>(l.keys) + k, *values = reinterpret_cast<uint16_t*>(l.values) + v;
    auto half = [](float f) { return type == CacheType::f16 ? to_f16(f) : f32_to_bf16(f); };
    for (int64_t d = 0; d < l.key_dim; ++d) keys[d * kBlockSize] = half(key[d]);
    for (int64_t d = 0; d < l.value_dim; ++d) values[d] = half(value[d]);
  }
}

inline void store_kv_simd(const CacheLayer& l, int64_t block, int64_t slot, int64_t head, const float* key,
                          const float* value) {
  switch (l.type) {
    case CacheType::f32: return store_kv<CacheType::f32>(l, block, slot, head, key, value);
    case CacheType::f16: return store_kv<CacheType::f16>(l, block, slot, head, key, value);
    case CacheType::bf16: return store_kv<CacheType::bf16>(l, block, slot, head, key, value);
  }
}

}  // namespace
}  // namespace datong
