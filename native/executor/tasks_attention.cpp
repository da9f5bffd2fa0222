// attention: put the new keys and values into the cache, then let every new token look at its sequence's cache.
//
// The work is cut into items: (sequence, K/V head, tile of query rows), where the rows of a K/V head are its query
// heads for all new tokens of the sequence: K and V are read once for all of them. Items go round robin to the threads;
// neighbours cost the same. Decoding few long sequences gives fewer items than threads: then each item's keys are cut
// into pieces, whose results are merged after a barrier.
#include <algorithm>
#include <cmath>

#include "core/dispatch.h"
#include "core/error.h"
#include "executor/task.h"
#include "kernels/attention/attention.h"

namespace datong {
namespace {

constexpr int64_t kLeastPiece = 256;  // keys; below, the barrier costs more than the cut saves

struct Item {
  int64_t sequence, head, tile, piece;
};

class Attention : public Task {
 public:
  Attention(const NodeView& node, const BuildContext& context)
      : q_(node.input_index(0)), k_(node.input_index(1)), v_(node.input_index(2)), y_(node.output_index(0)) {
    const int64_t q_heads = node.integer("num_heads");
    heads_ = node.integer("num_kv_heads");
    if (heads_ < 1 || q_heads < 1 || q_heads % heads_) node.invalid("has num_heads that num_kv_heads does not divide");
    group_ = q_heads / heads_;
    const int64_t q_width = node.activation(0).width;
    if (q_width % q_heads) node.invalid("has num_heads that does not divide its row");
    dim_ = q_width / q_heads;
    node.activation(1, heads_ * dim_);
    const int64_t v_width = node.activation(2).width;
    if (v_width % heads_) node.invalid("has num_kv_heads that does not divide the row of v");
    value_dim_ = v_width / heads_;
    pad_ = padded_value_dim(value_dim_);
    for (int i = 0; i < 3; ++i)
      if (node.activation(i).lead != Lead::tokens) node.invalid("works on tokens, rows came");
    node.result(0, Lead::tokens, q_heads * value_dim_);
    scale_ = static_cast<float>(node.number("scale"));
    softcap_ = static_cast<float>(node.number_or("softcap", 0));
    window_ = node.integer_or("window", 0);
    if (!(softcap_ >= 0) || window_ < 0) node.invalid("wants softcap >= 0 and window >= 0");
    if (const Value* sinks = node.plain_vector(3, q_heads)) sinks_ = sinks->floats;
    if (const Value* slopes = node.plain_vector(4, q_heads)) set_bias(node, *slopes);
    const int64_t layer = node.integer("layer");
    if (context.caches) find_cache(node, *context.caches, layer);
    const auto& variant = pick(attention_variants(), context.features);
    kernel_ = variant.kernel;
    implementation = std::string("attention_") + variant.name;
  }

  Scratch scratch(int64_t tokens, int64_t, int threads) const override {
    if (tokens == 0) return {};
    return {partial_floats() * static_cast<size_t>(max_partials(threads)) * 4, (partial_floats() + query_floats()) * 4};
  }

  void run(const Run& run, Team& team) const override {
    if (run.tokens == 0) return;
    const CacheLayer& layer = run.cache->at(cache_index_);
    const Plan plan = make_plan(run, team.size());
    if (!plan.store_inside) {
      const Range share = team.share(run.tokens * heads_);
      store(run, layer, share, 0);
      team.barrier();
    }
    int64_t i = 0;
    for (int64_t s = 0; s < run.sequences; ++s)
      for (int64_t h = 0; h < heads_; ++h)
        for (int64_t tile = 0; tile < tiles(run, s); ++tile)
          for (int64_t piece = 0; piece < plan.pieces; ++piece, ++i) {
            if (i % team.size() != team.index()) continue;
            float* own = reinterpret_cast<float*>(run.own[team.index()]);
            float* partial =
                plan.pieces > 1 ? reinterpret_cast<float*>(run.shared) + i * partial_floats() : own + query_floats();
            const int64_t own_row = run.query_starts[s] * heads_ + h;
            if (plan.store_inside) store(run, layer, {own_row, own_row + 1}, s);
            attend(run, layer, {s, h, tile, piece}, plan.pieces, own, partial);
            if (plan.pieces == 1) finish(run, {s, h, tile, 0}, partial);
          }
    if (plan.pieces > 1) merge(run, team, plan.pieces);
  }

 private:
  struct Plan {
    int64_t pieces;
    bool store_inside;  // each item puts its own token into the cache: no barrier
  };

  static int64_t max_partials(int threads) { return 4 * threads; }
  size_t query_floats() const { return static_cast<size_t>((kMaxRows * dim_ + 15) / 16 * 16); }
  size_t partial_floats() const { return static_cast<size_t>(kMaxRows * pad_ + 2 * kMaxRows); }

  void set_bias(const NodeView& node, const Value& slopes) {
    const std::string bias = node.word_or("bias", "none");
    if (bias != "none" && bias != "alibi" && bias != "sqrt_alibi")
      node.refuse("bias of kind `" + bias + "`, alibi and sqrt_alibi are known");
    slopes_ = slopes.floats;
    if (bias != "none") distance_ = bias == "alibi" ? Distance::linear : Distance::square_root;
  }

  void find_cache(const NodeView& node, const std::vector<CacheSpec>& caches, int64_t layer) {
    for (size_t i = 0; i < caches.size(); ++i) {
      if (caches[i].layer != layer || caches[i].kind != CacheKind::tokens) continue;
      if (caches[i].kv_heads != heads_ || caches[i].key_dim != dim_ || caches[i].value_dim != value_dim_)
        node.invalid(text("does not fit the cache of layer %lld", static_cast<long long>(layer)));
      if (caches[i].window && (window_ == 0 || window_ > caches[i].window))
        node.invalid(text("sees more tokens than the cache of layer %lld keeps", static_cast<long long>(layer)));
      cache_index_ = i;
      return;
    }
    node.invalid(text("uses the cache of layer %lld, which the part does not have", static_cast<long long>(layer)));
  }

  static int64_t new_tokens(const Run& run, int64_t s) { return run.query_starts[s + 1] - run.query_starts[s]; }
  const int32_t* table(const Run& run, int64_t s) const {
    return run.cache->is_apart(cache_index_) ? run.window_tables + s * run.window_width
                                             : run.block_tables + s * run.table_width;
  }
  int64_t tiles(const Run& run, int64_t s) const { return (new_tokens(run, s) * group_ + kMaxRows - 1) / kMaxRows; }

  Plan make_plan(const Run& run, int threads) const {
    int64_t items = 0, longest = 0;
    bool single = true;
    for (int64_t s = 0; s < run.sequences; ++s) {
      items += heads_ * tiles(run, s);
      single = single && new_tokens(run, s) == 1;
      const int64_t context = run.context_lens[s];
      longest = std::max(longest, window_ ? std::min(context, window_) : context);
    }
    Plan plan{1, single && group_ <= kMaxRows};
    if (items && items < 2 * threads && threads > 1) {
      plan.pieces = std::max<int64_t>(1, std::min((2 * threads + items - 1) / items, longest / kLeastPiece));
      if (plan.pieces > 1) plan.store_inside = false;
    }
    return plan;
  }

  // New tokens x heads, numbered token * heads + head; the first is of sequence s or a later one.
  void store(const Run& run, const CacheLayer& layer, Range range, int64_t s) const {
    for (int64_t i = range.begin; i < range.end; ++i) {
      const int64_t token = i / heads_, head = i % heads_;
      while (token >= run.query_starts[s + 1]) ++s;
      const int64_t position = run.context_lens[s] - run.query_starts[s + 1] + token;
      const int32_t block = table(run, s)[position / kBlockSize];
      kernel_.store(layer, block, position % kBlockSize, head, run.floats(k_) + i * dim_,
                    run.floats(v_) + i * value_dim_);
    }
  }

  void attend(const Run& run, const CacheLayer& layer, const Item& item, int64_t pieces, float* queries,
              float* partial) const {
    const int64_t s = item.sequence, first_token = run.query_starts[s], n = new_tokens(run, s);
    const int64_t context = run.context_lens[s];
    AttentionArgs a;
    a.layer = &layer;
    a.head = item.head;
    a.blocks = table(run, s);
    a.rows = static_cast<int>(std::min<int64_t>(kMaxRows, n * group_ - item.tile * kMaxRows));
    int64_t least = context;
    for (int r = 0; r < a.rows; ++r) {
      const int64_t row = item.tile * kMaxRows + r, token = row / group_, head = item.head * group_ + row % group_;
      const int64_t position = context - n + token;
      const float* q = run.floats(q_) + ((first_token + token) * heads_ * group_ + head) * dim_;
      for (int64_t d = 0; d < dim_; ++d) queries[d * a.rows + r] = q[d] * scale_;
      a.first[r] = window_ ? std::max<int64_t>(0, position - window_ + 1) : 0;
      a.last[r] = position + 1;
      if (distance_ != Distance::none) a.slope[r] = slopes_[static_cast<size_t>(head)];
      least = std::min(least, a.first[r]);
    }
    const int64_t start = least / kBlockSize * kBlockSize;
    const int64_t each = ((context - start + pieces - 1) / pieces + kBlockSize - 1) / kBlockSize * kBlockSize;
    a.begin = std::min(context, start + item.piece * each);
    a.end = std::min(context, a.begin + each);
    a.q = queries;
    a.softcap = softcap_;
    a.distance = distance_;
    a.out = partial;
    a.max = partial + kMaxRows * pad_;
    a.sum = a.max + kMaxRows;
    kernel_.attend(a);
  }

  void finish(const Run& run, const Item& item, const float* partial) const {
    const int64_t s = item.sequence, rows = new_tokens(run, s) * group_;
    const float *tops = partial + kMaxRows * pad_, *sums = tops + kMaxRows;
    for (int64_t r = 0; r < kMaxRows && item.tile * kMaxRows + r < rows; ++r) {
      const int64_t row = item.tile * kMaxRows + r, token = run.query_starts[s] + row / group_;
      const int64_t head = item.head * group_ + row % group_;
      float* y = run.result(y_) + (token * heads_ * group_ + head) * value_dim_;
      const float factor = sinks_.empty() ? 1.0f / sums[r] : with_sink(tops[r], sums[r], sinks_[static_cast<size_t>(head)]);
      for (int64_t d = 0; d < value_dim_; ++d) y[d] = partial[r * pad_ + d] * factor;
    }
  }

  // A sink is one more key of that score, whose value is 0: it adds to the sum only. NaN of a NaN sum.
  static float with_sink(float top, float sum, float sink) {
    const float most = std::max(top, sink), mine = std::exp(top - most);
    return mine / (sum * mine + std::exp(sink - most));
  }

  void merge(const Run& run, Team& team, int64_t pieces) const {
    team.barrier();
    float* partial = reinterpret_cast<float*>(run.shared);
    int64_t i = 0;
    for (int64_t s = 0; s < run.sequences; ++s)
      for (int64_t h = 0; h < heads_; ++h)
        for (int64_t tile = 0; tile < tiles(run, s); ++tile, ++i) {
          if (i % team.size() != team.index()) continue;
          float* first = partial + i * pieces * partial_floats();
          const int64_t rows = std::min<int64_t>(kMaxRows, new_tokens(run, s) * group_ - tile * kMaxRows);
          for (int64_t piece = 1; piece < pieces; ++piece) {
            const float* other = first + piece * partial_floats();
            for (int64_t r = 0; r < rows; ++r)
              merge_attention(first + r * pad_, first + kMaxRows * pad_ + r, first + kMaxRows * pad_ + kMaxRows + r,
                              other + r * pad_, other[kMaxRows * pad_ + r], other[kMaxRows * pad_ + kMaxRows + r], pad_);
          }
          finish(run, {s, h, tile, 0}, first);
        }
  }

  int q_, k_, v_, y_;
  size_t cache_index_ = 0;
  int64_t heads_, group_, dim_, value_dim_, pad_, window_;
  float scale_, softcap_;
  std::vector<float> sinks_, slopes_;  // by query head; empty: none
  Distance distance_ = Distance::none;
  AttentionKernel kernel_;
};

}  // namespace

std::unique_ptr<Task> make_attention(const NodeView& node, const BuildContext& context) {
  node.expect_counts(3, 5, 1);
  return std::make_unique<Attention>(node, context);
}

}  // namespace datong
