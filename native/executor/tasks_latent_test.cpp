// Latent attention through the executor: with every key chosen it gives the bits of none chosen, whatever the numbers
// beside them, the batch, the threads and the cache's type; without its keys it does not.
#include <array>
#include <cmath>
#include <limits>
#include <memory>

#include "executor/program.h"
#include "executor/test_part.h"
#include "kernels/attention/attention.h"

using namespace datong;
using namespace datong::testing;

namespace {

using Floats = std::vector<float>;

constexpr int64_t kHeads = 11, kPlain = 7, kTurned = 4, kWide = 33, kValue = 9, kTop = 100, kBlocks = 8;
constexpr float kNone = -1;

class LatentPart : public TestPart {
 public:
  explicit LatentPart(bool chosen) : weight_("bf16", kHeads * (kPlain + kValue), kWide, 5) {
    const std::vector<int64_t> widths{kHeads * (kPlain + kTurned), kWide, kTurned};
    for (int64_t width : widths) inputs_.push_back(value(nullptr, DT_INPUT, DT_F32, {DT_DIM_TOKENS, width}));
    std::vector<int32_t> in = inputs_;
    in.push_back(weight("bf16", {kHeads * (kPlain + kValue), kWide}, pieces_of(weight_)));
    if (chosen) {
      inputs_.push_back(value("chosen", DT_INPUT, DT_F32, {DT_DIM_TOKENS, kTop}));
      in.push_back(inputs_.back());
    }
    outputs_ = {temp(kHeads * kValue)};
    node("latent_attention", in, outputs_, {number("layer", 2), number("num_heads", kHeads), number("plain", kPlain), real("scale", 0.3)});
    caches_.push_back({sizeof(dt_cache_spec), 2, 1, kWide + kTurned, kWide, 0, DT_CACHE_LATENT});
    close();
  }

 private:
  TestWeight weight_;
};

// One sequence, whose blocks lie in reverse order.
class Session {
 public:
  Session(const LatentPart& part, CacheType type, int threads)
      : program_(std::make_shared<Device>(cpu_features_for("best"), "best", threads), part.part(), options(type)),
        cache_(program_.create_cache({kBlocks})) {}

  // Tokens [from, to), with these numbers chosen for each; empty: the part has no such input.
  Floats run(int64_t from, int64_t to, const Floats& chosen) {
    const int64_t tokens = to - from, starts[] = {0, tokens}, contexts[] = {to};
    const std::vector<int64_t> zeros(size_t(tokens) + 1);
    int32_t table[kBlocks];
    for (int64_t b = 0; b < kBlocks; ++b) table[b] = static_cast<int32_t>(kBlocks - 1 - b);
    const dt_step step{sizeof(dt_step), tokens, 1, 0, zeros.data(), zeros.data(), starts, contexts, table, kBlocks, zeros.data(), nullptr, 0, nullptr};
    const int64_t widths[] = {kHeads * (kPlain + kTurned), kWide, kTurned, kTop};
    const size_t count = chosen.empty() ? 3 : 4;
    std::vector<Floats> data;
    for (size_t i = 0; i < 3; ++i) {
      const Floats all = random_floats(kBlocks * kBlockSize * widths[i], static_cast<uint32_t>(20 + i));
      data.emplace_back(all.begin() + from * widths[i], all.begin() + to * widths[i]);
    }
    data.push_back(chosen);
    std::vector<std::array<int64_t, 2>> shapes(4);
    std::vector<dt_tensor> inputs;
    for (size_t i = 0; i < count; ++i) {
      shapes[i] = {tokens, widths[i]};
      inputs.push_back({sizeof(dt_tensor), DT_F32, 2, shapes[i].data(), data[i].data()});
    }
    dt_tensor out{};
    program_.run(cache_.get(), step, inputs.data(), static_cast<int32_t>(count), &out, 1);
    const float* y = static_cast<const float*>(out.data);
    return Floats(y, y + tokens * kHeads * kValue);
  }

 private:
  static ProgramOptions options(CacheType type) {
    ProgramOptions o;
    o.cache_type = type;
    o.cache_type_given = true;
    return o;
  }
  Program program_;
  std::unique_ptr<Cache> cache_;
};

// For tokens [from, to): every key up to the token's own and `beyond` more, then what is no key.
Floats numbers(int64_t from, int64_t to, int64_t beyond) {
  constexpr float kOdd[] = {kNone, std::numeric_limits<float>::quiet_NaN(), 1e30f, -1e30f, std::numeric_limits<float>::infinity()};
  Floats all;
  for (int64_t t = from; t < to; ++t)
    for (int64_t k = 0; k < kTop; ++k) all.push_back(k <= t + beyond ? static_cast<float>(k) : kOdd[k % 5]);
  return all;
}

void check(CacheType type, int threads) {
  Session plain(LatentPart(false), type, threads), chosen(LatentPart(true), type, threads);
  for (const auto& [from, to] : std::vector<std::pair<int64_t, int64_t>>{{0, 1}, {1, 40}, {40, 41}, {41, 99}}) {
    const Floats want = plain.run(from, to, {});
    CHECK(chosen.run(from, to, numbers(from, to, from % 3)) == want, "tokens %lld to %lld", static_cast<long long>(from), static_cast<long long>(to));
  }
  Floats fewer = numbers(99, 100, 0);
  fewer[0] = kNone;
  CHECK(chosen.run(99, 100, fewer) != plain.run(99, 100, {}), "the first key was not chosen");
  const Floats none = chosen.run(99, 100, Floats(kTop, kNone));
  for (float y : none) CHECK(y == 0, "nothing chosen: %g", double{y});
}

}  // namespace

int main() {
  for (CacheType type : {CacheType::f32, CacheType::f16, CacheType::bf16})
    for (int threads : {1, 3}) check(type, threads);
  return result();
}
