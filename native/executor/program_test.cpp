// A model of two layers through the executor: every instruction set against the reference, prompts at once, by token and
// several sequences together; the same bits whatever the number of threads and however they are interleaved.
#include "executor/program.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "core/error.h"
#include "executor/test_part.h"
#include "testing/check.h"

using namespace datong;
using namespace datong::testing;

namespace {

constexpr int64_t kWidth = 256, kHeads = 4, kKvHeads = 2, kHeadDim = 64, kInner = 768, kWords = 500;
constexpr int64_t kContext = 128;  // tokens of a sequence, at most

class Model : public TestPart {
 public:
  explicit Model(const char* format) : format_(format) {
    const int ids = value("ids", DT_INPUT, DT_I64, {DT_DIM_TOKENS});
    const int positions = value("positions", DT_INPUT, DT_I64, {DT_DIM_TOKENS});
    const int rows = value("rows", DT_INPUT, DT_I64, {DT_DIM_ROWS});
    inputs_ = {ids, positions, rows};
    int x = temp(kWidth);
    node("embedding", {ids, matrix(kWords, kWidth)}, {x});
    std::vector<float> angles(kHeadDim / 2);
    for (size_t i = 0; i < angles.size(); ++i) angles[i] = std::pow(10000.0f, -static_cast<float>(i) / 32);
    const int cos = temp(kHeadDim / 2), sin = temp(kHeadDim / 2);
    node("rope_table", {positions, constant(angles)}, {cos, sin});
    for (int layer = 0; layer < 2; ++layer) x = block(x, cos, sin, layer);
    const int taken = temp(kWidth, DT_DIM_ROWS), last = temp(kWidth, DT_DIM_ROWS), logits = temp(kWords, DT_DIM_ROWS);
    node("take_rows", {x, rows}, {taken});
    norm(taken, last);
    node("linear", {last, matrix(kWords, kWidth)}, {logits});
    outputs_ = {logits};
    close();
  }

 private:
  int block(int x, int cos, int sin, int layer) {
    caches_.push_back({sizeof(dt_cache_spec), layer, kKvHeads, kHeadDim, kHeadDim, 0, DT_CACHE_TOKENS});
    const int normed = temp(kWidth), q = temp(kHeads * kHeadDim), k = temp(kKvHeads * kHeadDim), v = temp(kKvHeads * kHeadDim);
    norm(x, normed);
    node("linear_multi", {normed, matrix(kHeads * kHeadDim, kWidth), matrix(kKvHeads * kHeadDim, kWidth), matrix(kKvHeads * kHeadDim, kWidth)},
         {q, k, v}, {number("count", 3)});
    const int q_turned = temp(kHeads * kHeadDim), k_turned = temp(kKvHeads * kHeadDim), seen = temp(kHeads * kHeadDim);
    node("rope", {q, cos, sin}, {q_turned}, {number("num_heads", kHeads)});
    node("rope", {k, cos, sin}, {k_turned}, {number("num_heads", kKvHeads)});
    node("attention", {q_turned, k_turned, v}, {seen},
         {number("num_heads", kHeads), number("num_kv_heads", kKvHeads), number("layer", layer), real("scale", 0.125)});
    const int middle = temp(kWidth), inner = temp(kInner), out = temp(kWidth), again = temp(kWidth);
    node("linear_add", {seen, matrix(kWidth, kHeads * kHeadDim), x}, {middle});
    norm(middle, again);
    node("linear_glu", {again, matrix(kInner, kWidth), matrix(kInner, kWidth)}, {inner}, {word("kind", "silu")});
    node("linear_add", {inner, matrix(kWidth, kInner), middle}, {out});
    return out;
  }

  void norm(int x, int y) { node("rms_norm", {x, constant(std::vector<float>(kWidth, 1.0f))}, {y}, {real("eps", 1e-5)}); }

  int matrix(int64_t out, int64_t in) {
    return weight(format_, {out, in}, pieces_of(TestWeight(format_, out, in, static_cast<uint32_t>(values_.size()))));
  }

  const char* format_;
};

using Floats = std::vector<float>;

// A program with a cache for `kSequences` sequences.
class Session {
 public:
  Session(const Model& model, const char* isa, int threads)
      : program_(std::make_shared<Device>(cpu_features_for(isa), isa, threads), model.part(), {CacheType::f32, true}),
        cache_(program_.create_cache({kSequences * kContext / kBlockSize})) {}

  // Feeds counts[s] tokens to each sequence; logits of all of them.
  Floats feed(const std::vector<int64_t>& counts) {
    std::vector<int64_t> ids, positions, starts{0}, contexts, rows;
    std::vector<int32_t> tables;
    for (size_t s = 0; s < counts.size(); ++s) {
      for (int64_t i = 0; i < counts[s]; ++i, ++lengths_[s]) {
        ids.push_back((lengths_[s] * 37 + static_cast<int64_t>(s) * 11) % kWords);
        positions.push_back(lengths_[s]);
        rows.push_back(static_cast<int64_t>(rows.size()));
      }
      starts.push_back(static_cast<int64_t>(ids.size()));
      contexts.push_back(lengths_[s]);
      for (int64_t b = 0; b < kContext / kBlockSize; ++b) tables.push_back(static_cast<int32_t>(b * kSequences + static_cast<int64_t>(s)));
    }
    const auto tokens = static_cast<int64_t>(ids.size());
    const dt_step step{sizeof(dt_step), tokens, static_cast<int64_t>(counts.size()), tokens, ids.data(), positions.data(),
                       starts.data(), contexts.data(), tables.data(), kContext / kBlockSize, rows.data(), nullptr, 0, nullptr};
    dt_tensor out{};
    program_.run(cache_.get(), step, nullptr, 0, &out, 1);
    const float* logits = static_cast<const float*>(out.data);
    return Floats(logits, logits + tokens * kWords);
  }

  static constexpr int64_t kSequences = 20;

 private:
  Program program_;
  std::unique_ptr<Cache> cache_;
  int64_t lengths_[kSequences] = {};
};

// Prefill, decode, a mixed step and a batch that decodes, in one row.
Floats story(const Model& model, const char* isa, int threads) {
  Session session(model, isa, threads);
  Floats all;
  const auto feed = [&](std::vector<int64_t> counts) {
    const Floats logits = session.feed(counts);
    all.insert(all.end(), logits.begin(), logits.end());
  };
  feed({37});
  for (int i = 0; i < 3; ++i) feed({1});
  feed({1, 40, 3});
  feed({1, 1});
  for (int i = 0; i < 2; ++i) feed(std::vector<int64_t>(Session::kSequences, 1));
  feed({71, 60, 5, 1});  // a large step for 4 threads too
  feed({1, 2});
  return all;
}

void check_isas(const Model& model, double bound) {
  const Floats want = story(model, "ref", 1);
  for (const char* isa : {"avx2", "avx512", "neon", "neon_dotprod", "best"}) {
    try {
      cpu_features_for(isa);
    } catch (const Error& e) {
      continue;  // this processor lacks it
    }
    const Floats got = story(model, isa, 2);
    const double error = nmse(got.data(), want.data(), static_cast<int64_t>(want.size()));
    CHECK(got.size() == want.size() && error <= bound, "%s: %g", isa, error);
    if (std::getenv("DATONG_TEST_VERBOSE")) std::printf("%s: %g\n", isa, error);
  }
}

// By one token at a time and as a whole.
void check_chunks(const Model& model) {
  Session whole(model, "best", 2), single(model, "best", 2);
  const Floats at_once = whole.feed({20});
  Floats one_by_one;
  for (int i = 0; i < 20; ++i) {
    const Floats logits = single.feed({1});
    one_by_one.insert(one_by_one.end(), logits.begin(), logits.end());
  }
  const double error = nmse(one_by_one.data(), at_once.data(), static_cast<int64_t>(at_once.size()));
  CHECK(error <= 1e-9, "one by one: %g", error);
}

// No result depends on which thread did what, nor on threads that lose their processor.
void check_interleaving(const Model& model) {
  const Floats want = story(model, "best", 1);
  std::atomic<bool> stop{false};
  std::vector<std::thread> others;
  for (int busy : {0, 3}) {
    for (int i = 0; i < busy; ++i)
      others.emplace_back([&stop] {
        while (!stop.load(std::memory_order_relaxed)) {
        }
      });
    for (int threads : {2, 3, 4}) {
      const Floats got = story(model, "best", threads);
      CHECK(got == want, "%d threads and %d busy ones: other bits than one thread", threads, busy);
    }
  }
  stop = true;
  for (std::thread& t : others) t.join();
}

}  // namespace

int main() {
  const Model plain("f32"), blocks("q4_0");
  check_isas(plain, 1e-9);
  check_isas(blocks, 1e-3);
  check_chunks(plain);
  check_interleaving(plain);
  check_interleaving(blocks);
  return result();
}
