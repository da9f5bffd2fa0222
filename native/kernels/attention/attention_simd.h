// Body of the vector variants; included by each ISA file.
//
// Keys are taken in chunks of a few blocks: scores of the chunk for all rows, then the softmax update (one rescale per
// chunk), then the weighted sum of the values. K and V of a block are read once for all rows.
//
// A row's result has the same bits whichever rows it is computed with (ADR 0027): chunks begin at multiples of kChunk,
// every sum goes in one order for all numbers of rows, and a key that a row does not see adds an exact 0.
#include "core/simd.h"
#include "kernels/attention/attention.h"

namespace datong {
namespace {

constexpr int kChunkBlocks = 4;
constexpr int64_t kChunk = kChunkBlocks * kBlockSize;
constexpr float kMinusInf = -__builtin_inff();

// Without it GCC keeps arrays of vectors in memory, and what is loaded once is stored and loaded again.
#define UNROLL _Pragma("GCC unroll 32")

// Accumulators of `rows` x 2 vectors must fit the registers: 16 with AVX2, 32 elsewhere.
#if defined(__AVX512F__) || defined(__aarch64__)
#define DATONG_MANY_REGISTERS 1
#endif
#if DATONG_MANY_REGISTERS
constexpr int kTileRows = kMaxRows;
#else
constexpr int kTileRows = 4;
#endif

template <CacheType type>
inline Vec load_cache(const uint8_t* base, int64_t i) {
  if constexpr (type == CacheType::f32)
    return load(reinterpret_cast<const float*>(base) + i);
  else
    return load_half(reinterpret_cast<const uint16_t*>(base) + i, type == CacheType::bf16);
}

// With one row the two vectors of scores in a block would wait for each other's sums: two blocks go at once.
template <int R>
constexpr int kAtOnce = R == 1 && kLanes == kBlockSize / 2 ? 2 : 1;

// How scores and sums of values come about, from a cache of plain elements. A Products class has:
//   Products(args, row0)            for R rows from row0 on
//   kAtOnce                         blocks whose scores are taken together
//   scores<B>(keys, scores)         scores[r, 0 : B * kBlockSize] = q[r] . K of B blocks, one behind another in the chunk
//   softmax(scores, start, at, n, shrink)   weights of the chunk, as softmax_update
//   weigh(chunk, scores, shrink)    out[r] = out[r] * shrink[r] + weights[r] . V
template <int R, int B, CacheType type>
inline void block_scores(const AttentionArgs& a, int row0, const uint8_t* const keys[B], float (*scores)[kChunk]) {
  const int64_t dim = a.layer->key_dim, stride = R == kMaxRows ? kMaxRows : a.rows;
  const float* q = a.q + row0;
  for (int64_t slot = 0; slot < kBlockSize; slot += 2 * kLanes) {
    Vec acc[R][2 * B];
    UNROLL for (int r = 0; r < R; ++r) {
      UNROLL for (int c = 0; c < 2 * B; ++c) acc[r][c] = Vec{};
    }
    for (int64_t d = 0; d < dim; ++d) {
      Vec k[2 * B];
      UNROLL for (int c = 0; c < 2 * B; ++c) k[c] = load_cache<type>(keys[c / 2], d * kBlockSize + slot + c % 2 * kLanes);
      UNROLL for (int r = 0; r < R; ++r) {
        const Vec channel = splat(q[d * stride + r]);
        UNROLL for (int c = 0; c < 2 * B; ++c) acc[r][c] += channel * k[c];
      }
    }
    UNROLL for (int r = 0; r < R; ++r) {
      UNROLL for (int c = 0; c < 2 * B; ++c) store(&scores[r][c / 2 * kBlockSize + slot + c % 2 * kLanes], acc[r][c]);
    }
  }
}

inline Vec soft_cap(Vec s, float cap) {
  const Vec e = exp(s * (2.0f / cap));
  return cap * (1.0f - 2.0f / (e + 1.0f));  // tanh
}

// Scores of one row: softcap and bias, unseen keys get -inf. Returns the largest of each lane, -inf if the row saw none.
// `start` is the key of scores[0]; scores [at, n), both multiples of kBlockSize, are there.
inline Vec hide_unseen(const AttentionArgs& a, int r, float* scores, int64_t start, int64_t at, int64_t n) {
  int64_t from = (a.begin > a.first[r] ? a.begin : a.first[r]) - start;
  int64_t to = (a.end < a.last[r] ? a.end : a.last[r]) - start;
  from = from < 0 ? 0 : from < n ? from : n;
  to = to < 0 ? 0 : to < n ? to : n;
  const bool all = from <= at && to == n;
  const VecI low = splat_int(static_cast<int32_t>(from)), high = splat_int(static_cast<int32_t>(to));
  Vec top = splat(kMinusInf);
  if (!all || a.softcap > 0 || a.distance != Distance::none) {
    const VecI own = splat_int(static_cast<int32_t>(a.last[r] - 1 - start));
    for (int64_t i = at; i < n; i += kLanes) {
      Vec s = load(scores + i);
      if (a.softcap > 0) s = soft_cap(s, a.softcap);
      const VecI index = iota() + static_cast<int32_t>(i);
      if (a.distance != Distance::none) {
        const Vec far = max(__builtin_convertvector(own - index, Vec), Vec{});
        s -= a.slope[r] * (a.distance == Distance::linear ? far : sqrt(far));
      }
      store(scores + i, (index >= low) & (index < high) ? s : splat(kMinusInf));
    }
  }
  for (int64_t i = at; i < n; i += kLanes) top = max(load(scores + i), top);
  return top;
}

// As hide_unseen. Returns the row's largest score so far, -inf if it saw none.
inline float finish_scores(const AttentionArgs& a, int r, float* scores, int64_t start, int64_t at, int64_t n) {
  const float most = largest(hide_unseen(a, r, scores, start, at, n));
  return most > a.max[r] ? most : a.max[r];
}

// Scores of one row -> weights exp(s - max) in place; unseen keys get 0. Updates max and sum; returns what to multiply
// the earlier results with. The arguments are those of finish_scores.
inline float softmax_update(const AttentionArgs& a, int r, float* scores, int64_t start, int64_t at, int64_t n) {
  const float most = finish_scores(a, r, scores, start, at, n);
  if (most == kMinusInf) {
    for (int64_t i = at; i < n; i += kLanes) store(scores + i, Vec{});
    return 1;
  }
  Vec total = {};
  for (int64_t i = at; i < n; i += kLanes) {
    const Vec p = exp(load(scores + i) - most);
    store(scores + i, p);
    total += p;
  }
  const float shrink = exp(splat(a.max[r] - most))[0];  // 0 at the first chunk: max was -inf
  a.sum[r] = a.sum[r] * shrink + sum(total);
  a.max[r] = most;
  return shrink;
}

// One chunk: its blocks and which of its slots any row sees.
struct Chunk {
  const uint8_t* values[kChunkBlocks];
  int64_t from, to;  // slots counted from the chunk's start
};

// out[r, at : at + C * kLanes] = out * shrink[r] + weights[r] . V. Not inlined: the constants of exp would take its registers.
template <int R, int C, CacheType type>
[[gnu::noinline]] void weigh_columns(const AttentionArgs& a, int row0, const Chunk& chunk, const float (*weights)[kChunk],
                          const float* shrink, int64_t at) {
  const int64_t pad = a.layer->value_pad;
  Vec acc[R][C];
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int c = 0; c < C; ++c) acc[r][c] = load(a.out + (row0 + r) * pad + at + c * kLanes) * shrink[r];
  }
  for (int64_t j = chunk.from; j < chunk.to; ++j) {
    const uint8_t* values = chunk.values[j / kBlockSize];
    const int64_t row = j % kBlockSize * pad + at;
    Vec v[C];
    UNROLL for (int c = 0; c < C; ++c) v[c] = load_cache<type>(values, row + c * kLanes);
    UNROLL for (int r = 0; r < R; ++r) {
      const Vec p = splat(weights[r][j]);
      UNROLL for (int c = 0; c < C; ++c) acc[r][c] += p * v[c];
    }
  }
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int c = 0; c < C; ++c) store(a.out + (row0 + r) * pad + at + c * kLanes, acc[r][c]);
  }
}

template <int R, CacheType type>
inline void weigh_values(const AttentionArgs& a, int row0, const Chunk& chunk, const float (*weights)[kChunk],
                         const float* shrink) {
  constexpr int kWide = R <= 3 ? 4 : 2;
  const int64_t pad = a.layer->value_pad;
  int64_t at = 0;
  for (; at + kWide * kLanes <= pad; at += kWide * kLanes)
    weigh_columns<R, kWide, type>(a, row0, chunk, weights, shrink, at);
  for (; at < pad; at += kLanes) weigh_columns<R, 1, type>(a, row0, chunk, weights, shrink, at);
}

template <int R, CacheType type>
struct PlainProducts {
  static constexpr int kAtOnce = datong::kAtOnce<R>;
  const AttentionArgs& a;
  int row0;
  PlainProducts(const AttentionArgs& args, int row) : a(args), row0(row) {}
  template <int B>
  void scores(const uint8_t* const keys[B], float (*scores)[kChunk]) const {
    block_scores<R, B, type>(a, row0, keys, scores);
  }
  void softmax(float (*scores)[kChunk], int64_t start, int64_t at, int64_t n, float* shrink) const {
    for (int r = 0; r < R; ++r) shrink[r] = softmax_update(a, row0 + r, scores[r], start, at, n);
  }
  void weigh(const Chunk& chunk, const float (*weights)[kChunk], const float* shrink) const {
    weigh_values<R, type>(a, row0, chunk, weights, shrink);
  }
};

template <int R, class Products>
void attend_tile(const AttentionArgs& a, int row0) {
  const CacheLayer& l = *a.layer;
  Products products(a, row0);
  for (int64_t i = 0; i < R * l.value_pad; ++i) a.out[row0 * l.value_pad + i] = 0;
  int64_t lo = a.end, hi = a.begin;  // keys that any row sees
  for (int r = row0; r < row0 + R; ++r) {
    a.max[r] = kMinusInf;
    a.sum[r] = 0;
    if (a.first[r] < lo) lo = a.first[r];
    if (a.last[r] > hi) hi = a.last[r];
  }
  if (lo < a.begin) lo = a.begin;
  if (hi > a.end) hi = a.end;
  const int64_t size = cache_type_bytes(l.type), key_block = l.key_dim * kBlockSize * size,
                value_block = l.value_pad * kBlockSize * size;
  alignas(64) float scores[R][kChunk];
  float shrink[R];
  for (int64_t start = lo / kChunk * kChunk; start < hi; start += kChunk) {
    Chunk chunk;
    chunk.from = lo > start ? lo - start : 0;
    chunk.to = hi - start < kChunk ? hi - start : kChunk;
    const int64_t first = chunk.from / kBlockSize, end = (chunk.to + kBlockSize - 1) / kBlockSize;
    const uint8_t* keys[kChunkBlocks];
    for (int64_t b = first; b < end; ++b) {
      const int64_t block = a.blocks[start / kBlockSize + b] * l.kv_heads + a.head;
      keys[b] = l.keys + block * key_block;
      chunk.values[b] = l.values + block * value_block;
    }
    const auto at = [&](int64_t b) { return reinterpret_cast<float(*)[kChunk]>(&scores[0][b * kBlockSize]); };
    int64_t b = first;
    for (; b + Products::kAtOnce <= end; b += Products::kAtOnce) products.template scores<Products::kAtOnce>(keys + b, at(b));
    for (; b < end; ++b) products.template scores<1>(keys + b, at(b));
    products.softmax(scores, start, first * kBlockSize, end * kBlockSize, shrink);
    products.weigh(chunk, scores, shrink);
  }
}

// ProductsOf<R>: the Products class of R rows.
template <template <int> class ProductsOf>
void attend_tiles(const AttentionArgs& a) {
  for (int row = 0; row < a.rows; row += kTileRows) {
    switch (a.rows - row < kTileRows ? a.rows - row : kTileRows) {
      case 1: attend_tile<1, ProductsOf<1>>(a, row); break;
      case 2: attend_tile<2, ProductsOf<2>>(a, row); break;
      case 3: attend_tile<3, ProductsOf<3>>(a, row); break;
      case 4: attend_tile<4, ProductsOf<4>>(a, row); break;
#if DATONG_MANY_REGISTERS
      case 5: attend_tile<5, ProductsOf<5>>(a, row); break;
      case 6: attend_tile<6, ProductsOf<6>>(a, row); break;
      case 7: attend_tile<7, ProductsOf<7>>(a, row); break;
      case 8: attend_tile<8, ProductsOf<8>>(a, row); break;
#endif
    }
  }
}

template <int R>
using F32Products = PlainProducts<R, CacheType::f32>;
template <int R>
using F16Products = PlainProducts<R, CacheType::f16>;
template <int R>
using Bf16Products = PlainProducts<R, CacheType::bf16>;

inline void attend_simd(const AttentionArgs& a) {
  switch (a.layer->type) {
    case CacheType::f32: return attend_tiles<F32Products>(a);
    case CacheType::f16: return attend_tiles<F16Products>(a);
    case CacheType::bf16: return attend_tiles<Bf16Products>(a);
  }
}

}  // namespace
}  // namespace datong
