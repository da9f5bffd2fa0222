// Operators that keep a state per sequence: causal_conv, gated_delta, linear_attention (datong/spec/reference_state.py).
//
// Work is cut where nothing meets: a convolution by channels, a recurrence by (sequence, value head, columns of its state).
// Each piece runs through all new tokens of its sequence, so no state crosses between threads.
#include <algorithm>
#include <cmath>

#include "core/dispatch.h"
#include "core/error.h"
#include "executor/task.h"
#include "kernels/causal_conv/causal_conv.h"
#include "kernels/recurrence/recurrence.h"

namespace datong {
namespace {

constexpr int64_t kChannels = 64;  // of one piece of a convolution: whole cache lines of every row

// The state of one kind in the part's cache, and which sequences have new tokens.
class StateTask : public Task {
 protected:
  void find_state(const NodeView& node, const BuildContext& context, CacheKind kind, int64_t heads, int64_t keys, int64_t values) {
    if (!context.caches) return;
    const int64_t layer = node.integer("layer");
    const auto& caches = *context.caches;
    for (size_t i = 0; i < caches.size(); ++i) {
      if (caches[i].layer != layer || caches[i].kind != kind) continue;
      if (caches[i].kv_heads != heads || caches[i].key_dim != keys || caches[i].value_dim != values)
        node.invalid(text("does not fit the state of layer %lld", static_cast<long long>(layer)));
      index_ = i;
      return;
    }
    node.invalid(text("uses a state of layer %lld, which the part does not have", static_cast<long long>(layer)));
  }
  static int64_t new_tokens(const Run& run, int64_t s) { return run.query_starts[s + 1] - run.query_starts[s]; }
  static bool fresh(const Run& run, int64_t s) { return run.context_lens[s] == new_tokens(run, s); }
  float* state(const Run& run, int64_t s) const { return run.cache->state(index_, run.state_slots[s]); }

 private:
  size_t index_ = 0;
};

class CausalConvTask : public StateTask {
 public:
  CausalConvTask(const NodeView& node, const BuildContext& context) : x_(node.input_index(0)), y_(node.output_index(0)) {
    const Value& x = node.activation(0);
    channels_ = x.width;
    if (x.lead != Lead::tokens) node.invalid("works on tokens, rows came");
    node.result(0, Lead::tokens, channels_);
    const Value& weight = node.matrix(1);
    if (weight.dims[0] != channels_) node.invalid("has a weight of another number of channels");
    if (weight.weight.view.block) node.refuse("a convolution with weights in blocks, plain ones are known");
    taps_ = weight.dims[1];
    if (taps_ < 1 || taps_ > kMostTaps) node.refuse(text("a convolution over %lld tokens, at most %lld are known",
                                                         static_cast<long long>(taps_), static_cast<long long>(kMostTaps)));
    if (weight.weight.view.codes) turn(plain_values(weight.weight.view));
    if (const Value* bias = node.plain_vector(2, channels_)) bias_ = bias->floats;
    const std::string kind = node.word("kind");
    if (kind != "none" && kind != "silu") node.refuse("kind `" + kind + "`, none and silu are known");
    silu_ = kind == "silu";
    find_state(node, context, CacheKind::conv, 1, channels_, taps_ - 1);
    const auto& variant = pick(causal_conv_variants(), context.features);
    kernel_ = variant.kernel;
    implementation = std::string("causal_conv_") + variant.name;
  }

  int64_t private_bytes() const override { return static_cast<int64_t>(weight_.size() * sizeof(float)); }

  void run(const Run& run, Team& team) const override {
    const int64_t pieces = (channels_ + kChannels - 1) / kChannels;
    const Range share = team.share(run.sequences * pieces);
    for (int64_t i = share.begin; i < share.end; ++i) {
      const int64_t s = i / pieces, c = i % pieces * kChannels, first = run.query_starts[s] * channels_ + c;
      if (new_tokens(run, s) == 0) continue;
      kernel_({run.floats(x_) + first, channels_, weight_.data() + c, channels_, bias_.empty() ? nullptr : bias_.data() + c,
               state(run, s) + c * (taps_ - 1), run.result(y_) + first, channels_, new_tokens(run, s),
               std::min(kChannels, channels_ - c), taps_, silu_, fresh(run, s)});
    }
  }

 private:
  void turn(const std::vector<float>& rows) {  // [channels, taps] -> [taps, channels]
    weight_.resize(rows.size());
    for (int64_t c = 0; c < channels_; ++c)
      for (int64_t j = 0; j < taps_; ++j)
        weight_[static_cast<size_t>(j * channels_ + c)] = rows[static_cast<size_t>(c * taps_ + j)];
  }

  int x_, y_;
  int64_t channels_, taps_;
  std::vector<float> weight_, bias_;
  bool silu_;
  CausalConv kernel_;
};

// gated_delta and linear_attention. Queries and keys are made ready once, in shared scratch, for all heads that use them.
class RecurrenceTask : public StateTask {
 public:
  RecurrenceTask(const NodeView& node, const BuildContext& context, bool delta)
      : delta_(delta), q_(node.input_index(0)), k_(node.input_index(1)), v_(node.input_index(2)), y_(node.output_index(0)) {
    k_heads_ = node.integer(delta ? "num_k_heads" : "num_heads");
    v_heads_ = delta ? node.integer("num_v_heads") : k_heads_;
    if (k_heads_ < 1 || v_heads_ < 1 || v_heads_ % k_heads_) node.invalid("has a number of value heads that is no multiple");
    const int64_t q_width = node.activation(0).width, v_width = node.activation(2).width;
    if (q_width % k_heads_ || v_width % v_heads_) node.invalid("has rows that its heads do not divide");
    keys_ = q_width / k_heads_;
    values_ = v_width / v_heads_;
    node.activation(1, q_width);
    for (int i = 0; i < 3; ++i)
      if (node.activation(i).lead != Lead::tokens) node.invalid("works on tokens, rows came");
    node.result(0, Lead::tokens, v_width);
    scale_ = static_cast<float>(node.number("scale"));
    if (delta) {
      a_ = node.input_index(3);
      b_ = node.input_index(4);
      for (int i : {3, 4})
        if (node.activation(i, v_heads_).lead != Lead::tokens) node.invalid("works on tokens, rows came");
      eps_ = static_cast<float>(node.number("eps"));
    }
    const Value* rates = node.plain_vector(delta ? 5 : 3, v_heads_);
    const Value* bias = delta ? node.plain_vector(6, v_heads_) : nullptr;
    if (!rates || (delta && !bias)) node.invalid("lacks a vector");
    rates_ = rates->floats;
    if (bias) bias_ = bias->floats;
    for (float& rate : rates_) rate = std::exp(delta ? rate : -rate);  // of linear attention: the decay itself
    find_state(node, context, CacheKind::recurrent, v_heads_, keys_, values_);
    const auto& variant = pick(recurrence_variants(), context.features);
    kernel_ = variant.kernel;
    implementation = std::string(delta ? "gated_delta_" : "linear_attention_") + variant.name;
  }

  Scratch scratch(int64_t tokens, int64_t, int) const override {
    return {delta_ ? static_cast<size_t>(tokens * row_floats()) * sizeof(float) : 0, 0};
  }

  void run(const Run& run, Team& team) const override {
    if (run.tokens == 0) return;
    float* ready = reinterpret_cast<float*>(run.shared);
    if (delta_) {
      const Range share = team.share(run.tokens);
      for (int64_t t = share.begin; t < share.end; ++t) prepare(run, t, ready + t * row_floats());
      team.barrier();
    }
    const int64_t cuts = (values_ + kMostColumns - 1) / kMostColumns, items = run.sequences * v_heads_ * cuts;
    for (int64_t i = team.index(); i < items; i += team.size()) {
      const int64_t s = i / (v_heads_ * cuts), h = i / cuts % v_heads_, c = i % cuts * kMostColumns;
      const int64_t t = run.query_starts[s], head = h / (v_heads_ / k_heads_);
      if (new_tokens(run, s) == 0) continue;
      RecurrenceArgs a{};
      a.state = state(run, s) + h * keys_ * values_ + c;
      a.state_stride = values_;
      a.keys = keys_;
      a.columns = std::min(kMostColumns, values_ - c);
      a.tokens = new_tokens(run, s);
      const int64_t width = k_heads_ * keys_;
      a.q = delta_ ? ready + t * row_floats() + head * keys_ : run.floats(q_) + t * width + head * keys_;
      a.k = delta_ ? a.q + width : run.floats(k_) + t * width + head * keys_;
      a.q_stride = a.k_stride = delta_ ? row_floats() : width;
      a.v = run.floats(v_) + t * v_heads_ * values_ + h * values_ + c;
      a.v_stride = a.y_stride = v_heads_ * values_;
      a.decay = delta_ ? ready + t * row_floats() + 2 * width + h : rates_.data() + h;
      a.decay_stride = a.beta_stride = delta_ ? row_floats() : 0;
      a.beta = delta_ ? a.decay + v_heads_ : nullptr;
      a.y = run.result(y_) + t * v_heads_ * values_ + h * values_ + c;
      a.fresh = fresh(run, s);
      kernel_(a);
      if (!delta_ && scale_ != 1.0f)
        for (int64_t n = 0; n < a.tokens; ++n)
          for (int64_t j = 0; j < a.columns; ++j) a.y[n * a.y_stride + j] *= scale_;
    }
  }

 private:
  // One token: q, k of all key heads, normed; decay and beta of all value heads.
  int64_t row_floats() const { return (2 * k_heads_ * keys_ + 2 * v_heads_ + 15) / 16 * 16; }

  void prepare(const Run& run, int64_t t, float* row) const {
    const int64_t width = k_heads_ * keys_;
    for (int which = 0; which < 2; ++which) {
      const float* from = run.floats(which ? k_ : q_) + t * width;
      float* to = row + which * width;
      for (int64_t h = 0; h < k_heads_; ++h) {
        float squares = 0;
        for (int64_t i = 0; i < keys_; ++i) squares += from[h * keys_ + i] * from[h * keys_ + i];
        const float factor = (which ? 1.0f : scale_) / std::sqrt(squares + eps_);
        for (int64_t i = 0; i < keys_; ++i) to[h * keys_ + i] = from[h * keys_ + i] * factor;
      }
    }
    float *decay = row + 2 * width, *beta = decay + v_heads_;
    for (int64_t h = 0; h < v_heads_; ++h) {
      const float z = run.floats(a_)[t * v_heads_ + h] + bias_[static_cast<size_t>(h)];
      const float softplus = std::max(z, 0.0f) + std::log1p(std::exp(-std::fabs(z)));
      decay[h] = std::exp(-rates_[static_cast<size_t>(h)] * softplus);
      beta[h] = 1.0f / (1.0f + std::exp(-run.floats(b_)[t * v_heads_ + h]));
    }
  }

  bool delta_;
  int q_, k_, v_, y_, a_ = -1, b_ = -1;
  int64_t k_heads_, v_heads_, keys_, values_;
  float scale_, eps_ = 0;
  std::vector<float> rates_, bias_;
  Recurrence kernel_;
};

}  // namespace

std::unique_ptr<Task> make_causal_conv(const NodeView& node, const BuildContext& context) {
  node.expect_counts(2, 3, 1);
  return std::make_unique<CausalConvTask>(node, context);
}

std::unique_ptr<Task> make_gated_delta(const NodeView& node, const BuildContext& context) {
  node.expect_counts(7, 7, 1);
  return std::make_unique<RecurrenceTask>(node, context, true);
}

std::unique_ptr<Task> make_linear_attention(const NodeView& node, const BuildContext& context) {
  node.expect_counts(4, 4, 1);
  return std::make_unique<RecurrenceTask>(node, context, false);
}

}  // namespace datong
