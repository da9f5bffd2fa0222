#include "kernels/attention/attention_simd.h"
#include "kernels/attention/store_kv_simd.h"

void datong::attend_neon(const AttentionArgs& a) { attend_simd(a); }

void datong::store_kv_neon(const CacheLayer& l, int64_t block, int64_t slot, int64_t head, const float* key,
                            const float* value) {
  store_kv_simd(l, block, slot, head, key, value);
}
