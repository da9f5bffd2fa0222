// Each variant against _ref over a scrambled block table: all row counts, odd dims, windows, softcap, biases, cut ranges;
// _ref itself against attention written out in double precision. Storing is bit for bit that of _ref, but for the order.
#include "kernels/attention/attention.h"

#include <algorithm>
#include <cstring>

#include "testing/check.h"

using namespace datong;
using namespace datong::testing;

struct Scene {
  int64_t kv_heads, key_dim, value_dim, context;
  CacheType type;
  std::vector<int32_t> table;
  std::vector<uint8_t> keys, values;
  std::vector<float> k, v;  // [context, kv_heads, dim]
  CacheLayer layer;

  Scene(int64_t heads, int64_t kd, int64_t vd, int64_t n, CacheType t)
      : kv_heads(heads), key_dim(kd), value_dim(vd), context(n), type(t) {
    const int64_t blocks = (n + kBlockSize - 1) / kBlockSize + 2, pad = padded_value_dim(vd);
    for (int64_t b = 0; b < blocks; ++b) table.push_back(static_cast<int32_t>(b));
    std::shuffle(table.begin(), table.end(), std::mt19937(5));
    keys.resize(static_cast<size_t>(blocks * heads * kd * kBlockSize * cache_type_bytes(t)));
    values.resize(static_cast<size_t>(blocks * heads * pad * kBlockSize * cache_type_bytes(t)));
    layer = {keys.data(), values.data(), t, heads, kd, vd, pad};
    k = random_floats(n * heads * kd, 11);
    v = random_floats(n * heads * vd, 12);
  }
  void store(const AttentionKernel& kernel) {
    for (int64_t j = 0; j < context; ++j)
      for (int64_t h = 0; h < kv_heads; ++h)
        kernel.store(layer, table[static_cast<size_t>(j / kBlockSize)], j % kBlockSize, h, &k[static_cast<size_t>((j * kv_heads + h) * key_dim)],
                     &v[static_cast<size_t>((j * kv_heads + h) * value_dim)]);
  }
};

struct Result {
  Guarded out;
  float max[kMaxRows], sum[kMaxRows];
  explicit Result(int64_t pad) : out(kMaxRows * pad) {}
};

// Rows [first, first + count) of q [.., key_dim], as the kernel wants them.
static std::vector<float> prepared(const AttentionKernel& kernel, const Scene& s, const std::vector<float>& q, int first, int count) {
  const float* rows[kMaxRows];
  for (int r = 0; r < count; ++r) rows[r] = &q[static_cast<size_t>((first + r) * s.key_dim)];
  std::vector<float> result(static_cast<size_t>(count * s.key_dim));
  kernel.prepare(s.layer, rows, count, 1.0f, result.data());
  return result;
}

static AttentionArgs arguments(const Scene& s, const std::vector<float>& q, int rows, int64_t window, float softcap,
                               Distance distance, int64_t begin, int64_t end, Result& r) {
  AttentionArgs a{};
  a.layer = &s.layer;
  a.head = s.kv_heads - 1;
  a.blocks = s.table.data();
  a.begin = begin;
  a.end = end;
  a.rows = rows;
  for (int i = 0; i < rows; ++i) {
    a.last[i] = std::max<int64_t>(1, s.context - (rows - 1 - i) / 2);  // pairs of rows share a position, as heads do
    a.first[i] = window ? std::max<int64_t>(0, a.last[i] - window) : 0;
  }
  a.q = q.data();
  a.softcap = softcap;
  a.distance = distance;
  for (int i = 0; i < rows; ++i) a.slope[i] = std::pow(0.7f, static_cast<float>(i + 1));
  a.out = r.out.data();
  a.max = r.max;
  a.sum = r.sum;
  return a;
}

static void check_definition(Distance distance) {
  Scene s(2, 5, 3, 40, CacheType::f32);
  s.store(attention_variants().back().kernel);
  const auto q = random_floats(5, 3, 0.2f);
  Result r(s.layer.value_pad);
  const AttentionArgs a = arguments(s, q, 1, 0, 0, distance, 0, 40, r);
  attend_ref(a);
  double sum = 0, out[3] = {};
  for (int64_t j = 0; j < 40; ++j) {
    double score = 0;
    for (int64_t d = 0; d < 5; ++d) score += double(q[static_cast<size_t>(d)]) * s.k[static_cast<size_t>((j * 2 + 1) * 5 + d)];
    const double far = static_cast<double>(39 - j), slope = 0.7f;
    if (distance != Distance::none) score -= slope * (distance == Distance::linear ? far : std::sqrt(far));
    const double p = std::exp(score);
    sum += p;
    for (int64_t d = 0; d < 3; ++d) out[d] += p * s.v[static_cast<size_t>((j * 2 + 1) * 3 + d)];
  }
  for (int d = 0; d < 3; ++d)
    CHECK(std::fabs(r.out[d] / r.sum[0] - out[d] / sum) < 1e-5, "definition: %g %g", r.out[d] / r.sum[0], out[d] / sum);
}

// The variant that keeps bf16 in pairs.
static bool rounds(const Variant<AttentionKernel>& variant, const Scene& s) {
  return !std::strcmp(variant.name, "avx512bf16") && s.type == CacheType::bf16 && s.key_dim % 2 == 0;
}

// What _ref stored, in pairs.
static void pair_up(Scene& s) {
  const auto by_pairs = [](std::vector<uint8_t>& bytes, int64_t rows, int64_t columns) {  // [.., rows, columns] -> [.., rows / 2, columns, 2]
    std::vector<uint8_t> from = bytes;
    const auto *in = reinterpret_cast<const uint16_t*>(from.data());
    auto* out = reinterpret_cast<uint16_t*>(bytes.data());
    const int64_t count = static_cast<int64_t>(bytes.size()) / 2, each = rows * columns;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = i % each / columns, column = i % columns;
      out[i / each * each + (row / 2 * columns + column) * 2 + row % 2] = in[i];
    }
  };
  by_pairs(s.keys, s.key_dim, kBlockSize);
  by_pairs(s.values, kBlockSize, s.layer.value_pad);
}

// `plain`: the same scene as _ref stored it.
static void compare(const Variant<AttentionKernel>& variant, const Scene& s, const Scene& plain, int rows, int64_t window, float softcap,
                    Distance distance = Distance::none) {
  const auto random = random_floats(rows * s.key_dim, 21, 0.2f);
  const auto q = prepared(variant.kernel, s, random, 0, rows), plain_q = prepared(attention_variants().back().kernel, plain, random, 0, rows);
  const int64_t pad = s.layer.value_pad;
  Result want(pad), got(pad), other(pad);
  attend_ref(arguments(plain, plain_q, rows, window, softcap, distance, 0, s.context, want));
  variant.kernel.attend(arguments(s, q, rows, window, softcap, distance, 0, s.context, got));
  // the same in two cuts, merged
  Result first(pad);
  const int64_t cut = s.context / 2 / kBlockSize * kBlockSize;
  variant.kernel.attend(arguments(s, q, rows, window, softcap, distance, 0, cut, first));
  variant.kernel.attend(arguments(s, q, rows, window, softcap, distance, cut, s.context, other));
  for (int r = 0; r < rows; ++r) {
    merge_attention(first.out.data() + r * pad, &first.max[r], &first.sum[r], other.out.data() + r * pad, other.max[r],
                    other.sum[r], pad);
    for (Result* result : {&want, &got, &first})
      for (int64_t d = 0; d < pad; ++d) result->out.data()[r * pad + d] /= result->sum[r];
  }
  const long long context = s.context, kd = s.key_dim, vd = s.value_dim, w = window;
  // Rounding queries and weights to bf16 costs up to 2^-9 of each product.
  const double bound = rounds(variant, s) ? 5e-5 : 1e-11;
  for (Result* result : {&got, &first})
    CHECK(nmse(result->out.data(), want.out.data(), rows * pad) <= bound, "%s%s rows %d context %lld dims %lld %lld window %lld cap %g: %g",
          variant.name, result == &first ? " (cut)" : "", rows, context, kd, vd, w, softcap,
          nmse(result->out.data(), want.out.data(), rows * pad));
  CHECK(got.out.intact() && first.out.intact() && other.out.intact(), "%s writes outside", variant.name);
}

// Pairs: NaN into every slot of the last block that no row sees; results must not change.
static void spoil_unseen(Scene& s) {
  auto* values = reinterpret_cast<uint16_t*>(s.values.data());
  const int64_t last = s.table[static_cast<size_t>((s.context - 1) / kBlockSize)], pad = s.layer.value_pad;
  for (int64_t h = 0; h < s.kv_heads; ++h)
    for (int64_t slot = (s.context - 1) % kBlockSize + 1; slot < kBlockSize; ++slot)
      for (int64_t d = 0; d < pad; ++d)
        values[((last * s.kv_heads + h) * kBlockSize / 2 + slot / 2) * pad * 2 + d * 2 + slot % 2] = 0x7fc0;
}

// A row's result has the same bits alone and among others, whatever windows they have.
static void check_bits(const Variant<AttentionKernel>& variant, const Scene& s, int64_t window, float softcap, Distance distance) {
  const int64_t pad = s.layer.value_pad;
  const auto random = random_floats(kMaxRows * s.key_dim, 21, 0.2f);
  Result all(pad), one(pad);
  for (int64_t begin = 0; begin < s.context; begin += kPiece) {
    const int64_t end = std::min(begin + kPiece, s.context);
    for (int rows = 2; rows <= kMaxRows; ++rows) {
      const auto q = prepared(variant.kernel, s, random, 0, rows);
      const AttentionArgs together = arguments(s, q, rows, window, softcap, distance, begin, end, all);
      variant.kernel.attend(together);
      for (int r = 0; r < rows; ++r) {
        const auto own = prepared(variant.kernel, s, random, r, 1);
        AttentionArgs alone = arguments(s, own, 1, window, softcap, distance, begin, end, one);
        alone.first[0] = together.first[r];
        alone.last[0] = together.last[r];
        alone.slope[0] = together.slope[r];
        variant.kernel.attend(alone);
        bool same = std::memcmp(&all.max[r], &one.max[0], 4) == 0 && std::memcmp(&all.sum[r], &one.sum[0], 4) == 0;
        for (int64_t d = 0; d < pad; ++d) same = same && all.out.data()[r * pad + d] == one.out.data()[d];
        CHECK(same, "%s: row %d of %d, context %lld, keys from %lld, window %lld: other bits than alone", variant.name, r,
              rows, (long long)s.context, (long long)begin, (long long)window);
      }
    }
  }
}

int main() {
  for (Distance distance : {Distance::none, Distance::linear, Distance::square_root}) check_definition(distance);
  const CpuFeatures features = detect_cpu_features();
  for (const auto& variant : attention_variants()) {
    if (!variant.usable(features)) continue;
    for (CacheType type : {CacheType::f32, CacheType::f16, CacheType::bf16})
      for (auto [key_dim, value_dim] : {std::pair<int64_t, int64_t>{64, 64}, {7, 5}, {1, 33}, {24, 16}, {80, 96}})
        for (int64_t context : {1, 2, 31, 32, 33, 127, 128, 129, 300}) {
          Scene s(2, key_dim, value_dim, context, type), ref(2, key_dim, value_dim, context, type);
          s.store(variant.kernel);
          ref.store(attention_variants().back().kernel);
          const std::vector<uint8_t> plain_keys = ref.keys, plain_values = ref.values;
          if (rounds(variant, s)) pair_up(ref);
          CHECK(s.keys == ref.keys && s.values == ref.values, "%s stores other bits than ref", variant.name);
          std::copy(plain_keys.begin(), plain_keys.end(), ref.keys.begin());
          std::copy(plain_values.begin(), plain_values.end(), ref.values.begin());
          if (rounds(variant, s)) spoil_unseen(s);
          if (std::strcmp(variant.name, "ref"))
            for (int64_t window : {0, 3, 40, 200}) check_bits(variant, s, window, 0, Distance::none);
          for (int rows : {1, 2, 3, 4, 5, 7, 8}) {
            compare(variant, s, ref, rows, 0, 0);
            if (rows == 3) {
              compare(variant, s, ref, rows, 1, 0);
              compare(variant, s, ref, rows, 50, 0);
              compare(variant, s, ref, rows, 50, 2.0f);
              compare(variant, s, ref, rows, 0, 0, Distance::linear);
              compare(variant, s, ref, rows, 50, 2.0f, Distance::square_root);
            }
          }
        }
  }
  return result();
}
