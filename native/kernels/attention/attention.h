// Attention over a paged K/V cache: the part that one thread does for a few query rows of one K/V head.
//
//   s[r, j] = softcap(q[r] . K[j]) - slope[r] * f(last[r] - 1 - j);  softcap(x) = cap * tanh(x / cap), or x where cap is 0
//             f(d) = d, sqrt(d), or 0 (Distance)
//   out[r]  = sum_j exp(s[r, j] - max[r]) * V[j] over the keys j in [first[r], last[r]) and [begin, end)
//   sum[r]  = sum_j exp(s[r, j] - max[r]);  max[r] = max_j s[r, j], -inf where no key is seen
//
// The caller divides out by sum. Results of two key ranges can be merged, see merge_attention. Where `begin` is a multiple
// of kPiece, a row's results have the same bits whichever rows share the call, and whatever of [begin, end) it does not see.
//
// A cache block holds kBlockSize tokens of one layer. K lies transposed, so that a vector holds one channel of many
// tokens and scores need no horizontal sums; V lies by token:
//
//   K  [blocks, kv_heads, key_dim, kBlockSize]       V  [blocks, kv_heads, kBlockSize, value_pad]
//
// value_pad = value_dim rounded up to kValuePad; the padding stays 0. Element type f32, f16 or bf16. A variant may order
// the elements of a block otherwise: what one stored, no other reads.
// The score of a slot outside [first, last) is not used; K and V there must be finite or are not read.
#pragma once

#include <cstdint>
#include <span>

#include "core/dispatch.h"

namespace datong {

// 32: two AVX-512 vectors of scores; a block of 64 channels in f16 is 4 KiB, a page.
constexpr int64_t kBlockSize = 32;
constexpr int64_t kValuePad = 16;  // floats in the widest vector
constexpr int64_t kPiece = 256;    // keys; two chunks of the vector variants
constexpr int kMaxRows = 8;        // rows of one call; 8 x 2 accumulators fit the 32 registers of AVX-512 and ARM

enum class CacheType { f32, f16, bf16 };

inline int64_t cache_type_bytes(CacheType type) { return type == CacheType::f32 ? 4 : 2; }
inline int64_t padded_value_dim(int64_t value_dim) { return (value_dim + kValuePad - 1) / kValuePad * kValuePad; }

// One layer of a cache.
struct CacheLayer {
  uint8_t* keys;
  uint8_t* values;
  CacheType type;
  int64_t kv_heads, key_dim, value_dim, value_pad;
};

// What the bias of a row grows with: the distance of the key from the row's own place, which is last - 1.
enum class Distance { none, linear, square_root };

struct AttentionArgs {
  const CacheLayer* layer;
  int64_t head;                  // K/V head
  const int32_t* blocks;         // key j lies in block blocks[j / kBlockSize], slot j % kBlockSize
  int64_t begin, end;            // keys of this call
  int rows;                      // 1 .. kMaxRows
  const float* q;                // [key_dim, rows], as `prepare` left them
  int64_t first[kMaxRows], last[kMaxRows];
  float softcap;
  Distance distance;
  float slope[kMaxRows];         // read unless distance is none
  float* out;                    // [rows, value_pad]
  float* max;                    // [rows]
  float* sum;                    // [rows]
};

struct AttentionKernel {
  // Queries rows[r] [key_dim] times `scale` -> q, for all calls of attend with these rows; key_dim * count floats of room.
  void (*prepare)(const CacheLayer&, const float* const rows[], int count, float scale, float* q);
  void (*attend)(const AttentionArgs&);
  // Put one token's key [key_dim] and value [value_dim] into (block, slot) of K/V head `head`.
  void (*store)(const CacheLayer&, int64_t block, int64_t slot, int64_t head, const float* key, const float* value);
};

std::span<const Variant<AttentionKernel>> attention_variants();

// out, max, sum [..] of one row := those of both parts. Either may have seen no key.
void merge_attention(float* out, float* max, float* sum, const float* other_out, float other_max, float other_sum,
                     int64_t n);

void prepare_queries_ref(const CacheLayer&, const float* const*, int, float, float*);
void attend_ref(const AttentionArgs&);
void store_kv_ref(const CacheLayer&, int64_t, int64_t, int64_t, const float*, const float*);
void attend_avx2(const AttentionArgs&);
void store_kv_avx2(const CacheLayer&, int64_t, int64_t, int64_t, const float*, const float*);
void attend_avx512(const AttentionArgs&);
void prepare_queries_avx512bf16(const CacheLayer&, const float* const*, int, float, float*);
void attend_avx512bf16(const AttentionArgs&);
void store_kv_avx512bf16(const CacheLayer&, int64_t, int64_t, int64_t, const float*, const float*);
void attend_neon(const AttentionArgs&);
void store_kv_neon(const CacheLayer&, int64_t, int64_t, int64_t, const float*, const float*);

}  // namespace datong
