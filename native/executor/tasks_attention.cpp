// attention: put the new keys and values into the cache, then let every new token look at its sequence's cache.
//
// The work is cut into items: (sequence, K/V head, tile of query rows), where the rows of a K/V head are its query
// heads for all new tokens of the sequence: K and V are read once for all of them. Items are ordered by token, and each
// thread takes a stretch of them that costs as much as any other's: of a prompt, nearly the tokens that it made the queries
// of (Program's large steps). Decoding few long sequences gives fewer items than threads: then each item's keys are cut
// into parts, which go round robin to the threads, and whose results are merged after a barrier.
//
// Whatever the cut, the same numbers are added in the same order (ADR 0027): keys are taken in pieces of kPiece, which are
// merged as the leaves of a binary tree over the whole sequence; a part is a subtree.
#include <algorithm>
#include <cmath>

#include "core/dispatch.h"
#include "core/error.h"
#include "executor/task.h"
#include "kernels/attention/attention.h"

namespace datong {
namespace {

constexpr int64_t kLeastCut = 2 * kPiece;  // keys; below, the barrier costs more than the cut saves
constexpr int64_t kDepth = 24;             // of the tree: kPiece << 23 is the largest position

struct Item {
  int64_t sequence, head, tile;
};

// Leaves [low, high) of the tree below the node that holds [first, first + count): leaf(i, depth) gives the result of one,
// where at most `depth` others are kept meanwhile; merge(left, right) adds the right one to the left one.
template <class Leaf, class Merge>
float* fold(int64_t first, int64_t count, int64_t low, int64_t high, int64_t depth, const Leaf& leaf, const Merge& merge) {
  if (count == 1) return leaf(first, depth);
  const int64_t half = count / 2, middle = first + half;
  if (low >= middle) return fold(middle, half, low, high, depth, leaf, merge);
  float* left = fold(first, half, low, high, depth, leaf, merge);
  if (high > middle) merge(left, fold(middle, half, low, high, depth + 1, leaf, merge));
  return left;
}

constexpr int64_t power_of_two(int64_t at_least) {
  int64_t n = 1;
  while (n < at_least) n *= 2;
  return n;
}

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
    CpuFeatures features = context.features;
    features.avx512_bf16 = features.avx512_bf16 && context.cache_type == CacheType::bf16 && context.activations != Activations::f32;
    const auto& variant = pick(attention_variants(), features);
    kernel_ = variant.kernel;
    implementation = std::string("attention_") + variant.name;
  }

  Scratch scratch(int64_t tokens, int64_t, int threads) const override {
    if (tokens == 0) return {};
    return {partial_floats() * static_cast<size_t>(max_partials(threads)) * 4,
            (partial_floats() * static_cast<size_t>(kDepth) + query_floats()) * 4};
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
    float* own = reinterpret_cast<float*>(run.own[team.index()]);
    if (plan.parts > 1) {
      run_parts(run, team, plan, own);
      return merge(run, team, plan);
    }
    int64_t total = 0, before = 0;
    for (int64_t s = 0; s < run.sequences; ++s)
      for (int64_t tile = 0; tile < tiles(run, s); ++tile) total += heads_ * cost(run, {s, 0, tile});
    for (int64_t s = 0; s < run.sequences; ++s)
      for (int64_t tile = 0; tile < tiles(run, s); ++tile)
        for (int64_t h = 0; h < heads_; ++h) {
          const Item item{s, h, tile};
          const int64_t mine = cost(run, item), middle = before + mine / 2;
          before += mine;
          if (middle * team.size() / total != team.index()) continue;
          const int64_t own_row = run.query_starts[s] * heads_ + h;
          if (plan.store_inside) store(run, layer, {own_row, own_row + 1}, s);
          finish(run, item, attend(run, layer, item, 0, 0, own));
        }
  }

 private:
  struct Plan {
    int64_t parts;      // of each item's keys
    int64_t size;       // of a part in pieces, a power of two
    bool store_inside;  // each item puts its own token into the cache: no barrier
  };
  // Keys that the rows of an item see, in pieces.
  struct Pieces {
    int64_t low, high;
    int64_t first_part(int64_t size) const { return low / size; }
    int64_t end_part(int64_t size) const { return (high + size - 1) / size; }
  };

  static int64_t max_partials(int threads) { return 16 * threads; }
  size_t query_floats() const { return static_cast<size_t>((kMaxRows * dim_ + 15) / 16 * 16); }
  size_t partial_floats() const { return static_cast<size_t>(kMaxRows * pad_ + 2 * kMaxRows); }
  float* shared_partial(const Run& run, int64_t i) const {
    return reinterpret_cast<float*>(run.shared) + static_cast<size_t>(i) * partial_floats();
  }

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
      longest = std::max(longest, window_ ? std::min(context, window_ + kMaxRows - 1) : context);
    }
    Plan plan{1, 1, single && group_ <= kMaxRows};
    if (items == 0 || items >= 2 * threads || threads == 1 || longest < kLeastCut) return plan;
    const auto parts = [&] { return longest / (plan.size * kPiece) + 2; };  // both ends may be inside a part
    while (items * parts() > max_partials(threads) && plan.size * kPiece < longest) plan.size *= 2;
    if (items * parts() <= max_partials(threads)) plan.parts = parts();
    if (plan.parts > 1) plan.store_inside = false;
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

  int rows_of(const Run& run, const Item& item) const {
    return static_cast<int>(std::min<int64_t>(kMaxRows, new_tokens(run, item.sequence) * group_ - item.tile * kMaxRows));
  }

  int64_t position_of(const Run& run, const Item& item, int64_t r) const {
    const int64_t s = item.sequence;
    return run.context_lens[s] - new_tokens(run, s) + (item.tile * kMaxRows + r) / group_;
  }

  int64_t first_key(int64_t position) const { return window_ ? std::max<int64_t>(0, position - window_ + 1) : 0; }

  // Positions grow with the rows.
  Pieces pieces_of(const Run& run, const Item& item) const {
    const int64_t last = position_of(run, item, rows_of(run, item) - 1);
    return {first_key(position_of(run, item, 0)) / kPiece, last / kPiece + 1};
  }

  // Of an item, in keys: those that its rows see, and what it costs to begin.
  int64_t cost(const Run& run, const Item& item) const {
    constexpr int64_t kBegin = 32;
    return position_of(run, item, rows_of(run, item) - 1) - first_key(position_of(run, item, 0)) + 1 + kBegin;
  }

  // The result of the item's part of `size` pieces, in `own`; of all its keys where size is 0; null where it has none.
  const float* attend(const Run& run, const CacheLayer& layer, const Item& item, int64_t size, int64_t part,
                      float* own) const {
    Pieces pieces = pieces_of(run, item);
    int64_t first = 0, count = power_of_two(pieces.high);
    if (size) {
      first = (pieces.first_part(size) + part) * size;
      count = size;
      if (first >= pieces.high) return nullptr;
    }
    AttentionArgs a;
    a.layer = &layer;
    a.head = item.head;
    a.blocks = table(run, item.sequence);
    a.rows = rows_of(run, item);
    const float* queries[kMaxRows];
    for (int r = 0; r < a.rows; ++r) {
      const int64_t row = item.tile * kMaxRows + r, head = item.head * group_ + row % group_;
      queries[r] = run.floats(q_) + ((run.query_starts[item.sequence] + row / group_) * heads_ * group_ + head) * dim_;
      const int64_t position = position_of(run, item, r);
      a.first[r] = first_key(position);
      a.last[r] = position + 1;
      if (distance_ != Distance::none) a.slope[r] = slopes_[static_cast<size_t>(head)];
    }
    kernel_.prepare(layer, queries, a.rows, scale_, own);
    a.q = own;
    a.softcap = softcap_;
    a.distance = distance_;
    const auto leaf = [&](int64_t i, int64_t depth) {
      a.begin = i * kPiece;
      a.end = std::min<int64_t>(a.begin + kPiece, run.context_lens[item.sequence]);
      a.out = own + query_floats() + static_cast<size_t>(depth) * partial_floats();
      a.max = a.out + kMaxRows * pad_;
      a.sum = a.max + kMaxRows;
      kernel_.attend(a);
      return a.out;
    };
    return fold(first, count, pieces.low, pieces.high, 0, leaf, [&](float* to, const float* other) { add(to, other, a.rows); });
  }

  // to := what both saw.
  void add(float* to, const float* other, int64_t rows) const {
    float *tops = to + kMaxRows * pad_, *sums = tops + kMaxRows;
    const float *their_tops = other + kMaxRows * pad_, *their_sums = their_tops + kMaxRows;
    for (int64_t r = 0; r < rows; ++r)
      merge_attention(to + r * pad_, tops + r, sums + r, other + r * pad_, their_tops[r], their_sums[r], pad_);
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

  void run_parts(const Run& run, const Team& team, const Plan& plan, float* own) const {
    const CacheLayer& layer = run.cache->at(cache_index_);
    int64_t i = 0;
    for (int64_t s = 0; s < run.sequences; ++s)
      for (int64_t h = 0; h < heads_; ++h)
        for (int64_t tile = 0; tile < tiles(run, s); ++tile, ++i)
          for (int64_t part = 0; part < plan.parts; ++part) {
            if ((i + part) % team.size() != team.index()) continue;
            const float* result = attend(run, layer, {s, h, tile}, plan.size, part, own);
            if (result) std::copy_n(result, partial_floats(), shared_partial(run, i * plan.parts + part));
          }
  }

  void merge(const Run& run, Team& team, const Plan& plan) const {
    team.barrier();
    int64_t i = 0;
    for (int64_t s = 0; s < run.sequences; ++s)
      for (int64_t h = 0; h < heads_; ++h)
        for (int64_t tile = 0; tile < tiles(run, s); ++tile, ++i) {
          if (i % team.size() != team.index()) continue;
          const Item item{s, h, tile};
          const Pieces pieces = pieces_of(run, item);
          const int64_t first = pieces.first_part(plan.size), end = pieces.end_part(plan.size);
          const auto leaf = [&](int64_t part, int64_t) { return shared_partial(run, i * plan.parts + part - first); };
          const int64_t rows = rows_of(run, item);
          const auto merged = [&](float* to, const float* other) { add(to, other, rows); };
          finish(run, item, fold(0, power_of_two(end), first, end, 0, leaf, merged));
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
