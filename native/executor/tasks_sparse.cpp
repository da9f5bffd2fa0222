// Attention over chosen keys: select_keys, sparse_attention (datong/spec/reference_sparse.py), and layer_norm.
//
// Both walk the keys of one token at a time, token by token over the threads. select_keys keeps the best blocks in a
// heap while it goes, so that its scratch does not grow with the context. Keys lie transposed in their blocks
// (kernels/attention/attention.h): the scores of a block are sums of whole vectors, which compilers vectorise.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/convert.h"
#include "core/error.h"
#include "executor/task.h"
#include "kernels/attention/attention.h"

namespace datong {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr float kAlways = std::numeric_limits<float>::infinity();

// What both have in common: a paged cache of this layer, and tokens that find their place in it.
class SparseTask : public Task {
 protected:
  size_t find_cache(const NodeView& node, const BuildContext& context, CacheKind kind, int64_t heads, int64_t key, int64_t value) {
    if (!context.caches) return 0;
    const int64_t layer = node.integer("layer");
    const auto& caches = *context.caches;
    for (size_t i = 0; i < caches.size(); ++i) {
      if (caches[i].layer != layer || caches[i].kind != kind || caches[i].window) continue;
      if (caches[i].kv_heads != heads || caches[i].key_dim != key || caches[i].value_dim != value)
        node.invalid(text("does not fit the cache of layer %lld", static_cast<long long>(layer)));
      return i;
    }
    node.invalid(text("uses a cache of layer %lld, which the part does not have", static_cast<long long>(layer)));
  }

  struct Place {
    const int32_t* blocks;
    int64_t position;  // of the token in its sequence
  };
  static Place place(const Run& run, int64_t token) {
    const int64_t s = std::upper_bound(run.query_starts, run.query_starts + run.sequences + 1, token) - run.query_starts - 1;
    return {run.block_tables + s * run.table_width, run.context_lens[s] - run.query_starts[s + 1] + token};
  }

  static float get(const uint8_t* base, int64_t i, CacheType type) {
    if (type == CacheType::f32) return reinterpret_cast<const float*>(base)[i];
    const uint16_t h = reinterpret_cast<const uint16_t*>(base)[i];
    return type == CacheType::f16 ? f16_to_f32(h) : bf16_to_f32(h);
  }
};

class SelectKeys : public SparseTask {
 public:
  SelectKeys(const NodeView& node, const BuildContext& context)
      : q_(node.input_index(0)), k_(node.input_index(1)), y_(node.output_index(0)) {
    heads_ = node.integer("num_heads");
    groups_ = node.integer("groups");
    top_ = node.integer("top_k");
    block_ = node.integer("block");
    local_ = node.integer_or("local", 0);
    dim_ = node.activation(1).width;
    if (heads_ < 1 || groups_ < 1 || heads_ % groups_) node.invalid("has groups that do not divide its heads");
    if (top_ < 1 || block_ < 1 || local_ < 0 || local_ > top_) node.invalid("wants top_k and block >= 1, local in 0 .. top_k");
    node.activation(0, heads_ * dim_);
    if (node.present(2)) weights_ = (node.activation(2, heads_), node.input_index(2));
    for (int i = 0; i < node.input_count(); ++i)
      if (node.present(i) && node.activation(i).lead != Lead::tokens) node.invalid("works on tokens, rows came");
    node.result(0, Lead::tokens, groups_ * top_);
    scale_ = static_cast<float>(node.number("scale"));
    const std::string kind = node.word("kind");
    if (kind != "plain" && kind != "relu") node.refuse("kind `" + kind + "`, plain and relu are known");
    relu_ = kind == "relu";
    cache_ = find_cache(node, context, CacheKind::index, 1, dim_, 0);
    implementation = "select_keys_ref";
  }

  Scratch scratch(int64_t tokens, int64_t, int) const override {
    const size_t floats = static_cast<size_t>(dim_ * kBlockSize + (heads_ + groups_) * kBlockSize + groups_);
    return {0, tokens ? floats * 4 + static_cast<size_t>(groups_) * (8 + static_cast<size_t>(top_) * sizeof(Best)) : 0};
  }

  void run(const Run& run, Team& team) const override {
    const CacheLayer& layer = run.cache->at(cache_);
    const Range share = team.share(run.tokens);
    for (int64_t t = share.begin; t < share.end; ++t) {
      const Place p = place(run, t);
      store_kv_ref(layer, p.blocks[p.position / kBlockSize], p.position % kBlockSize, 0, run.floats(k_) + t * dim_, nullptr);
    }
    team.barrier();
    for (int64_t t = team.index(); t < run.tokens; t += team.size()) choose(run, layer, t, run.own[team.index()]);
  }

 private:
  struct Best {
    float score;
    int32_t number;
  };
  // Does a come before b? Of equals the lower number. Heaps keep the worst on top.
  static bool better(const Best& a, const Best& b) { return a.score > b.score || (a.score == b.score && a.number < b.number); }

  struct Work {
    float* keys;     // [dim, kBlockSize]
    float* scores;   // [heads, kBlockSize]
    float* sums;     // [groups, kBlockSize]
    float* open;     // [groups], the largest score of the block that is being read
    int64_t* found;  // [groups], in each heap
    Best* heaps;     // [groups, top]
  };

  Work work(uint8_t* own) const {
    Work w;
    w.found = reinterpret_cast<int64_t*>(own);
    w.heaps = reinterpret_cast<Best*>(w.found + groups_);
    w.keys = reinterpret_cast<float*>(w.heaps + groups_ * top_);
    w.scores = w.keys + dim_ * kBlockSize;
    w.sums = w.scores + heads_ * kBlockSize;
    w.open = w.sums + groups_ * kBlockSize;
    return w;
  }

  void choose(const Run& run, const CacheLayer& layer, int64_t t, uint8_t* own) const {
    const Work w = work(own);
    const Place p = place(run, t);
    const int64_t end = p.position + 1;
    std::fill(w.found, w.found + groups_, 0);
    std::fill(w.open, w.open + groups_, kNever);
    for (int64_t from = 0; from < end; from += kBlockSize) {
      score(run, layer, t, p.blocks[from / kBlockSize], w);
      const int64_t count = std::min(kBlockSize, end - from);
      for (int64_t g = 0; g < groups_; ++g) {
        const float* sums = w.sums + g * kBlockSize;
        for (int64_t i = 0; i < count; ++i) {
          w.open[g] = std::max(w.open[g], sums[i]);
          const int64_t j = from + i;
          if ((j + 1) % block_ && j + 1 < end) continue;
          const int64_t number = j / block_;
          const bool near = p.position / block_ - number < local_;
          offer(w, g, {near ? kAlways : w.open[g], static_cast<int32_t>(number)});
          w.open[g] = kNever;
        }
      }
    }
    for (int64_t g = 0; g < groups_; ++g) {
      Best* heap = w.heaps + g * top_;
      std::sort(heap, heap + w.found[g], [](const Best& a, const Best& b) { return a.number < b.number; });
      float* y = run.result(y_) + (t * groups_ + g) * top_;
      for (int64_t i = 0; i < top_; ++i) y[i] = i < w.found[g] ? static_cast<float>(heap[i].number) : -1.0f;
    }
  }

  void offer(const Work& w, int64_t g, Best one) const {
    Best* heap = w.heaps + g * top_;
    int64_t& found = w.found[g];
    if (one.score == kNever) return;
    if (found < top_) {
      heap[found++] = one;
      std::push_heap(heap, heap + found, better);
    } else if (better(one, heap[0])) {
      std::pop_heap(heap, heap + found, better);
      heap[found - 1] = one;
      std::push_heap(heap, heap + found, better);
    }
  }

  // The scores of one cache block, summed by group. Slots that nobody wrote give numbers that nobody reads.
  void score(const Run& run, const CacheLayer& layer, int64_t t, int64_t block, const Work& w) const {
    const uint8_t* base = layer.keys + block * dim_ * kBlockSize * cache_type_bytes(layer.type);
    for (int64_t i = 0; i < dim_ * kBlockSize; ++i) w.keys[i] = get(base, i, layer.type);
    const float* q = run.floats(q_) + t * heads_ * dim_;
    std::fill(w.sums, w.sums + groups_ * kBlockSize, 0.0f);
    for (int64_t h = 0; h < heads_; ++h) {
      float* scores = w.scores + h * kBlockSize;
      std::fill(scores, scores + kBlockSize, 0.0f);
      for (int64_t d = 0; d < dim_; ++d) {
        const float value = q[h * dim_ + d];
        const float* keys = w.keys + d * kBlockSize;
        for (int64_t i = 0; i < kBlockSize; ++i) scores[i] += value * keys[i];
      }
      const float weight = weights_ < 0 ? 1.0f : run.floats(weights_)[t * heads_ + h];
      float* sums = w.sums + h / (heads_ / groups_) * kBlockSize;
      for (int64_t i = 0; i < kBlockSize; ++i) {
        const float z = scores[i] * scale_;
        sums[i] += (relu_ ? std::max(z, 0.0f) : z) * weight;
      }
    }
  }

  int q_, k_, weights_ = -1, y_;
  int64_t heads_, groups_, top_, block_, local_, dim_;
  float scale_;
  bool relu_;
  size_t cache_;
};

class SparseAttention : public SparseTask {
 public:
  SparseAttention(const NodeView& node, const BuildContext& context)
      : q_(node.input_index(0)), k_(node.input_index(1)), v_(node.input_index(2)), chosen_(node.input_index(3)),
        y_(node.output_index(0)) {
    const int64_t q_heads = node.integer("num_heads");
    heads_ = node.integer("num_kv_heads");
    groups_ = node.integer("groups");
    block_ = node.integer("block");
    if (heads_ < 1 || q_heads < 1 || q_heads % heads_) node.invalid("has num_heads that num_kv_heads does not divide");
    if (groups_ < 1 || heads_ % groups_ || block_ < 1) node.invalid("has groups that do not divide num_kv_heads, or no block");
    group_ = q_heads / heads_;
    const int64_t q_width = node.activation(0).width, v_width = node.activation(2).width;
    if (q_width % q_heads || v_width % heads_) node.invalid("has heads that do not divide their rows");
    dim_ = q_width / q_heads;
    value_dim_ = v_width / heads_;
    node.activation(1, heads_ * dim_);
    const int64_t numbers = node.activation(3).width;
    if (numbers % groups_) node.invalid("has groups that do not divide what is chosen");
    top_ = numbers / groups_;
    if (top_ > (int64_t{1} << 24) / block_) node.refuse("more than 2^24 chosen keys");
    for (int i = 0; i < 4; ++i)
      if (node.activation(i).lead != Lead::tokens) node.invalid("works on tokens, rows came");
    node.result(0, Lead::tokens, q_heads * value_dim_);
    scale_ = static_cast<float>(node.number("scale"));
    cache_ = find_cache(node, context, CacheKind::tokens, heads_, dim_, value_dim_);
    implementation = "sparse_attention_ref";
  }

  Scratch scratch(int64_t tokens, int64_t, int) const override {
    return {0, tokens ? static_cast<size_t>(top_ * block_ * group_ + dim_ + group_) * 4 : 0};
  }

  void run(const Run& run, Team& team) const override {
    const CacheLayer& layer = run.cache->at(cache_);
    const Range share = team.share(run.tokens * heads_);
    for (int64_t i = share.begin; i < share.end; ++i) {
      const Place p = place(run, i / heads_);
      store_kv_ref(layer, p.blocks[p.position / kBlockSize], p.position % kBlockSize, i % heads_, run.floats(k_) + i * dim_,
                   run.floats(v_) + i * value_dim_);
    }
    team.barrier();
    for (int64_t i = team.index(); i < run.tokens * heads_; i += team.size())
      attend(run, layer, i / heads_, i % heads_, reinterpret_cast<float*>(run.own[team.index()]));
  }

 private:
  // All query heads of one key head, for one token.
  void attend(const Run& run, const CacheLayer& layer, int64_t t, int64_t head, float* own) const {
    const Place p = place(run, t);
    const float* numbers = run.floats(chosen_) + (t * groups_ + head / (heads_ / groups_)) * top_;
    const float* q = run.floats(q_) + (t * heads_ + head) * group_ * dim_;
    float* y = run.result(y_) + (t * heads_ + head) * group_ * value_dim_;
    float *key = own, *top = own + dim_, *scores = top + group_;  // scores [keys, group]
    std::fill(y, y + group_ * value_dim_, 0.0f);
    std::fill(top, top + group_, kNever);
    int64_t count = 0;
    each(numbers, p, [&](int64_t j) {
      const int64_t at = (p.blocks[j / kBlockSize] * heads_ + head) * dim_ * kBlockSize + j % kBlockSize;
      for (int64_t d = 0; d < dim_; ++d) key[d] = get(layer.keys, at + d * kBlockSize, layer.type);
      for (int64_t r = 0; r < group_; ++r) {
        float sum = 0;
        for (int64_t d = 0; d < dim_; ++d) sum += q[r * dim_ + d] * key[d];
        scores[count * group_ + r] = sum * scale_;
        top[r] = std::max(top[r], sum * scale_);
      }
      ++count;
    });
    if (count == 0) return;
    for (int64_t r = 0; r < group_; ++r) {
      float sum = 0;
      for (int64_t i = 0; i < count; ++i) sum += scores[i * group_ + r] = std::exp(scores[i * group_ + r] - top[r]);
      for (int64_t i = 0; i < count; ++i) scores[i * group_ + r] /= sum;
    }
    int64_t i = 0;
    each(numbers, p, [&](int64_t j) {
      const int64_t at = ((p.blocks[j / kBlockSize] * heads_ + head) * kBlockSize + j % kBlockSize) * layer.value_pad;
      for (int64_t d = 0; d < value_dim_; ++d) {
        const float value = get(layer.values, at + d, layer.type);
        for (int64_t r = 0; r < group_; ++r) y[r * value_dim_ + d] += scores[i * group_ + r] * value;
      }
      ++i;
    });
  }

  // Every chosen key that the token may see; numbers that no block has are passed over.
  template <class Do>
  void each(const float* numbers, const Place& p, Do act) const {
    const int64_t last = p.position / block_;
    for (int64_t i = 0; i < top_; ++i) {
      if (!(numbers[i] >= 0) || numbers[i] > static_cast<float>(last)) continue;
      const int64_t from = static_cast<int64_t>(numbers[i]) * block_, to = std::min(from + block_, p.position + 1);
      for (int64_t j = from; j < to; ++j) act(j);
    }
  }

  int q_, k_, v_, chosen_, y_;
  int64_t heads_, group_, groups_, block_, top_, dim_, value_dim_;
  float scale_;
  size_t cache_;
};

class LayerNorm : public Task {
 public:
  LayerNorm(const NodeView& node, const BuildContext&) : x_(node.input_index(0)), y_(node.output_index(0)) {
    const Value& x = node.activation(0);
    width_ = x.width;
    lead_ = x.lead;
    node.result(0, lead_, width_);
    const Value* weight = node.plain_vector(1, width_);
    if (!weight) node.invalid("lacks its weight");
    weight_ = weight->floats.data();
    if (const Value* bias = node.plain_vector(2, width_)) bias_ = bias->floats.data();
    eps_ = static_cast<float>(node.number("eps"));
    if (!(eps_ > 0)) node.invalid("wants eps > 0");
    implementation = "layer_norm_ref";
  }
  bool replicable() const override { return true; }

  void run(const Run& run, Team& team) const override {
    const Range share = team.share(run.count(lead_));
    for (int64_t t = share.begin; t < share.end; ++t) {
      const float* x = run.floats(x_) + t * width_;
      float* y = run.result(y_) + t * width_;
      float sum = 0, squares = 0;
      for (int64_t i = 0; i < width_; ++i) sum += x[i];
      const float mean = sum / static_cast<float>(width_);
      for (int64_t i = 0; i < width_; ++i) squares += (x[i] - mean) * (x[i] - mean);
      const float factor = 1.0f / std::sqrt(squares / static_cast<float>(width_) + eps_);
      for (int64_t i = 0; i < width_; ++i) y[i] = (x[i] - mean) * factor * weight_[i] + (bias_ ? bias_[i] : 0.0f);
    }
  }

 private:
  int x_, y_;
  int64_t width_;
  Lead lead_;
  const float *weight_, *bias_ = nullptr;
  float eps_;
};

}  // namespace

std::unique_ptr<Task> make_select_keys(const NodeView& node, const BuildContext& context) {
  node.expect_counts(2, 3, 1);
  return std::make_unique<SelectKeys>(node, context);
}

std::unique_ptr<Task> make_sparse_attention(const NodeView& node, const BuildContext& context) {
  node.expect_counts(4, 4, 1);
  return std::make_unique<SparseAttention>(node, context);
}

std::unique_ptr<Task> make_layer_norm(const NodeView& node, const BuildContext& context) {
  node.expect_counts(2, 3, 1);
  return std::make_unique<LayerNorm>(node, context);
}

}  // namespace datong
