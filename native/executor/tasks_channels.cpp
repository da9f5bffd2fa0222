// Operators on groups of channels: scale, scale_groups, concat.
#include <cstring>

#include "core/dispatch.h"
#include "executor/row_task.h"
#include "kernels/elementwise/elementwise.h"

namespace datong {
namespace {

class ScaleTask : public RowTask {
 public:
  ScaleTask(const NodeView& node, const BuildContext& context) : x_(node.input_index(0)), y_(node.output_index(0)) {
    const Value& x = node.activation(0);
    node.result(0, x.lead, x.width);
    set_units(x.lead, x.width, 1, 16);
    factor_ = static_cast<float>(node.number("factor"));
    const auto& variant = pick(scale_variants(), context.features);
    kernel_ = variant.kernel;
    implementation = std::string("scale_") + variant.name;
  }
  void run_units(const Run& run, Range share) const override {
    kernel_(run.floats(x_) + share.begin, factor_, run.result(y_) + share.begin, share.end - share.begin);
  }

 private:
  int x_, y_;
  float factor_;
  Scale kernel_;
};

class ScaleGroups : public RowTask {
 public:
  ScaleGroups(const NodeView& node, const BuildContext& context)
      : x_(node.input_index(0)), s_(node.input_index(1)), y_(node.output_index(0)) {
    const Value &x = node.activation(0), &s = node.activation(1);
    if (x.width % s.width) node.invalid("has a number of factors that does not divide its row");
    if (s.lead != x.lead) node.invalid("mixes tokens and rows");
    node.result(0, x.lead, x.width);
    each_ = x.width / s.width;
    set_units(x.lead, s.width, each_, 16);
    const auto& mul = pick(mul_variants(), context.features);
    const auto& scale = pick(scale_variants(), context.features);
    mul_ = mul.kernel;
    scale_ = scale.kernel;
    implementation = std::string("scale_groups_") + (each_ == 1 ? mul.name : scale.name);
  }
  void run_units(const Run& run, Range share) const override {
    const float *x = run.floats(x_), *s = run.floats(s_);
    float* y = run.result(y_);
    if (each_ == 1) return mul_(x + share.begin, s + share.begin, y + share.begin, share.end - share.begin);
    for (int64_t i = share.begin; i < share.end; ++i) scale_(x + i * each_, s[i], y + i * each_, each_);
  }

 private:
  int x_, s_, y_;
  int64_t each_;  // channels of a group
  Elementwise mul_;
  Scale scale_;
};

class Concat : public RowTask {
 public:
  Concat(const NodeView& node, const BuildContext&)
      : a_(node.input_index(0)), b_(node.input_index(1)), y_(node.output_index(0)) {
    const Value &a = node.activation(0), &b = node.activation(1);
    const int64_t groups = node.integer("groups");
    if (groups < 1 || a.width % groups || b.width % groups) node.invalid("has groups that do not divide its rows");
    if (a.lead != b.lead) node.invalid("mixes tokens and rows");
    node.result(0, a.lead, a.width + b.width);
    of_a_ = a.width / groups;
    of_b_ = b.width / groups;
    set_units(a.lead, groups, of_a_ + of_b_);
    implementation = "concat_copy";
  }
  void run_units(const Run& run, Range share) const override {
    for (int64_t i = share.begin; i < share.end; ++i) {
      float* y = run.result(y_) + i * (of_a_ + of_b_);
      std::memcpy(y, run.floats(a_) + i * of_a_, static_cast<size_t>(of_a_) * 4);
      std::memcpy(y + of_a_, run.floats(b_) + i * of_b_, static_cast<size_t>(of_b_) * 4);
    }
  }

 private:
  int a_, b_, y_;
  int64_t of_a_, of_b_;  // channels of a group
};

}  // namespace

std::unique_ptr<Task> make_scale(const NodeView& n, const BuildContext& c) {
  n.expect_counts(1, 1, 1);
  return std::make_unique<ScaleTask>(n, c);
}
std::unique_ptr<Task> make_scale_groups(const NodeView& n, const BuildContext& c) {
  n.expect_counts(2, 2, 1);
  return std::make_unique<ScaleGroups>(n, c);
}
std::unique_ptr<Task> make_concat(const NodeView& n, const BuildContext& c) {
  n.expect_counts(2, 2, 1);
  return std::make_unique<Concat>(n, c);
}

}  // namespace datong
