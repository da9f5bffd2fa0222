#include <cmath>
#include <limits>

#include "core/convert.h"
#include "kernels/attention/attention.h"

namespace datong {
namespace {

float get(const uint8_t* base, int64_t i, CacheType type) {
  if (type == CacheType::f32) return reinterpret_cast<const float*>(base)[i];
  const uint16_t h = reinterpret_cast<const uint16_t*>(base)[i];
  return type == CacheType::f16 ? f16_to_f32(h) : bf16_to_f32(h);
}

void put(uint8_t* base, int64_t i, CacheType type, float f) {
  if (type == CacheType::f32)
    reinterpret_cast<float*>(base)[i] = f;
  else
    reinterpret_cast<uint16_t*>(base)[i] = type == CacheType::f16 ? f32_to_f16(f) : f32_to_bf16(f);
}

}  // namespace

void prepare_queries_ref(const CacheLayer& l, const float* const* rows, int count, float scale, float* q) {
  for (int64_t d = 0; d < l.key_dim; ++d)
    for (int r = 0; r < count; ++r) q[d * count + r] = rows[r][d] * scale;
}

void attend_ref(const AttentionArgs& a) {
  const CacheLayer& l = *a.layer;
  for (int r = 0; r < a.rows; ++r) {
    float* out = a.out + r * l.value_pad;
    for (int64_t d = 0; d < l.value_pad; ++d) out[d] = 0;
    float max = -std::numeric_limits<float>::infinity(), sum = 0;
    const int64_t begin = a.begin > a.first[r] ? a.begin : a.first[r], end = a.end < a.last[r] ? a.end : a.last[r];
    for (int64_t j = begin; j < end; ++j) {
      const int64_t block = a.blocks[j / kBlockSize] * l.kv_heads + a.head, slot = j % kBlockSize;
      float s = 0;
      for (int64_t d = 0; d < l.key_dim; ++d)
        s += a.q[d * a.rows + r] * get(l.keys, (block * l.key_dim + d) * kBlockSize + slot, l.type);
      if (a.softcap > 0) s = a.softcap * std::tanh(s / a.softcap);
      const float far = static_cast<float>(a.last[r] - 1 - j);
      if (a.distance != Distance::none) s -= a.slope[r] * (a.distance == Distance::linear ? far : std::sqrt(far));
      if (s > max) {  // rescale what was added under the smaller maximum
        const float shrink = std::exp(max - s);
        for (int64_t d = 0; d < l.value_dim; ++d) out[d] *= shrink;
        sum *= shrink;
        max = s;
      }
      const float p = std::exp(s - max);
      sum += p;
      for (int64_t d = 0; d < l.value_dim; ++d)
        out[d] += p * get(l.values, (block * kBlockSize + slot) * l.value_pad + d, l.type);
    }
    a.max[r] = max;
    a.sum[r] = sum;
  }
}

void store_kv_ref(const CacheLayer& l, int64_t block, int64_t slot, int64_t head, const float* key,
                  const float* value) {
  const int64_t at = block * l.kv_heads + head;
  for (int64_t d = 0; d < l.key_dim; ++d) put(l.keys, (at * l.key_dim + d) * kBlockSize + slot, l.type, key[d]);
  for (int64_t d = 0; d < l.value_dim; ++d) put(l.values, (at * kBlockSize + slot) * l.value_pad + d, l.type, value[d]);
}

void merge_attention(float* out, float* max, float* sum, const float* other_out, float other_max, float other_sum,
                     int64_t n) {
  if (other_sum == 0) return;
  const float top = *max > other_max ? *max : other_max;
  const float mine = *sum == 0 ? 0 : std::exp(*max - top), theirs = std::exp(other_max - top);
  for (int64_t i = 0; i < n; ++i) out[i] = out[i] * mine + other_out[i] * theirs;
  *sum = *sum * mine + other_sum * theirs;
  *max = top;
}

}  // namespace datong
