// Operators that treat each row alike: embedding, norms, rope, glu, elementwise, slice, take_rows.
#include <algorithm>
#include <cstring>

#include "core/dispatch.h"
#include "core/error.h"
#include "executor/task.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/embedding/embedding.h"
#include "kernels/glu/glu.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rope/rope.h"
#include "kernels/rope_table/rope_table.h"

namespace datong {
namespace {

class RowTask : public Task {
 public:
  bool replicable() const override { return true; }
};

const float* values_of(const Value* vector) { return vector && !vector->floats.empty() ? vector->floats.data() : nullptr; }

class Embedding : public RowTask {
 public:
  Embedding(const NodeView& node, const BuildContext& context) : ids_(node.input_index(0)), out_(node.output_index(0)) {
    const Value& ids = node.integers(0);
    const Value& matrix = node.matrix(1);
    node.result(0, ids.lead, matrix.weight.view.in);
    lead_ = ids.lead;
    view_ = matrix.weight.view;
    if (context.packed) reader_ = context.packed->read(matrix.weight);
    implementation = std::string("embedding_") + view_.format;
  }
  void check(const Run& run) const override {
    const int64_t* ids = static_cast<const int64_t*>(run.at[ids_]);
    for (int64_t i = 0; i < run.count(lead_); ++i)
      if (ids[i] < 0 || ids[i] >= view_.out)
        throw Error(DT_INVALID, text("[embedding] token ids lie in 0 .. %lld, id %lld came at place %lld",
                                     static_cast<long long>(view_.out - 1), static_cast<long long>(ids[i]),
                                     static_cast<long long>(i)));
  }
  void run(const Run& run, Team& team) const override {
    const int64_t* ids = static_cast<const int64_t*>(run.at[ids_]);
    const Range share = team.share(run.count(lead_));
    for (int64_t i = share.begin; i < share.end; ++i) row(ids[i], run.result(out_) + i * view_.in);
  }

 private:
  void row(int64_t id, float* y) const {
    if (!reader_ || !reader_->packed) return embedding_row(view_, id, y);
    WeightView packed = view_;
    packed.packed = reader_->packed;
    alignas(8) uint8_t room[kStoredRoom];
    for (int64_t at = 0; at < view_.in; at += kStoredColumns)
      embedding_row(reader_->kernel->stored(packed, id, at, std::min(kStoredColumns, view_.in - at), room), 0, y + at);
  }

  int ids_, out_;
  Lead lead_;
  WeightView view_;
  const PackedWeights::Reader* reader_ = nullptr;
};

// rms_norm and add_rms_norm: the second adds a residual first and gives the sum too.
class Norm : public RowTask {
 public:
  Norm(const NodeView& node, const BuildContext& context, bool add) : add_(add) {
    const int weight_at = add ? 2 : 1;
    node.expect_counts(weight_at + 1, weight_at + 1, add ? 2 : 1);
    const Value& x = node.activation(0);
    if (!node.present(weight_at)) node.invalid("lacks its weight");
    node.result(add ? 1 : 0, x.lead, x.width);
    group_ = weight_width(node, weight_at, x.width);
    const Value* weight = node.plain_vector(weight_at, group_);
    if (add) {
      const Value& b = node.activation(1, x.width);
      if (b.lead != x.lead) node.invalid("adds tokens to rows");
      node.result(0, x.lead, x.width);
      if (group_ != x.width) node.refuse("add_rms_norm over parts of a row");
      b_ = node.input_index(1);
      sum_ = node.output_index(0);
    }
    x_ = node.input_index(0);
    y_ = node.output_index(add ? 1 : 0);
    lead_ = x.lead;
    groups_per_row_ = x.width / group_;
    weight_ = values_of(weight);
    eps_ = static_cast<float>(node.number("eps"));
    offset_ = static_cast<float>(node.number_or("offset", 0));
    if (!(eps_ > 0)) node.invalid("wants eps > 0");
    const auto& variant = pick(rms_norm_variants(), context.features);
    kernel_ = variant.kernel;
    implementation = node.op() + "_" + variant.name;
  }
  void run(const Run& run, Team& team) const override {
    const Range share = team.share(run.count(lead_) * groups_per_row_);
    if (share.begin == share.end) return;
    const int64_t at = share.begin * group_;
    kernel_({.x = run.floats(x_) + at,
             .add = add_ ? run.floats(b_) + at : nullptr,
             .sum = add_ ? run.result(sum_) + at : nullptr,
             .weight = weight_,
             .y = run.result(y_) + at,
             .groups = share.end - share.begin,
             .n = group_,
             .eps = eps_,
             .offset = offset_});
  }

 private:
  // The weight says how long a group is; it must divide the row.
  static int64_t weight_width(const NodeView& node, int at, int64_t width) {
    const int64_t n = node.vector_length(at);
    if (n < 1 || width % n) node.invalid(text("has a weight of %lld that does not divide the row of %lld",
                                              static_cast<long long>(n), static_cast<long long>(width)));
    return n;
  }

  bool add_;
  int x_ = 0, b_ = 0, sum_ = 0, y_ = 0;
  Lead lead_;
  int64_t group_, groups_per_row_;
  const float* weight_;
  float eps_, offset_;
  RmsNorm kernel_;
};

class RopeTable : public RowTask {
 public:
  RopeTable(const NodeView& node, const BuildContext&)
      : positions_(node.input_index(0)), cos_(node.output_index(0)), sin_(node.output_index(1)) {
    const Value& positions = node.integers(0);
    half_ = node.vector_length(1);
    freq_ = values_of(node.plain_vector(1, half_));
    node.result(0, positions.lead, half_);
    node.result(1, positions.lead, half_);
    lead_ = positions.lead;
    scale_ = static_cast<float>(node.number_or("scale", 1));
    implementation = "rope_table_ref";
  }
  void run(const Run& run, Team& team) const override {
    const Range share = team.share(run.count(lead_));
    const int64_t at = share.begin * half_;
    rope_table_ref(static_cast<const int64_t*>(run.at[positions_]) + share.begin, freq_, scale_, run.result(cos_) + at,
                   run.result(sin_) + at, share.end - share.begin, half_);
  }

 private:
  int positions_, cos_, sin_;
  Lead lead_;
  int64_t half_;
  const float* freq_;
  float scale_;
};

class RopeTask : public RowTask {
 public:
  RopeTask(const NodeView& node, const BuildContext& context)
      : x_(node.input_index(0)), cos_(node.input_index(1)), sin_(node.input_index(2)), y_(node.output_index(0)) {
    const Value& x = node.activation(0);
    heads_ = node.integer("num_heads");
    if (heads_ < 1 || x.width % heads_) node.invalid("has num_heads that does not divide its row");
    dim_ = x.width / heads_;
    half_ = node.activation(1).width;
    node.activation(2, half_);
    if (2 * half_ > dim_) node.invalid("rotates more channels than a head has");
    if (node.activation(1).lead != x.lead || node.activation(2).lead != x.lead) node.invalid("mixes tokens and rows");
    node.result(0, x.lead, x.width);
    lead_ = x.lead;
    const int64_t interleaved = node.integer_or("interleaved", 0);
    if (interleaved != 0 && interleaved != 1) node.invalid("wants interleaved 0 or 1");
    interleaved_ = interleaved == 1;
    const auto& variant = pick(rope_variants(), context.features);
    kernel_ = variant.kernel;
    implementation = std::string("rope_") + variant.name;
  }
  void run(const Run& run, Team& team) const override {
    const Range share = team.share(run.count(lead_));
    const int64_t at = share.begin * heads_ * dim_, angle = share.begin * half_;
    kernel_({run.floats(x_) + at, run.floats(cos_) + angle, run.floats(sin_) + angle, run.result(y_) + at,
             share.end - share.begin, heads_, dim_, half_, interleaved_});
  }

 private:
  int x_, cos_, sin_, y_;
  Lead lead_;
  int64_t heads_, dim_, half_;
  bool interleaved_;
  Rope kernel_;
};

class GluTask : public RowTask {
 public:
  GluTask(const NodeView& node, const BuildContext& context)
      : gate_(node.input_index(0)), up_(node.input_index(1)), y_(node.output_index(0)) {
    const Value& gate = node.activation(0);
    if (node.activation(1, gate.width).lead != gate.lead) node.invalid("mixes tokens and rows");
    node.result(0, gate.lead, gate.width);
    lead_ = gate.lead;
    width_ = gate.width;
    unit_ = read_glu(node, context.features);
    implementation = "glu_" + unit_.implementation;
  }
  void run(const Run& run, Team& team) const override {
    const Range r = team.share(run.count(lead_) * width_, 16);
    const int64_t n = r.end - r.begin;
    unit_.kernel({run.floats(gate_) + r.begin, n, run.floats(up_) + r.begin, n, run.result(y_) + r.begin, n, n ? 1 : 0,
                  n, unit_.limit, unit_.alpha});
  }

 private:
  int gate_, up_, y_;
  Lead lead_;
  int64_t width_;
  GluUnit unit_;
};

class ElementwiseTask : public RowTask {
 public:
  ElementwiseTask(const NodeView& node, const BuildContext& context, std::span<const Variant<Elementwise>> variants,
                  int inputs)
      : a_(node.input_index(0)), b_(inputs == 2 ? node.input_index(1) : a_), y_(node.output_index(0)) {
    const Value& a = node.activation(0);
    if (inputs == 2 && node.activation(1, a.width).lead != a.lead) node.invalid("mixes tokens and rows");
    node.result(0, a.lead, a.width);
    lead_ = a.lead;
    width_ = a.width;
    const auto& variant = pick(variants, context.features);
    kernel_ = variant.kernel;
    implementation = node.op() + "_" + variant.name;
  }
  void run(const Run& run, Team& team) const override {
    const Range r = team.share(run.count(lead_) * width_, 16);
    kernel_(run.floats(a_) + r.begin, run.floats(b_) + r.begin, run.result(y_) + r.begin, r.end - r.begin);
  }

 private:
  int a_, b_, y_;
  Lead lead_;
  int64_t width_;
  Elementwise kernel_;
};

class Slice : public RowTask {
 public:
  Slice(const NodeView& node, const BuildContext&) : x_(node.input_index(0)), y_(node.output_index(0)) {
    const Value& x = node.activation(0);
    group_ = node.integer("group");
    start_ = node.integer("start");
    length_ = node.integer("length");
    if (group_ < 1 || x.width % group_) node.invalid("has a group that does not divide its row");
    if (start_ < 0 || length_ < 1 || start_ > group_ - length_) node.invalid("cuts outside its group");
    per_row_ = x.width / group_;
    node.result(0, x.lead, per_row_ * length_);
    lead_ = x.lead;
    implementation = "slice_copy";
  }
  void run(const Run& run, Team& team) const override {
    const Range share = team.share(run.count(lead_) * per_row_);
    for (int64_t i = share.begin; i < share.end; ++i)
      std::memcpy(run.result(y_) + i * length_, run.floats(x_) + i * group_ + start_, static_cast<size_t>(length_) * 4);
  }

 private:
  int x_, y_;
  Lead lead_;
  int64_t group_, start_, length_, per_row_;
};

class TakeRows : public RowTask {
 public:
  TakeRows(const NodeView& node, const BuildContext&)
      : x_(node.input_index(0)), rows_(node.input_index(1)), y_(node.output_index(0)) {
    const Value& x = node.activation(0);
    const Value& rows = node.integers(1);
    if (x.lead != Lead::tokens || rows.lead != Lead::rows) node.invalid("wants x [T, n] and rows [R]");
    node.result(0, Lead::rows, x.width);
    width_ = x.width;
    implementation = "take_rows_copy";
  }
  void check(const Run& run) const override {
    const int64_t* rows = static_cast<const int64_t*>(run.at[rows_]);
    for (int64_t i = 0; i < run.rows; ++i)
      if (rows[i] < 0 || rows[i] >= run.tokens)
        throw Error(DT_INVALID, text("[take_rows] row %lld was asked for, the step has %lld tokens",
                                     static_cast<long long>(rows[i]), static_cast<long long>(run.tokens)));
  }
  void run(const Run& run, Team& team) const override {
    const int64_t* rows = static_cast<const int64_t*>(run.at[rows_]);
    const Range share = team.share(run.rows);
    for (int64_t i = share.begin; i < share.end; ++i)
      std::memcpy(run.result(y_) + i * width_, run.floats(x_) + rows[i] * width_, static_cast<size_t>(width_) * 4);
  }

 private:
  int x_, rows_, y_;
  int64_t width_;
};

}  // namespace

GluUnit read_glu(const NodeView& node, const CpuFeatures& features) {
  const std::string kind = node.word("kind");
  for (int i = 0; i < static_cast<int>(std::size(kGluKinds)); ++i) {
    if (kind != kGluKinds[i]) continue;
    const auto& variant = pick(glu_variants(static_cast<GluKind>(i)), features);
    return {variant.kernel, static_cast<float>(node.number_or("limit", 0)), static_cast<float>(node.number_or("alpha", 0)),
            kind + "_" + variant.name};
  }
  node.refuse("glu of kind `" + kind + "`, silu, gelu_tanh, silu_clamp and oai are known");
}

std::unique_ptr<Task> make_embedding(const NodeView& n, const BuildContext& c) {
  n.expect_counts(2, 2, 1);
  return std::make_unique<Embedding>(n, c);
}
std::unique_ptr<Task> make_rms_norm(const NodeView& n, const BuildContext& c) {
  return std::make_unique<Norm>(n, c, false);
}
std::unique_ptr<Task> make_add_rms_norm(const NodeView& n, const BuildContext& c) {
  return std::make_unique<Norm>(n, c, true);
}
std::unique_ptr<Task> make_rope_table(const NodeView& n, const BuildContext& c) {
  n.expect_counts(2, 2, 2);
  return std::make_unique<RopeTable>(n, c);
}
std::unique_ptr<Task> make_rope(const NodeView& n, const BuildContext& c) {
  n.expect_counts(3, 3, 1);
  return std::make_unique<RopeTask>(n, c);
}
std::unique_ptr<Task> make_glu(const NodeView& n, const BuildContext& c) {
  n.expect_counts(2, 2, 1);
  return std::make_unique<GluTask>(n, c);
}
std::unique_ptr<Task> make_elementwise(const NodeView& n, const BuildContext& c) {
  const bool unary = n.op() == "sigmoid";
  n.expect_counts(unary ? 1 : 2, unary ? 1 : 2, 1);
  const auto variants = unary ? sigmoid_variants() : n.op() == "add" ? add_variants() : mul_variants();
  return std::make_unique<ElementwiseTask>(n, c, variants, unary ? 1 : 2);
}
std::unique_ptr<Task> make_slice(const NodeView& n, const BuildContext& c) {
  n.expect_counts(1, 1, 1);
  return std::make_unique<Slice>(n, c);
}
std::unique_ptr<Task> make_take_rows(const NodeView& n, const BuildContext& c) {
  n.expect_counts(2, 2, 1);
  return std::make_unique<TakeRows>(n, c);
}

}  // namespace datong
