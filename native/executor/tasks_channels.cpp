// Operators on groups of channels: scale, scale_groups, concat.
#include <cstring>

#include "core/dispatch.h"
#include "executor/task.h"
#include "kernels/elementwise/elementwise.h"

namespace datong {
namespace {

class ChannelTask : public Task {
 public:
  bool replicable() const override { return true; }
};

class ScaleTask : public ChannelTask {
 public:
  ScaleTask(const NodeView& node, const BuildContext& context) : x_(node.input_index(0)), y_(node.output_index(0)) {
    const Value& x = node.activation(0);
    node.result(0, x.lead, x.width);
    lead_ = x.lead;
    width_ = x.width;
    factor_ = static_cast<float>(node.number("factor"));
    const auto& variant = pick(scale_variants(), context.features);
    kernel_ = variant.kernel;
    implementation = std::string("scale_") + variant.name;
  }
  void run(const Run& run, Team& team) const override {
    const Range r = team.share(run.count(lead_) * width_, 16);
    kernel_(run.floats(x_) + r.begin, factor_, run.result(y_) + r.begin, r.end - r.begin);
  }

 private:
  int x_, y_;
  Lead lead_;
  int64_t width_;
  float factor_;
  Scale kernel_;
};

class ScaleGroups : public ChannelTask {
 public:
  ScaleGroups(const NodeView& node, const BuildContext& context)
      : x_(node.input_index(0)), s_(node.input_index(1)), y_(node.output_index(0)) {
    const Value &x = node.activation(0), &s = node.activation(1);
    if (x.width % s.width) node.invalid("has a number of factors that does not divide its row");
    if (s.lead != x.lead) node.invalid("mixes tokens and rows");
    node.result(0, x.lead, x.width);
    lead_ = x.lead;
    groups_ = s.width;
    each_ = x.width / groups_;
    const auto& mul = pick(mul_variants(), context.features);
    const auto& scale = pick(scale_variants(), context.features);
    mul_ = mul.kernel;
    scale_ = scale.kernel;
    implementation = std::string("scale_groups_") + (each_ == 1 ? mul.name : scale.name);
  }
  void run(const Run& run, Team& team) const override {
    const Range r = team.share(run.count(lead_) * groups_, 16);
    const float *x = run.floats(x_), *s = run.floats(s_);
    float* y = run.result(y_);
    if (each_ == 1) return mul_(x + r.begin, s + r.begin, y + r.begin, r.end - r.begin);
    for (int64_t i = r.begin; i < r.end; ++i) scale_(x + i * each_, s[i], y + i * each_, each_);
  }

 private:
  int x_, s_, y_;
  Lead lead_;
  int64_t groups_, each_;  // channels of a group
  Elementwise mul_;
  Scale scale_;
};

class Concat : public ChannelTask {
 public:
  Concat(const NodeView& node, const BuildContext&)
      : a_(node.input_index(0)), b_(node.input_index(1)), y_(node.output_index(0)) {
    const Value &a = node.activation(0), &b = node.activation(1);
    groups_ = node.integer("groups");
    if (groups_ < 1 || a.width % groups_ || b.width % groups_) node.invalid("has groups that do not divide its rows");
    if (a.lead != b.lead) node.invalid("mixes tokens and rows");
    node.result(0, a.lead, a.width + b.width);
    lead_ = a.lead;
    of_a_ = a.width / groups_;
    of_b_ = b.width / groups_;
    implementation = "concat_copy";
  }
  void run(const Run& run, Team& team) const override {
    const Range share = team.share(run.count(lead_) * groups_);
    for (int64_t i = share.begin; i < share.end; ++i) {
      float* y = run.result(y_) + i * (of_a_ + of_b_);
      std::memcpy(y, run.floats(a_) + i * of_a_, static_cast<size_t>(of_a_) * 4);
      std::memcpy(y + of_a_, run.floats(b_) + i * of_b_, static_cast<size_t>(of_b_) * 4);
    }
  }

 private:
  int a_, b_, y_;
  Lead lead_;
  int64_t groups_, of_a_, of_b_;  // channels of a group
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
