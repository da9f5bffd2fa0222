// AVX-512 BF16: a cache of bf16 lies in pairs, so that one instruction multiplies and adds two elements of each lane.
//
//   K  [blocks, kv_heads, key_dim / 2, kBlockSize, 2]      V  [blocks, kv_heads, kBlockSize / 2, value_pad, 2]
//
// Queries and softmax weights are rounded to bf16; their sums and the softmax are f32. Twice the products a cycle of f32,
// and no conversion of what is read. Other types, and odd key sizes, are done by the plain variant.
#include <immintrin.h>

#include "kernels/attention/attention_simd.h"

namespace datong {
namespace {

constexpr float kLog2E = 1.44269504f;

inline bool in_pairs(const CacheLayer& l) {
  return l.type == CacheType::bf16 && l.key_dim % 2 == 0;
}

inline __m512bh pair_of(uint32_t bits) { return (__m512bh)_mm512_set1_epi32(static_cast<int32_t>(bits)); }
inline __m512bh load_pairs(const uint8_t* p) { return (__m512bh)_mm512_loadu_si512(p); }

// 2^x for x <= 0 to within 3e-6 of it, which will be rounded to bf16; exactly 0 below -150. Polynomial on [-0.5, 0.5].
inline __m512 exp2_rough(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);  // in this order a NaN passes
  const __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(0.00958285294f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.0559064248f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.240240986f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693124193f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// Lane r = all of rows[r] put together by `op`, in the same order for every row.
template <class Op>
inline __m512 reduce8(const __m512 rows[8], Op op) {
  __m512 u[4], v[2];
  UNROLL for (int i = 0; i < 4; ++i)  // two rows, eight lanes each
    u[i] = op(_mm512_shuffle_f32x4(rows[2 * i], rows[2 * i + 1], 0x44), _mm512_shuffle_f32x4(rows[2 * i], rows[2 * i + 1], 0xee));
  UNROLL for (int i = 0; i < 2; ++i)  // four rows, a quarter each
    v[i] = op(_mm512_shuffle_f32x4(u[2 * i], u[2 * i + 1], 0x88), _mm512_shuffle_f32x4(u[2 * i], u[2 * i + 1], 0xdd));
  const __m512 w = op(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
  const __m512 all = op(w, _mm512_shuffle_ps(w, w, 0x4e));
  return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0), all);
}

template <int R>
struct PairProducts {
  static constexpr int kAtOnce = R == 1 ? 4 : R <= 3 ? 2 : 1;  // enough sums in flight to hide the latency
  const AttentionArgs& a;
  int row0;
  const uint32_t* q;                          // [key_dim / 2, R] pairs
  alignas(64) uint16_t rounded[R][kChunk];    // softmax weights of the chunk

  PairProducts(const AttentionArgs& args, int row) : a(args), row0(row), q(reinterpret_cast<const uint32_t*>(args.q)) {}

  template <int B>
  void scores(const uint8_t* const keys[B], float (*scores)[kChunk]) const {
    const int64_t pairs = a.layer->key_dim / 2;
    __m512 acc[R][2 * B];
    UNROLL for (int r = 0; r < R; ++r) {
      UNROLL for (int c = 0; c < 2 * B; ++c) acc[r][c] = _mm512_setzero_ps();
    }
    for (int64_t d = 0; d < pairs; ++d) {
      __m512bh k[2 * B];
      UNROLL for (int c = 0; c < 2 * B; ++c) k[c] = load_pairs(keys[c / 2] + d * kBlockSize * 4 + c % 2 * 64);
      UNROLL for (int r = 0; r < R; ++r) {
        const __m512bh channels = pair_of(q[d * R + r]);
        UNROLL for (int c = 0; c < 2 * B; ++c) acc[r][c] = _mm512_dpbf16_ps(acc[r][c], channels, k[c]);
      }
    }
    UNROLL for (int r = 0; r < R; ++r) {
      UNROLL for (int c = 0; c < 2 * B; ++c) _mm512_storeu_ps(&scores[r][c * 16], acc[r][c]);
    }
  }

  // As softmax_update of every row, but the weights go to `rounded`, and what is one number per row is done for all at once.
  void softmax(float (*scores)[kChunk], int64_t start, int64_t at, int64_t n, float* shrink) {
    __m512 rows[8];
    UNROLL for (int r = 0; r < 8; ++r) rows[r] = r < R ? (__m512)hide_unseen(a, row0 + r, scores[r < R ? r : 0], start, at, n) : _mm512_setzero_ps();
    const auto mine = static_cast<__mmask16>((1u << R) - 1);
    const __m512 before = _mm512_maskz_loadu_ps(mine, a.max + row0), log2e = _mm512_set1_ps(kLog2E);
    const __m512 top = reduce8(rows, [](__m512 x, __m512 y) __attribute__((always_inline)) { return _mm512_max_ps(x, y); });
    const __m512 most = _mm512_mask_mov_ps(before, _mm512_cmp_ps_mask(top, before, _CMP_GT_OQ), top);
    const __mmask16 some = _mm512_cmp_ps_mask(most, _mm512_set1_ps(kMinusInf), _CMP_NEQ_UQ);
    const __m512 step = exp2_rough(_mm512_maskz_mul_ps(some, _mm512_sub_ps(before, most), log2e));  // -inf - most at the first chunk
    alignas(64) float shift[16];
    _mm512_store_ps(shift, _mm512_maskz_mul_ps(some, most, log2e));
    UNROLL for (int r = 0; r < R; ++r) {
      const __m512 less = _mm512_set1_ps(shift[r]);
      __m512 sums = _mm512_setzero_ps();
      for (int64_t i = at; i < n; i += 32) {
        __m512 p[2];
        UNROLL for (int k = 0; k < 2; ++k) {
          p[k] = exp2_rough(_mm512_fmsub_ps(_mm512_load_ps(&scores[r][i + 16 * k]), log2e, less));
          sums = _mm512_add_ps(sums, p[k]);
        }
        _mm512_store_si512(&rounded[r][i], (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
      }
      rows[r] = sums;
    }
    const __m512 total = reduce8(rows, [](__m512 x, __m512 y) __attribute__((always_inline)) { return _mm512_add_ps(x, y); });
    _mm512_mask_storeu_ps(shrink, mine, step);
    _mm512_mask_storeu_ps(a.max + row0, mine, most);
    _mm512_mask_storeu_ps(a.sum + row0, mine, _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mine, a.sum + row0), step, total));
  }

  void weigh(const Chunk& chunk, const float (*)[kChunk], const float* shrink) const {
    constexpr int kWide = R <= 3 ? 4 : 2;
    const int64_t pad = a.layer->value_pad;
    int64_t at = 0;
    for (; at + kWide * 16 <= pad; at += kWide * 16) columns<kWide>(chunk, rounded, shrink, at);
    for (; at < pad; at += 16) columns<1>(chunk, rounded, shrink, at);
  }

  // out[r, at : at + C * 16]
  template <int C>
  [[gnu::noinline]] void columns(const Chunk& chunk, const uint16_t (*weights)[kChunk], const float* shrink, int64_t at) const {
    const int64_t pad = a.layer->value_pad;
    __m512 acc[R][C];
    UNROLL for (int r = 0; r < R; ++r) {
      UNROLL for (int c = 0; c < C; ++c)
        acc[r][c] = _mm512_mul_ps(_mm512_loadu_ps(a.out + (row0 + r) * pad + at + c * 16), _mm512_set1_ps(shrink[r]));
    }
    const auto add = [&](int64_t j, __m512i seen) __attribute__((always_inline)) {
      const uint8_t* row = chunk.values[j / kBlockSize] + (j % kBlockSize / 2 * pad + at) * 4;
      __m512bh v[C];
      UNROLL for (int c = 0; c < C; ++c) v[c] = (__m512bh)_mm512_and_si512(_mm512_loadu_si512(row + c * 64), seen);
      UNROLL for (int r = 0; r < R; ++r) {
        uint32_t pair;
        memcpy(&pair, &weights[r][j], 4);
        UNROLL for (int c = 0; c < C; ++c) acc[r][c] = _mm512_dpbf16_ps(acc[r][c], pair_of(pair), v[c]);
      }
    };
    // At either end only one of two keys may be seen: what the other holds is not to be used, be it NaN.
    const __m512i both = _mm512_set1_epi32(-1), low = _mm512_set1_epi32(0xffff), high = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000));
    int64_t j = chunk.from;
    if (j % 2) add(j - 1, high), ++j;
    for (; j + 2 <= chunk.to; j += 2) add(j, both);
    if (j < chunk.to) add(j, low);
    UNROLL for (int r = 0; r < R; ++r) {
      UNROLL for (int c = 0; c < C; ++c) _mm512_storeu_ps(a.out + (row0 + r) * pad + at + c * 16, acc[r][c]);
    }
  }
};

// v[i] lane j  <->  v[j] lane i, of 32-bit lanes.
inline void transpose8(__m256i v[8]) {
  __m256i a[8], b[8];
  UNROLL for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
    a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
  }
  UNROLL for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  UNROLL for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
    v[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
  }
}

inline __m256i rounded16(const float* x, __mmask16 m, float scale) {
  return (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_maskz_loadu_ps(m, x), _mm512_set1_ps(scale)));
}

inline __mmask16 first16(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : (1u << n) - 1); }

}  // namespace

void prepare_queries_avx512bf16(const CacheLayer& l, const float* const* rows, int count, float scale, float* q) {
  if (!in_pairs(l)) return prepare_queries_ref(l, rows, count, scale, q);
  static_assert(kMaxRows == 8);
  const __mmask8 stored = static_cast<__mmask8>((1u << count) - 1);
  auto* to = reinterpret_cast<uint32_t*>(q);
  for (int64_t d = 0; d < l.key_dim; d += 16) {
    __m256i v[8];
    UNROLL for (int r = 0; r < 8; ++r)
      v[r] = r < count ? rounded16(rows[r] + d, first16(l.key_dim - d), scale) : _mm256_setzero_si256();
    transpose8(v);
    const int64_t pairs = (l.key_dim - d) / 2;
    UNROLL for (int i = 0; i < 8; ++i)
      if (i < pairs) _mm256_mask_storeu_epi32(to + (d / 2 + i) * count, stored, v[i]);
  }
}

void attend_avx512bf16(const AttentionArgs& a) {
  if (in_pairs(*a.layer)) attend_tiles<PairProducts>(a);
  else attend_avx512(a);
}

void store_kv_avx512bf16(const CacheLayer& l, int64_t block, int64_t slot, int64_t head, const float* key,
                         const float* value) {
  if (!in_pairs(l)) return store_kv_avx2(l, block, slot, head, key, value);
  const int64_t at = block * l.kv_heads + head;
  uint8_t* keys = l.keys + (at * l.key_dim * kBlockSize + slot * 2) * 2;
  for (int64_t d = 0; d < l.key_dim; d += 16) {
    alignas(32) uint32_t pairs[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(pairs), rounded16(key + d, first16(l.key_dim - d), 1));
    for (int64_t i = 0; i < 8 && d + 2 * i < l.key_dim; ++i) memcpy(keys + (d / 2 + i) * kBlockSize * 4, pairs + i, 4);
  }
  uint8_t* values = l.values + (at * kBlockSize * l.value_pad + slot / 2 * l.value_pad * 2 + slot % 2) * 2;
  for (int64_t d = 0; d < l.value_dim; d += 16) {
    alignas(32) uint16_t each[16];
    _mm256_store_si256(reinterpret_cast<__m256i*>(each), rounded16(value + d, first16(l.value_dim - d), 1));
    for (int64_t i = 0; i < 16 && d + i < l.value_dim; ++i) memcpy(values + (d + i) * 4, each + i, 2);
  }
}

}  // namespace datong
