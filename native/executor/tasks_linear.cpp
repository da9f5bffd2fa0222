// linear, linear_add, linear_multi, linear_glu: part 0 prepares (quantises) the activations, part 1 computes the outputs,
// those of all matrices as one row that is cut into chunks.
#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "executor/task.h"
#include "kernels/glu/glu.h"
#include "kernels/linear/linear.h"

namespace datong {
namespace {

// gate and up of this many values (128 KiB together) stay in a core's cache until their product is taken.
constexpr int64_t kGluChunk = 16384;

// What cutting goes by; a factor of two either way does no harm. For one thread, of Zen 4.
constexpr double kBytesPerNanosecond = 16, kProductsPerNanosecond = 75;
constexpr double kWorthSharing = 3000;      // nanoseconds; below, one thread alone is done earlier
constexpr double kChunkNanoseconds = 20000;
constexpr int64_t kManyTokens = 64, kLeastRows = 128;  // panels of so many rows share what they read of the activations

constexpr size_t round_up(size_t n) { return (n + 63) / 64 * 64; }

double bytes_per_weight(const WeightView& w) {
  const bool nibbles = w.codes_dtype == DT_I4 || w.codes_dtype == DT_U4;
  const double codes = w.block ? (nibbles ? 0.5 : 1) : w.codes_dtype == DT_F32 ? 4 : 2;
  return codes + (w.block ? (w.has_min ? 4.0 : 2.0) / w.block : 0);
}

struct Matrix {
  WeightView view;
  const LinearKernel* kernel;
  const float* bias;
  int out;         // index of the result
  int preparation; // index into LinearTask::preparations_, -1: f32 as it is
};

struct Preparation {
  void (*prepare)(const float*, int64_t, int64_t, int64_t, int64_t, void*);
  size_t bytes;  // per token
};

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
    Matrix m{view, &pick_linear(node, view, context_), nullptr, -1, -1};
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

  Scratch scratch(int64_t tokens, int64_t rows, int) const override {
    const int64_t n = lead_ == Lead::rows ? rows : tokens;
    size_t prepared = 0, kernel = 0;
    for (const Preparation& p : preparations_) prepared += p.bytes * static_cast<size_t>(padded(n));
    for (const Matrix& m : matrices_)
      if (m.kernel->scratch_bytes && n) kernel = std::max(kernel, round_up(m.kernel->scratch_bytes(m.view, n)));
    if (glu_ && n) kernel += round_up(static_cast<size_t>(n * glu_chunk(n)) * 4);
    return {prepared, kernel};
  }

  int parts() const override { return 2; }

  int64_t chunks(const Run& run, int part, int threads) const override {
    const int64_t n = run.count(lead_);
    if (part == 0) return preparations_.empty() ? 0 : chunks_of_floats(n * in_, padded(n) / kPrepareRows, threads);
    return n == 0 ? 0 : chunks_of_outputs(n, threads);
  }

  void run(const Run& run, int part, int64_t chunk, int64_t chunks, int thread) const override {
    const int64_t n = run.count(lead_);
    if (part == 0) return prepare(run.floats(x_), n, piece_of(n, kPrepareRows, chunks, chunk), run.shared);
    Range mine = piece_of(units(), 1, chunks, chunk);  // of the units of all matrices
    if (glu_) {
      const int64_t multiple = glu_multiple();
      return run_glu(run, {mine.begin * multiple, std::min(mine.end * multiple, matrices_[0].view.out)}, run.own[thread]);
    }
    for (const Matrix& m : matrices_) {
      const int64_t multiple = m.kernel->out_multiple, all = (m.view.out + multiple - 1) / multiple;
      const Range outs{std::max<int64_t>(mine.begin, 0) * multiple, std::min(std::min(mine.end, all) * multiple, m.view.out)};
      const Epilogue epilogue{m.bias, residual_ >= 0 ? run.floats(residual_) : nullptr, m.view.out};
      if (outs.begin < outs.end)
        multiply(m, run.floats(x_), run.shared, n, outs, run.result(m.out), m.view.out, epilogue, run.own[thread]);
      mine = {mine.begin - all, mine.end - all};
    }
  }

 private:
  static int64_t padded(int64_t n) { return (n + kPrepareRows - 1) / kPrepareRows * kPrepareRows; }

  // Outputs are cut at units of a kernel's out_multiple, those of gate and up together.
  int64_t units() const {
    const auto of = [](int64_t out, int64_t multiple) { return (out + multiple - 1) / multiple; };
    if (glu_) return of(matrices_[0].view.out, glu_multiple());
    int64_t all = 0;
    for (const Matrix& m : matrices_) all += of(m.view.out, m.kernel->out_multiple);
    return all;
  }

  // As many for each thread, so that a machine at rest does not wait for the last one; more where that costs nothing,
  // for a machine that is not.
  int64_t chunks_of_outputs(int64_t n, int threads) const {
    double bytes = 0, products = 0;
    int64_t outs = 0;
    for (const Matrix& m : matrices_) {
      products += static_cast<double>(m.view.out) * static_cast<double>(m.view.in) * static_cast<double>(n);
      bytes += static_cast<double>(m.view.out) * static_cast<double>(m.view.in) * bytes_per_weight(m.view);
      outs += m.view.out;
    }
    const double nanoseconds = std::max(bytes / kBytesPerNanosecond, products / kProductsPerNanosecond);
    if (nanoseconds < kWorthSharing) return 1;
    int64_t each = static_cast<int64_t>(nanoseconds / kChunkNanoseconds) / threads;
    if (n >= kManyTokens) each = std::min(each, outs / kLeastRows / threads);
    return std::min(units(), threads * std::clamp<int64_t>(each, 1, kMostChunks));
  }

  // Rows [rows.begin, rows.end) in all ways that are needed, one after another from `to` on.
  void prepare(const float* x, int64_t n, Range rows, uint8_t* to) const {
    for (const Preparation& p : preparations_) {
      if (rows.begin < rows.end) p.prepare(x, in_, in_, rows.begin, rows.end, to);
      to += p.bytes * static_cast<size_t>(padded(n));
    }
  }

  void multiply(const Matrix& m, const float* x, uint8_t* prepared, int64_t n, Range outs, float* y, int64_t y_stride,
                const Epilogue& epilogue, uint8_t* scratch) const {
    if (outs.begin == outs.end) return;
    uint8_t* mine = nullptr;
    if (m.preparation >= 0) {
      mine = prepared;
      for (int i = 0; i < m.preparation; ++i)
        mine += preparations_[static_cast<size_t>(i)].bytes * static_cast<size_t>(padded(n));
    }
    m.kernel->run(m.view, x, in_, mine, n, outs.begin, outs.end, y, y_stride, epilogue, scratch);
  }

  // Outputs that run_glu takes at once.
  int64_t glu_chunk(int64_t n) const {
    const int64_t multiple = glu_multiple();
    const int64_t fits = kGluChunk / n / multiple * multiple;
    const int64_t least = (64 + multiple - 1) / multiple * multiple;  // below, a call costs more than its work
    return std::min((matrices_[0].view.out + multiple - 1) / multiple * multiple, std::max(fits, least));
  }

  int64_t glu_multiple() const {
    const int64_t a = matrices_[0].kernel->out_multiple, b = matrices_[1].kernel->out_multiple;
    int64_t common = a;
    while (common % b) common += a;
    return common;
  }

  void run_glu(const Run& run, Range outs, uint8_t* own) const {
    const Matrix &gate = matrices_[0], &up = matrices_[1];
    const float* x = run.floats(x_);
    const int64_t n = run.count(lead_), out = gate.view.out, chunk = glu_chunk(n);
    float* y = run.result(glu_out_);
    float* ups = reinterpret_cast<float*>(own);
    uint8_t* scratch = own + round_up(static_cast<size_t>(n * chunk) * 4);
    for (int64_t o = outs.begin; o < outs.end; o += chunk) {
      const Range part{o, std::min(o + chunk, outs.end)};
      const int64_t width = part.end - part.begin;
      multiply(gate, x, run.shared, n, part, y, out, {}, scratch);
      multiply(up, x, run.shared, n, part, ups - o, width, {}, scratch);  // kernels count outputs from 0
      glu_({y + o, out, ups, width, y + o, out, n, width, 0, 0});
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
