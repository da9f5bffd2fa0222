// Routing against the same written plainly: ties, NaN, groups, biases; grouping by expert; pairs.
#include "kernels/moe/moe.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "testing/check.h"

using namespace datong;
using namespace datong::testing;

namespace {

// Indices of the largest values; stable: of equals the lowest index.
std::vector<int32_t> largest_of(const std::vector<double>& v, size_t count) {
  std::vector<int32_t> order(v.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return v[size_t(a)] > v[size_t(b)]; });
  order.resize(count);
  return order;
}

void compare(const Router& r, const std::vector<float>& logits) {
  const size_t n = logits.size(), size = n / static_cast<size_t>(r.groups);
  std::vector<double> p(n), choice(n), sums(static_cast<size_t>(r.groups));
  double total = 0;
  for (float x : logits) total += std::exp(double(x));
  for (size_t i = 0; i < n; ++i) {
    p[i] = r.sigmoid ? 1 / (1 + std::exp(-double(logits[i]))) : std::exp(double(logits[i])) / total;
    choice[i] = p[i] + (r.select_bias ? r.select_bias[i] : 0);
  }
  for (size_t g = 0; g < sums.size(); ++g) {
    std::vector<double> members(choice.begin() + long(g * size), choice.begin() + long((g + 1) * size));
    std::sort(members.rbegin(), members.rend());
    sums[g] = members[0] + (size > 1 ? members[1] : 0);
  }
  const auto groups = largest_of(sums, static_cast<size_t>(r.top_groups));
  for (size_t i = 0; i < n; ++i)
    if (std::find(groups.begin(), groups.end(), int32_t(i / size)) == groups.end()) choice[i] = -INFINITY;
  const auto want = largest_of(choice, static_cast<size_t>(r.top_k));
  double sum = r.sigmoid ? 1e-20 : 0;
  for (int32_t e : want) sum += p[size_t(e)];

  std::vector<double> scratch(route_scratch(r) / 8 + 1);
  std::vector<int32_t> chosen(static_cast<size_t>(r.top_k));
  Guarded weights(r.top_k);
  route(r, logits.data(), chosen.data(), weights.data(), scratch.data());
  CHECK(chosen == want, "experts %d.. instead of %d..", chosen[0], want[0]);
  for (size_t k = 0; k < chosen.size(); ++k) {
    const double w = p[size_t(want[k])] / (r.renorm ? sum : 1) * r.scale;
    CHECK(std::fabs(weights.data()[k] - w) <= 1e-6 * std::fabs(w), "weight %zu: %g, not %g", k, weights.data()[k], w);
  }
  CHECK(weights.intact(), "writes outside");
}

void check_routes() {
  const auto bias = random_floats(12, 9, 0.1f);
  for (uint32_t seed = 0; seed < 20; ++seed)
    for (bool sigmoid : {false, true})
      for (int64_t k : {1, 2, 5, 12})
        for (auto [groups, top] : {std::pair<int64_t, int64_t>{1, 1}, {3, 2}, {4, 4}, {12, 5}}) {
          auto logits = random_floats(12, seed, 2);
          if (seed % 2) logits[7] = logits[2] = logits[10];  // ties
          if (k <= top * (12 / groups))
            compare({12, k, sigmoid, seed % 3 == 0, 2.5, groups, top, seed % 4 ? nullptr : bias.data()}, logits);
        }
}

void check_equals_and_nan() {
  const Router r{6, 3, true, true, 1, 1, 1, nullptr};
  std::vector<double> scratch(route_scratch(r) / 8 + 1);
  int32_t chosen[3];
  float weights[3];
  const float same[6] = {};
  route(r, same, chosen, weights, scratch.data());
  CHECK(chosen[0] == 0 && chosen[1] == 1 && chosen[2] == 2, "of equals the lowest: %d %d %d", chosen[0], chosen[1], chosen[2]);
  const float nan = std::nanf(""), odd[6] = {nan, -1, nan, 3, 1, nan};
  route(r, odd, chosen, weights, scratch.data());
  CHECK(chosen[0] == 3 && chosen[1] == 4 && chosen[2] == 1, "NaN is last: %d %d %d", chosen[0], chosen[1], chosen[2]);
  const float none[6] = {nan, nan, nan, nan, nan, nan};
  route(r, none, chosen, weights, scratch.data());
  CHECK(chosen[0] == 0 && chosen[1] == 1 && chosen[2] == 2 && std::isnan(weights[0]), "all NaN: %d %g", chosen[0], weights[0]);
}

void check_grouping() {
  const int32_t chosen[] = {3, 0, 2, 3, 3, 0};
  int32_t starts[6], order[6];
  group_by_expert(chosen, 6, 5, starts, order);
  const int32_t want_starts[] = {0, 2, 2, 3, 6, 6}, want_order[] = {1, 5, 2, 0, 3, 4};
  CHECK(std::equal(starts, starts + 6, want_starts) && std::equal(order, order + 6, want_order));
}

void check_pairs() {
  const auto both = random_floats(2 * 7, 1);
  Guarded gate(6), up(6);
  split_pairs(both.data(), 7, 2, 3, gate.data(), 3, up.data(), 3);
  for (size_t r = 0; r < 2; ++r)
    for (size_t i = 0; i < 3; ++i)
      CHECK(gate.data()[3 * r + i] == both[7 * r + 2 * i] && up.data()[3 * r + i] == both[7 * r + 2 * i + 1]);
  CHECK(gate.intact() && up.intact());
  add_weighted(gate.data(), 2, up.data(), 6);
  CHECK(gate.data()[5] == both[11] + 2 * both[12], "%g", gate.data()[5]);
}

}  // namespace

int main() {
  check_routes();
  check_equals_and_nan();
  check_grouping();
  check_pairs();
  return result();
}
