// linear, linear_add, linear_multi, linear_glu: activations are prepared (quantised) once, then every thread computes
// its share of the outputs.
#include <cstring>

#include "core/error.h"
#include "executor/task.h"
#include "kernels/glu/glu.h"
#include "kernels/linear/linear.h"

namespace datong {
namespace {

// gate and up of this many values (128 KiB together) stay in a core's cache until their product is taken.
constexpr int64_t kGluChunk = 16384;

constexpr size_t round_up(size_t n) { return (n + 63) / 64 * 64; }

struct Matrix {
  WeightView view;
  const uint8_t* const* packed;  // where the view's `packed` will stand once the program is made; null: none
  const LinearKernel* kernel;
  const float* bias;
  int out;         // index of the result
  int preparation; // index into LinearTask::preparations_, -1: f32 as it is
};

struct Preparation {
  void (*prepare)(const float*, int64_t, int64_t, int64_t, int64_t, void*);
  size_t bytes;  // per token
};

class LinearTask : public Task {
 public:
  LinearTask(const NodeView& node, const BuildContext& context) : context_(context), x_(node.input_index(0)) {
    const Value& x = node.activation(0);
    in_ = x.width;
    lead_ = x.lead;
  }

  // Result `output` = x @ weight.T (+ bias); -1: into scratch.
  void add(const NodeView& node, int weight, int bias, int output) {
    const Value& w = node.matrix(weight);
    const WeightView& view = w.weight.view;
    if (view.in != in_)
      node.invalid(text("multiplies rows of %lld with a matrix of %lld columns", static_cast<long long>(in_),
                        static_cast<long long>(view.in)));
    Matrix m{view, nullptr, &pick_linear(node, view, context_), nullptr, -1, -1};
    if (context_.packed && m.kernel->pack) m.packed = context_.packed->want(*m.kernel, w.weight);
    if (output >= 0) {
      node.result(output, lead_, view.out);
      m.out = node.output_index(output);
    }
    const Value* b = bias >= 0 ? node.plain_vector(bias, view.out) : nullptr;
    if (b && !b->floats.empty()) m.bias = b->floats.data();
    if (const size_t bytes = m.kernel->prepared_bytes(in_)) {
      for (size_t i = 0; i < preparations_.size(); ++i)
        if (preparations_[i].prepare == m.kernel->prepare) m.preparation = static_cast<int>(i);
      if (m.preparation < 0) {
        m.preparation = static_cast<int>(preparations_.size());
        preparations_.push_back({m.kernel->prepare, round_up(bytes)});
      }
    }
    if (implementation.empty()) {
      implementation = node.op() + "_" + m.kernel->name;
    } else if (implementation.find(m.kernel->name) == std::string::npos) {
      implementation += std::string("+") + m.kernel->name;
    }
    matrices_.push_back(m);
  }

  void set_residual(const NodeView& node, int input, int64_t width) {
    if (node.activation(input, width).lead != lead_) node.invalid("mixes tokens and rows");
    residual_ = node.input_index(input);
  }

  void set_glu(Glu kernel, int out) {
    glu_ = kernel;
    glu_out_ = out;
  }

  Scratch scratch(int64_t tokens, int64_t rows, int threads) const override {
    const int64_t n = lead_ == Lead::rows ? rows : tokens;
    size_t prepared = 0, kernel = 0;
    for (const Preparation& p : preparations_) prepared += p.bytes * static_cast<size_t>(padded(n));
    for (const Matrix& m : matrices_)
      if (m.kernel->scratch_bytes && n) kernel = std::max(kernel, round_up(m.kernel->scratch_bytes(m.view, n)));
    Scratch s;
    s.own = kernel;
    if (glu_ && n) s.own += round_up(static_cast<size_t>(std::min(n * glu_share(threads), std::max(kGluChunk, n * glu_least()))) * 4);
    (n <= kReplicate ? s.own : s.shared) += prepared;
    return s;
  }

  bool row_wise() const override { return true; }

  void run(const Run& run, Team& team) const override {
    const int64_t n = run.count(lead_);
    if (n == 0) return;
    const float* x = run.floats(x_);
    uint8_t* own = run.own[team.index()];
    uint8_t* prepared = prepare(x, n, n <= kReplicate ? own : run.shared, team);
    if (n <= kReplicate) own = prepared_end(prepared, n);
    if (glu_) return run_glu(run, team, x, n, prepared, own);
    for (const Matrix& m : matrices_) {
      const Range share = team.share(m.view.out, m.kernel->out_multiple);
      const Epilogue epilogue{m.bias, residual_ >= 0 ? run.floats(residual_) : nullptr, m.view.out};
      multiply(m, x, prepared, n, share, share.end, run.result(m.out), m.view.out, epilogue, own);
    }
  }

 private:
  static int64_t padded(int64_t n) { return (n + kPrepareRows - 1) / kPrepareRows * kPrepareRows; }

  uint8_t* prepared_end(uint8_t* prepared, int64_t n) const {
    for (const Preparation& p : preparations_) prepared += p.bytes * static_cast<size_t>(padded(n));
    return prepared;
  }

  // All preparations, one after another from `to` on. Alone where n is small, else together, with a barrier.
  uint8_t* prepare(const float* x, int64_t n, uint8_t* to, Team& team) const {
    if (preparations_.empty()) return to;
    const bool alone = n <= kReplicate;
    const Range share = alone ? Range{0, n} : team.share(n, kPrepareRows);
    uint8_t* at = to;
    for (const Preparation& p : preparations_) {
      if (share.begin < share.end) p.prepare(x, in_, in_, share.begin, share.end, at);
      at += p.bytes * static_cast<size_t>(padded(n));
    }
    if (!alone) team.barrier();
    return to;
  }

  // Outputs `outs` of the thread's, which end at `last`.
  void multiply(const Matrix& m, const float* x, uint8_t* prepared, int64_t n, Range outs, int64_t last, float* y,
                int64_t y_stride, const Epilogue& epilogue, uint8_t* scratch) const {
    if (outs.begin == outs.end) return;
    uint8_t* mine = nullptr;
    if (m.preparation >= 0) {
      mine = prepared;
      for (int i = 0; i < m.preparation; ++i)
        mine += preparations_[static_cast<size_t>(i)].bytes * static_cast<size_t>(padded(n));
    }
    WeightView view = m.view;
    view.out = last;
    if (m.packed) view.packed = *m.packed;
    m.kernel->run(view, x, in_, mine, n, outs.begin, outs.end, y, y_stride, epilogue, scratch);
  }

  // Outputs per chunk of run_glu: all of a thread's share where it is small enough.
  int64_t glu_chunk(int64_t n, int threads) const {
    const int64_t multiple = glu_multiple(), fits = kGluChunk / n / multiple * multiple;
    return std::min(glu_share(threads), std::max(fits, glu_least()));
  }

  int64_t glu_share(int threads) const {
    const int64_t multiple = glu_multiple(), out = matrices_[0].view.out;
    return ((out + multiple - 1) / multiple + threads - 1) / threads * multiple;
  }

  // Below, a call costs more than its work.
  int64_t glu_least() const { return (64 + glu_multiple() - 1) / glu_multiple() * glu_multiple(); }

  int64_t glu_multiple() const {
    const int64_t a = matrices_[0].kernel->out_multiple, b = matrices_[1].kernel->out_multiple;
    int64_t common = a;
    while (common % b) common += a;
    return common;
  }

  void run_glu(const Run& run, Team& team, const float* x, int64_t n, uint8_t* prepared, uint8_t* own) const {
    const Matrix &gate = matrices_[0], &up = matrices_[1];
    const int64_t out = gate.view.out, chunk = glu_chunk(n, team.size());
    const Range share = team.share(out, glu_multiple());
    float* y = run.result(glu_out_);
    float* ups = reinterpret_cast<float*>(own);
    uint8_t* scratch = own + round_up(static_cast<size_t>(n * chunk) * 4);
    for (int64_t o = share.begin; o < share.end; o += chunk) {
      const Range part{o, std::min(o + chunk, share.end)};
      const int64_t width = part.end - part.begin;
      multiply(gate, x, prepared, n, part, share.end, y, out, {}, scratch);
      multiply(up, x, prepared, n, part, share.end, ups - o, width, {}, scratch);  // kernels count outputs from 0
      glu_({y + o, out, ups, width, y + o, out, n, width});
    }
  }

  BuildContext context_;
  int x_;
  int64_t in_;
  Lead lead_;
  std::vector<Matrix> matrices_;
  std::vector<Preparation> preparations_;
  int residual_ = -1;
  Glu glu_ = nullptr;
  int glu_out_ = -1;
};

}  // namespace

const LinearKernel& pick_linear(const NodeView& node, const WeightView& view, const BuildContext& context) {
  const bool exact = context.activations == Activations::f32 && view.block > 0;
  const bool bf16 = context.activations == Activations::bf16;
  for (const LinearKernel& kernel : bf16 ? bf16_linear_kernels() : exact ? exact_linear_kernels() : linear_kernels())
    if (kernel.usable(context.features, view)) return kernel;
  if (bf16 && std::strcmp(view.format, "bf16"))
    node.refuse(text("activations=bf16 is for weights of format bf16, these are %s", view.format));
  if (bf16) node.refuse("activations=bf16 needs a processor with AVX512_BF16, and no isa that leaves it out");
  node.refuse(text("no kernel multiplies with weights of format %s", view.format));
}

std::unique_ptr<Task> make_linear(const NodeView& node, const BuildContext& context) {
  node.expect_counts(2, 3, 1);
  auto task = std::make_unique<LinearTask>(node, context);
  task->add(node, 1, 2, 0);
  return task;
}

std::unique_ptr<Task> make_linear_add(const NodeView& node, const BuildContext& context) {
  node.expect_counts(3, 4, 1);
  auto task = std::make_unique<LinearTask>(node, context);
  task->add(node, 1, 3, 0);
  task->set_residual(node, 2, node.matrix(1).weight.view.out);
  return task;
}

std::unique_ptr<Task> make_linear_multi(const NodeView& node, const BuildContext& context) {
  const int64_t count = node.integer("count");
  if (count < 1 || count > 1024) node.invalid("wants count between 1 and 1024");
  const int n = static_cast<int>(count);
  node.expect_counts(1 + n, 1 + 2 * n, n);
  auto task = std::make_unique<LinearTask>(node, context);
  for (int i = 0; i < n; ++i) task->add(node, 1 + i, 1 + n + i, i);
  return task;
}

std::unique_ptr<Task> make_linear_glu(const NodeView& node, const BuildContext& context) {
  node.expect_counts(3, 3, 1);
  if (node.word("kind") != "silu") node.refuse("glu of kind `" + node.word("kind") + "`, only silu is known");
  auto task = std::make_unique<LinearTask>(node, context);
  task->add(node, 1, -1, -1);
  task->add(node, 2, -1, -1);
  const int64_t out = node.matrix(1).weight.view.out;
  if (node.matrix(2).weight.view.out != out) node.invalid("has gate and up of different heights");
  node.result(0, node.activation(0).lead, out);
  task->set_glu(pick(glu_variants(GluKind::silu), context.features).kernel, node.output_index(0));
  return task;
}

}  // namespace datong
