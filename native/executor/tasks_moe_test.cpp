// A mixture of experts through the executor: every order, format and instruction set against the definition in f64, the
// same bits whatever the number of threads, waves of many experts, swapped weights, and experts that nobody chose:
// their weights are not there at all any more.
#include <algorithm>
#include <cstdio>
#include <memory>

#include <unistd.h>

#include "executor/program.h"
#include "executor/test_part.h"
#include "kernels/moe/moe.h"

using namespace datong;
using namespace datong::testing;

namespace {

using Floats = std::vector<float>;

struct Setting {
  const char* format;
  int64_t experts, top_k, inner, width;
  const char *order, *kind;
  bool biases, apart, swapped;
};

constexpr float kLimit = 1.5f, kAlpha = 1.702f;

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

double unit(const std::string& kind, double g, double u) {
  if (kind == "silu") return g * logistic(g) * u;
  const double h = std::min(g, double{kLimit});
  return h * logistic(kAlpha * h) * (std::clamp(u, double{-kLimit}, double{kLimit}) + 1);
}

// One stack of experts, and what it stands for.
struct Stack {
  int64_t out, in;
  std::vector<std::unique_ptr<TestWeight>> experts;
  std::vector<std::vector<double>> dense;  // [E][out * in]
  Floats bias;                             // [E, out] or empty

  Stack(const Setting& s, int64_t rows, int64_t columns, uint32_t seed) : out(rows), in(columns) {
    for (int64_t e = 0; e < s.experts; ++e) {
      // stored [in, out] where swapped
      experts.push_back(std::make_unique<TestWeight>(s.format, s.swapped ? in : out, s.swapped ? out : in, seed + uint32_t(e)));
      const std::vector<double> stored = experts.back()->dense();
      auto& d = dense.emplace_back(stored);
      for (int64_t o = 0; s.swapped && o < out; ++o)
        for (int64_t i = 0; i < in; ++i) d[size_t(o * in + i)] = stored[size_t(i * out + o)];
    }
    if (s.biases) bias = random_floats(s.experts * out, seed + 1000);
  }

  // y [out] += expert e of x [in], with its bias
  std::vector<double> apply(int64_t e, const std::vector<double>& x) const {
    std::vector<double> y(static_cast<size_t>(out));
    for (int64_t o = 0; o < out; ++o) {
      double sum = bias.empty() ? 0 : bias[size_t(e * out + o)];
      for (int64_t i = 0; i < in; ++i) sum += dense[size_t(e)][size_t(o * in + i)] * x[size_t(i)];
      y[size_t(o)] = sum;
    }
    return y;
  }
};

class MoePart : public TestPart {
 public:
  explicit MoePart(const Setting& s)
      : s_(s), split_(!std::strcmp(s.order, "split")), gate_(s, split_ ? s.inner : 2 * s.inner, s.width, 100),
        up_(s, s.inner, s.width, 300), down_(s, s.width, s.inner, 500) {
    const int x = value("x", DT_INPUT, DT_F32, {DT_DIM_TOKENS, s.width});
    const int logits = value("logits", DT_INPUT, DT_F32, {DT_DIM_TOKENS, s.experts});
    inputs_ = {x, logits};
    std::vector<int32_t> in{x, logits};
    std::vector<Stack*> stacks{&gate_, split_ ? &up_ : nullptr, &down_};
    std::vector<std::vector<dt_piece>> pieces(3);
    if (s.apart) {
      // expert by expert in the file, so that a file cut off behind the first ones lacks the others
      for (int64_t e = 0; e < s.experts; ++e) {
        for (size_t k = 0; k < 3; ++k)
          for (const dt_piece& piece : stacks[k] ? pieces_of(*stacks[k]->experts[size_t(e)]) : std::vector<dt_piece>{})
            pieces[k].push_back(piece);
        ends_.push_back(size());
      }
    } else {
      for (size_t k = 0; k < 3; ++k)
        if (stacks[k]) pieces[k] = together(*stacks[k]);
    }
    for (size_t k = 0; k < 3; ++k) {
      in.push_back(-1);
      if (!stacks[k]) continue;
      in.back() = weight(s.format, {s.experts, stacks[k]->out, stacks[k]->in}, pieces[k]);
      values_.back().swapped = s.swapped;
    }
    in.push_back(-1);
    for (size_t k = 0; k < 3; ++k) {
      in.push_back(-1);
      if (!stacks[k] || !s.biases) continue;
      in.back() = constant(stacks[k]->bias);
      values_.back().rank = 2;
      values_.back().dims = dims_of({s.experts, stacks[k]->out});
    }
    const int y = temp(s.width);
    node("moe", in, {y},
         {number("top_k", s.top_k), word("score", "softmax"), number("renorm", 1), real("scale", 2), word("order", s.order),
          word("kind", s.kind), real("limit", kLimit), real("alpha", kAlpha)});
    outputs_ = {y};
    close();
  }

  Floats expected(const Floats& x, const Floats& logits) const {
    const Router router{s_.experts, s_.top_k, false, true, 2, 1, 1, nullptr};
    std::vector<double> scratch(route_scratch(router) / 8 + 1);
    std::vector<int32_t> chosen(size_t(s_.top_k));
    Floats weights(size_t(s_.top_k)), y;
    for (size_t t = 0; t * size_t(s_.width) < x.size(); ++t) {
      route(router, &logits[t * size_t(s_.experts)], chosen.data(), weights.data(), scratch.data());
      const std::vector<double> row(x.begin() + long(t) * s_.width, x.begin() + long(t + 1) * s_.width);
      std::vector<double> sum(size_t(s_.width));
      for (size_t k = 0; k < chosen.size(); ++k) {
        const std::vector<double> out = of_expert(chosen[k], row);
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += double{weights[k]} * out[i];
      }
      for (double v : sum) y.push_back(float(v));
    }
    return y;
  }

  // Ends the file behind the weights of the first experts, at a page.
  void cut(int64_t experts) {
    const int64_t page = sysconf(_SC_PAGE_SIZE), end = (ends_[size_t(experts) - 1] + page - 1) / page * page;
    CHECK(end + page < ends_.back() && truncate(path(), end) == 0);
  }

 private:
  std::vector<dt_piece> together(const Stack& stack) {
    std::vector<std::vector<dt_piece>> each;
    for (const auto& e : stack.experts) each.push_back(pieces_of(*e));
    std::vector<dt_piece> all = each[0];
    for (size_t role = 0; role < all.size(); ++role) {  // the bytes once more, role by role
      all[role].offset = size();
      for (const auto& one : each) copy(one[role]);
      all[role].length = size() - all[role].offset;
    }
    return all;
  }

  std::vector<double> of_expert(int64_t e, const std::vector<double>& x) const {
    const std::vector<double> first = gate_.apply(e, x), second = split_ ? up_.apply(e, x) : first;
    std::vector<double> inner(size_t(s_.inner));
    const bool pairs = !std::strcmp(s_.order, "pairs");
    for (size_t i = 0; i < inner.size(); ++i) {
      const size_t g = pairs ? 2 * i : i, u = split_ ? i : pairs ? 2 * i + 1 : inner.size() + i;
      inner[i] = unit(s_.kind, first[g], second[u]);
    }
    return down_.apply(e, inner);
  }

  Setting s_;
  bool split_;
  Stack gate_, up_, down_;
  std::vector<int64_t> ends_;
};

class Session {
 public:
  Session(const MoePart& part, const char* isa, int threads, Activations activations = Activations::i8)
      : program_(std::make_shared<Device>(cpu_features_for(isa), isa, threads), part.part(), options(activations)) {}

  Floats run(const Floats& x, const Floats& logits, int64_t tokens) {
    const std::vector<int64_t> zeros(size_t(tokens) + 1);
    dt_step step{};
    step.struct_size = sizeof step;
    step.tokens = tokens;
    step.ids = step.positions = zeros.data();
    const int64_t of_x[] = {tokens, int64_t(x.size()) / tokens}, of_logits[] = {tokens, int64_t(logits.size()) / tokens};
    const dt_tensor inputs[] = {{sizeof(dt_tensor), DT_F32, 2, of_x, const_cast<float*>(x.data())},
                                {sizeof(dt_tensor), DT_F32, 2, of_logits, const_cast<float*>(logits.data())}};
    dt_tensor out{};
    program_.run(nullptr, step, inputs, 2, &out, 1);
    const float* y = static_cast<const float*>(out.data);
    return Floats(y, y + x.size());
  }

  const Program& program() const { return program_; }

 private:
  static ProgramOptions options(Activations activations) {
    ProgramOptions o;
    o.activations = activations;
    return o;
  }
  Program program_;
};

const char* const kIsas[] = {"ref", "avx2", "avx512", "neon", "neon_dotprod", "best"};

bool available(const char* isa) {
  try {
    cpu_features_for(isa);
    return true;
  } catch (const Error&) {
    return false;
  }
}

void check(const Setting& s, std::vector<int64_t> tokens) {
  const MoePart part(s);
  const bool blocks = s.format[0] == 'q';
  for (int64_t n : tokens) {
    const Floats x = random_floats(n * s.width, 7), logits = random_floats(n * s.experts, 8, 2);
    const Floats want = part.expected(x, logits);
    for (const char* isa : kIsas) {
      if (!available(isa)) continue;
      Session one(part, isa, 1);
      const Floats got = one.run(x, logits, n);
      const double error = nmse(got.data(), want.data(), int64_t(want.size()));
      CHECK(error <= (blocks ? 5e-4 : 1e-10), "%s %s %s, %lld tokens: %g", isa, s.format, s.order, static_cast<long long>(n), error);
      const Floats again = one.run(x, logits, n);
      CHECK(again == got, "%s: other bits again", isa);
      for (int threads : {2, 3, 5}) {
        const Floats other = Session(part, isa, threads).run(x, logits, n);
        CHECK(other == got, "%s %s %s, %lld tokens: other bits with %d threads", isa,
              s.format, s.order, static_cast<long long>(n), threads);
      }
    }
    if (!blocks) continue;
    const Floats exact = Session(part, "best", 2, Activations::f32).run(x, logits, n);
    CHECK(nmse(exact.data(), want.data(), int64_t(want.size())) <= 1e-10, "exact %s", s.format);
  }
}

// Experts 0 and 1 are the only ones that are wanted, and the only ones whose weights remain.
void check_unread(const char* format) {
  for (int64_t n : {1, 2, 40}) {
    MoePart part({format, 6, 2, 96, 128, "split", "silu", false, true, false});
    Floats x = random_floats(n * 128, 3), logits = random_floats(n * 6, 4, 0.1f);
    for (int64_t t = 0; t < n; ++t) logits[size_t(6 * t)] = logits[size_t(6 * t + 1)] = 9;
    const Floats want = part.expected(x, logits);
    Session session(part, "best", 2);
    part.cut(2);  // to touch what lies behind is a bus error
    const Floats got = session.run(x, logits, n);
    CHECK(nmse(got.data(), want.data(), int64_t(want.size())) <= 5e-4, "%s, %lld tokens", format, static_cast<long long>(n));
  }
}

// What is stored [in, out] is copied once, and counted.
void check_swapped() {
  const Setting s{"bf16", 3, 1, 32, 48, "halves", "oai", true, false, true};
  const MoePart part(s);
  const Session session(part, "best", 1);
  const int64_t weights = 3 * 3 * 32 * 48 * 2, biases = 3 * (2 * 32 + 48) * 4;
  CHECK(session.program().mapped_bytes() == 0, "mapped: %lld", static_cast<long long>(session.program().mapped_bytes()));
  // biases twice: the constants and what the node keeps
  CHECK(session.program().private_bytes() == weights + 2 * biases, "private: %lld",
        static_cast<long long>(session.program().private_bytes()));
  CHECK(session.program().implementation(0).find("transposed") != std::string::npos);
}

const int64_t fewer[] = {3, 32, 32};

template <class Change>
void check_refusal(Change change, const char* wanted) {
  const MoePart good({"f32", 4, 2, 32, 32, "split", "silu", false, false, false});
  dt_part part = good.part();
  std::vector<dt_value> values(part.values, part.values + part.value_count);
  part.values = values.data();
  change(values);
  std::string message;
  try {
    Program(std::make_shared<Device>(cpu_features_for("ref"), "ref", 1), part, {});
  } catch (const Error& e) {
    message = e.what();
  }
  CHECK(message.find(wanted) != std::string::npos, "`%s` came, `%s` was wanted", message.c_str(), wanted);
}

}  // namespace

int main() {
  check({"f32", 5, 2, 33, 63, "split", "silu", false, false, false}, {1, 2, 3, 17});
  check({"bf16", 6, 3, 40, 96, "halves", "oai", true, false, true}, {1, 2, 20});
  check({"f16", 6, 3, 33, 70, "pairs", "oai", true, true, true}, {1, 2, 20});
  check({"q4_0", 5, 2, 64, 96, "pairs", "silu", true, false, false}, {1, 2, 20});
  check({"q8_0", 6, 6, 96, 64, "split", "silu", false, true, false}, {1, 2, 70});
  check({"q4_1", 5, 2, 32, 64, "halves", "oai", true, false, false}, {2, 9});
  check({"q4_0", 96, 4, 32, 32, "split", "silu", false, true, false}, {1, 40, 200});  // two waves and more
  check({"fp8_128", 5, 2, 144, 200, "split", "silu", false, false, false}, {1, 2, 20});
  check({"fp8_128_bf16", 5, 2, 144, 136, "halves", "silu", true, false, false}, {1, 20});
  check({"mxfp4", 5, 2, 64, 96, "pairs", "oai", true, true, false}, {1, 20});
  check({"nvfp4", 5, 2, 64, 96, "split", "silu", true, false, false}, {1, 20});
  for (const char* format : {"f32", "q4_0", "fp8_128"}) check_unread(format);
  check_swapped();
  check_refusal([](auto& v) { v[2].piece_count = 3; }, "experts has 3 pieces");
  check_refusal([](auto& v) { v[2].swapped = 1, v[2].format = "q4_0"; }, "stored swapped, which only plain matrices may be");
  check_refusal([](auto& v) { v[2].dims = fewer; }, "its shape wants");
  check_refusal([](auto& v) { v[1].dims = fewer, v[1].rank = 1; }, "has neither tokens nor rows");
  return result();
}
