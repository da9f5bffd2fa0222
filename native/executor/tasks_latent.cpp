// latent_attention, in the absorbed form (datong/spec/reference_latent.py is the expanded one):
//
//   1. new rows [latent, k_rope] go into the cache; per head, q[:P] @ up and q[P:] make a query over whole rows;
//   2. per token and a few heads, softmax over the sequence's rows, or the chosen ones, and the sum of their first C
//      channels;
//   3. per head, that sum comes back through `down`.
//
// 1 and 3 are cut by heads: a row of the weight is dequantised once for all tokens. 2 is cut by tokens and heads: a block
// of rows is widened once for kHeads of them. Every sum goes in one order, whatever the batch (ADR 0027).
//
// A block of this cache is [kBlockSize, C + R], row by row: all heads read whole rows, so nothing is transposed.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/convert.h"
#include "core/error.h"
#include "executor/task.h"
#include "kernels/attention/attention.h"
#include "kernels/embedding/embedding.h"
#include "kernels/vector/vector.h"

namespace datong {
namespace {

constexpr int64_t kHeads = 8;
constexpr float kNever = -std::numeric_limits<float>::infinity();

class LatentAttention : public Task {
 public:
  LatentAttention(const NodeView& node, const BuildContext& context)
      : q_(node.input_index(0)), latent_(node.input_index(1)), rope_(node.input_index(2)), y_(node.output_index(0)) {
    heads_ = node.integer("num_heads");
    plain_ = node.integer("plain");
    wide_ = node.activation(1).width;
    turned_ = node.activation(2).width;
    row_ = wide_ + turned_;
    weight_ = node.matrix(3).weight.view;
    if (heads_ < 1 || plain_ < 1 || weight_.in != wide_ || weight_.out % heads_)
      node.invalid("has a weight that is not [num_heads x (plain + value), latent]");
    value_ = weight_.out / heads_ - plain_;
    if (value_ < 1) node.invalid("has a weight without rows for values");
    node.activation(0, heads_ * (plain_ + turned_));
    if (node.present(4)) {
      chosen_ = node.input_index(4);
      top_ = node.activation(4).width;
      if (top_ > int64_t{1} << 24) node.refuse("more than 2^24 chosen keys");
    }
    for (int i = 0; i < node.input_count(); ++i)
      if (i != 3 && node.present(i) && node.activation(i).lead != Lead::tokens) node.invalid("works on tokens, rows came");
    node.result(0, Lead::tokens, heads_ * value_);
    scale_ = static_cast<float>(node.number("scale"));
    if (context.caches) find_cache(node, *context.caches);
    const auto& variant = pick(vector_variants(), context.features);
    vector_ = variant.kernel;
    implementation = std::string("latent_attention_") + variant.name;
  }

  Scratch scratch(int64_t tokens, int64_t, int) const override {
    if (tokens == 0) return {};
    const auto floats = [](int64_t n) { return static_cast<size_t>(n) * sizeof(float); };
    return {floats(tokens * heads_ * (row_ + wide_)), floats(std::max(wide_, kBlockSize * (row_ + 1)))};
  }

  void run(const Run& run, Team& team) const override {
    if (run.tokens == 0) return;
    const CacheLayer& layer = run.cache->at(cache_);
    float* own = reinterpret_cast<float*>(run.own[team.index()]);
    float* queries = reinterpret_cast<float*>(run.shared);        // [tokens, heads, C + R]
    float* found = queries + run.tokens * heads_ * row_;           // [tokens, heads, C]
    store(run, layer, team.share(run.tokens));
    const Range mine = team.share(heads_);
    for (int64_t h = mine.begin; h < mine.end; ++h) narrow(run, h, queries, own);
    team.barrier();
    const int64_t groups = (heads_ + kHeads - 1) / kHeads;
    for (int64_t i = team.index(); i < run.tokens * groups; i += team.size())
      attend(run, layer, i / groups, i % groups * kHeads, queries, found, own);
    team.barrier();
    for (int64_t h = mine.begin; h < mine.end; ++h) widen(run, h, found, own);
  }

 private:
  void find_cache(const NodeView& node, const std::vector<CacheSpec>& caches) {
    const int64_t layer = node.integer("layer");
    for (size_t i = 0; i < caches.size(); ++i) {
      if (caches[i].layer != layer || caches[i].kind != CacheKind::latent) continue;
      if (caches[i].kv_heads != 1 || caches[i].key_dim != row_ || caches[i].value_dim != wide_ || caches[i].window)
        node.invalid(text("does not fit the cache of layer %lld", static_cast<long long>(layer)));
      cache_ = i;
      return;
    }
    node.invalid(text("uses the cache of layer %lld, which the part does not have", static_cast<long long>(layer)));
  }

  static int64_t sequence_of(const Run& run, int64_t token) {
    return std::upper_bound(run.query_starts, run.query_starts + run.sequences + 1, token) - run.query_starts - 1;
  }
  static int64_t position_of(const Run& run, int64_t s, int64_t token) {
    return run.context_lens[s] - run.query_starts[s + 1] + token;
  }

  void store(const Run& run, const CacheLayer& layer, Range tokens) const {
    for (int64_t t = tokens.begin; t < tokens.end; ++t) {
      const int64_t s = sequence_of(run, t), position = position_of(run, s, t);
      const int64_t block = run.block_tables[s * run.table_width + position / kBlockSize];
      const int64_t at = (block * kBlockSize + position % kBlockSize) * row_;
      put(layer, at, run.floats(latent_) + t * wide_, wide_);
      put(layer, at + wide_, run.floats(rope_) + t * turned_, turned_);
    }
  }

  static void put(const CacheLayer& layer, int64_t at, const float* x, int64_t n) {
    if (layer.type == CacheType::f32) {
      std::copy_n(x, n, reinterpret_cast<float*>(layer.keys) + at);
      return;
    }
    uint16_t* to = reinterpret_cast<uint16_t*>(layer.keys) + at;
    for (int64_t i = 0; i < n; ++i) to[i] = layer.type == CacheType::f16 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
  }

  // Queries of one head over whole rows, times the scale.
  void narrow(const Run& run, int64_t h, float* queries, float* row) const {
    const int64_t dim = plain_ + turned_;
    for (int64_t t = 0; t < run.tokens; ++t) {
      const float* q = run.floats(q_) + (t * heads_ + h) * dim;
      float* to = queries + (t * heads_ + h) * row_;
      std::fill_n(to, wide_, 0.0f);
      for (int64_t r = 0; r < turned_; ++r) to[wide_ + r] = q[plain_ + r] * scale_;
    }
    for (int64_t p = 0; p < plain_; ++p) {
      embedding_row(weight_, h * (plain_ + value_) + p, row);
      for (int64_t t = 0; t < run.tokens; ++t)
        vector_.axpy(run.floats(q_)[(t * heads_ + h) * dim + p] * scale_, row, queries + (t * heads_ + h) * row_, wide_);
    }
  }

  void widen(const Run& run, int64_t h, const float* found, float* row) const {
    for (int64_t v = 0; v < value_; ++v) {
      embedding_row(weight_, h * (plain_ + value_) + plain_ + v, row);
      for (int64_t t = 0; t < run.tokens; ++t)
        run.result(y_)[(t * heads_ + h) * value_ + v] = vector_.dot(found + (t * heads_ + h) * wide_, row, wide_);
    }
  }

  // Heads [first, first + kHeads) of one token.
  void attend(const Run& run, const CacheLayer& layer, int64_t t, int64_t first, const float* queries, float* found,
              float* own) const {
    const int64_t s = sequence_of(run, t), end = position_of(run, s, t) + 1, heads = std::min(kHeads, heads_ - first);
    const int32_t* table = run.block_tables + s * run.table_width;
    const int64_t count = chosen_ < 0 ? end : top_;
    float *rows = own, *scores = own + kBlockSize * row_, top[kHeads], total[kHeads];
    std::fill_n(top, kHeads, kNever);
    std::fill_n(total, kHeads, 0.0f);
    std::fill_n(found + (t * heads_ + first) * wide_, heads * wide_, 0.0f);
    for (int64_t start = 0; start < count; start += kBlockSize) {
      int64_t n = std::min(kBlockSize, count - start);
      const float* block = rows;
      if (chosen_ >= 0)
        n = gather(layer, table, run.floats(chosen_) + t * top_ + start, n, end, rows);
      else
        block = read(layer, table[start / kBlockSize] * kBlockSize * row_, n, rows);
      for (int64_t h = 0; h < heads; ++h) {
        const float* query = queries + (t * heads_ + first + h) * row_;
        float* sum = found + (t * heads_ + first + h) * wide_;
        float most = top[h];
        for (int64_t j = 0; j < n; ++j) {
          scores[j] = vector_.dot(query, block + j * row_, row_);
          most = std::max(most, scores[j]);
        }
        if (most > top[h] && total[h] > 0) {
          const float shrink = std::exp(top[h] - most);
          for (int64_t c = 0; c < wide_; ++c) sum[c] *= shrink;
          total[h] *= shrink;
        }
        top[h] = most;
        for (int64_t j = 0; j < n; ++j) {
          const float share = std::exp(scores[j] - most);
          total[h] += share;
          vector_.axpy(share, block + j * row_, sum, wide_);
        }
      }
    }
    for (int64_t h = 0; h < heads; ++h) {
      float* sum = found + (t * heads_ + first + h) * wide_;
      for (int64_t c = 0; total[h] > 0 && c < wide_; ++c) sum[c] /= total[h];
    }
  }

  // n neighbouring rows in f32: where they lie, or widened into `into`.
  const float* read(const CacheLayer& layer, int64_t at, int64_t n, float* into) const {
    if (layer.type == CacheType::f32) return reinterpret_cast<const float*>(layer.keys) + at;
    vector_.widen(reinterpret_cast<const uint16_t*>(layer.keys) + at, layer.type == CacheType::bf16, into, n * row_);
    return into;
  }

  // The rows of those among n numbers that lie below `end`, one behind the other; how many.
  int64_t gather(const CacheLayer& layer, const int32_t* table, const float* numbers, int64_t n, int64_t end, float* rows) const {
    int64_t found = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (!(numbers[i] >= 0) || numbers[i] >= static_cast<float>(end)) continue;
      const int64_t j = static_cast<int64_t>(numbers[i]);
      float* to = rows + found++ * row_;
      const float* row = read(layer, (table[j / kBlockSize] * kBlockSize + j % kBlockSize) * row_, 1, to);
      if (row != to) std::copy_n(row, row_, to);
    }
    return found;
  }

  int q_, latent_, rope_, chosen_ = -1, y_;
  int64_t heads_, plain_, wide_, turned_, row_, value_, top_ = 0;  // H, P, C, R, C + R, Dv, K
  WeightView weight_;
  float scale_;
  size_t cache_ = 0;
  VectorKernel vector_;
};

}  // namespace

std::unique_ptr<Task> make_latent_attention(const NodeView& node, const BuildContext& context) {
  node.expect_counts(4, 5, 1);
  return std::make_unique<LatentAttention>(node, context);
}

}  // namespace datong
