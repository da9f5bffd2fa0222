// moe: each token through its own few experts. Only the chosen experts' weights are touched.
//
// The pairs (token, chosen expert) are grouped by expert; the tokens of one expert are a segment. Then, for a wave of
// segments that fits the scratch:
//
//   rows of x are gathered and prepared (quantised) by segment
//   inner = glu(gate, up): the rows of all gates and ups lie in one row of work, cut by cost
//   inner is prepared
//   y += weight * down(inner): each thread has its own columns of y, so nothing is added up across threads
//
// A step of at most kReplicate rows is one wave: each thread routes and prepares for itself, a segment is a range of x
// as it lies, and there is one barrier, after inner. No result depends on the number of threads: the same kernel call
// per segment makes an output whatever else the call makes, and y gathers its experts in their order.
#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "executor/task.h"
#include "kernels/linear/linear.h"
#include "kernels/moe/moe.h"

namespace datong {
namespace {

constexpr int64_t kChunkFloats = 16384;  // of intermediate results of one call (64 KiB): they stay in a core's cache
constexpr int64_t kWaveRows = 1024;      // rows of prepared activations in flight, at least: bounds the scratch
constexpr int64_t kRowCost = 4;          // what reading a weight row costs, in multiplications with one token

constexpr size_t round_up(size_t n) { return (n + 63) / 64 * 64; }
constexpr int64_t padded(int64_t rows) { return (rows + kPrepareRows - 1) / kPrepareRows * kPrepareRows; }

// One of the three matrices of every expert.
struct Role {
  std::vector<WeightView> experts;  // empty where this is a question
  WeightView shape;                 // of the first
  const LinearKernel* kernel = nullptr;
  std::vector<float> bias;          // [E, out], or empty
  size_t prepared = 0;              // bytes per row; 0: f32 as it is

  const float* bias_of(int64_t expert) const { return bias.empty() ? nullptr : bias.data() + expert * shape.out; }
};

// The tokens of one expert in a wave.
struct Segment {
  int64_t expert, pairs, rows;  // first of its pairs in the order, how many
  int64_t row, padded_row;      // its first row in gathered and in prepared buffers
};

// Where things lie in scratch, for a step of n rows. Offsets in bytes.
struct Layout {
  bool small;
  int64_t wave_padded, wave_rows;               // rows of a wave, at most
  size_t gathered, inner, prepared_inner;       // shared; prepared_inner of small steps: own
  size_t prepared[2];                           // x for gate and up, by preparation; as prepared_inner
  size_t chosen, weights;                       // as prepared_inner
  size_t starts, order, route, chunk, kernel;   // own
  size_t shared_bytes, own_bytes;
};

class Moe : public Task {
 public:
  Moe(const NodeView& node, const BuildContext& context)
      : x_(node.input_index(0)), logits_(node.input_index(1)), y_(node.output_index(0)) {
    const Value &x = node.activation(0), &logits = node.activation(1);
    if (x.lead != logits.lead) node.invalid("mixes tokens and rows");
    node.result(0, x.lead, x.width);
    lead_ = x.lead;
    width_ = x.width;
    read_router(node, logits.width);
    read_matrices(node, context);
    unit_ = read_glu(node, context.features);
    name_it();
  }

  int64_t private_bytes() const override {
    return static_cast<int64_t>(gate_.bias.size() + up_.bias.size() + down_.bias.size()) * 4;
  }

  Scratch scratch(int64_t tokens, int64_t rows, int) const override {
    const int64_t n = lead_ == Lead::rows ? rows : tokens;
    if (n == 0) return {};
    const Layout l = layout(n);
    return {l.shared_bytes, l.own_bytes};
  }

  void run(const Run& run, Team& team) const override {
    const int64_t n = run.count(lead_);
    if (n == 0) return;
    const Layout l = layout(n);
    uint8_t* own = run.own[team.index()];
    Wave w{run, team, l, own, l.small ? own : run.shared, n, 0, 0};
    route_all(w);
    group_by_expert(w.at<int32_t>(l.chosen), n * router_.top_k, router_.experts, w.mine<int32_t>(l.starts),
                    w.mine<int32_t>(l.order));
    while (next_wave(w)) {
      prepare_x(w);
      gate_and_up(w);
      team.barrier();
      prepare_inner(w);
      down_and_sum(w);
    }
  }

 private:
  // What one thread knows of the wave of experts [begin, end) that it works on.
  struct Wave {
    const Run& run;
    Team& team;
    const Layout& l;
    uint8_t* own;
    uint8_t* common;  // own in small steps, else shared
    int64_t n, begin, end;

    template <class T>
    T* at(size_t offset) const { return reinterpret_cast<T*>(common + offset); }
    template <class T>
    T* mine(size_t offset) const { return reinterpret_cast<T*>(own + offset); }
    float* gathered() const { return reinterpret_cast<float*>(run.shared + l.gathered); }
    float* inner() const { return reinterpret_cast<float*>(run.shared + l.inner); }
  };

  // ---- building -------------------------------------------------------------------------------------------------

  void read_router(const NodeView& node, int64_t experts) {
    const std::string score = node.word("score");
    if (score != "softmax" && score != "sigmoid") node.refuse("score `" + score + "`, softmax and sigmoid are known");
    router_ = {experts, node.integer("top_k"), score == "sigmoid", node.integer("renorm") != 0, node.number("scale"),
               node.integer_or("groups", 1), node.integer_or("top_groups", 1), nullptr};
    if (experts > (1 << 20)) node.refuse("more than 2^20 experts");
    if (router_.top_k < 1 || router_.top_k > experts) node.invalid("wants top_k from 1 to the number of experts");
    if (router_.groups < 1 || experts % router_.groups || router_.top_groups < 1 || router_.top_groups > router_.groups)
      node.invalid("wants groups that divide the experts, and top_groups from 1 to that many");
    const Value* bias = node.plain_vector(5, experts);
    if (bias && !bias->floats.empty()) router_.select_bias = bias->floats.data();
  }

  void read_matrices(const NodeView& node, const BuildContext& context) {
    const std::string order = node.word_or("order", "split");
    if (order != "split" && order != "halves" && order != "pairs")
      node.refuse("order `" + order + "`, split, halves and pairs are known");
    const int64_t experts = router_.experts;
    const Value& down = node.stack(4, experts, width_, 0);
    inner_ = down.dims[2];
    pairs_ = order == "pairs";
    const int64_t height = order == "split" ? inner_ : 2 * inner_;
    const Value& gate = node.stack(2, experts, height, width_);
    if (node.present(3) != (order == "split")) node.invalid("wants `up` with order split, and only then");
    take(gate_, gate, node.plain_rows(6, experts, height));
    take(down_, down, node.plain_rows(8, experts, width_));
    if (order == "split") take(up_, node.stack(3, experts, inner_, width_), node.plain_rows(7, experts, inner_));
    if (order == "halves") halve();
    for (Role* role : {&gate_, &up_, &down_}) {
      if (role == &up_ && pairs_) continue;
      role->kernel = &pick_linear(node, role->shape, context);
      role->prepared = round_up(role->kernel->prepared_bytes(role->shape.in));
    }
    const bool known = gate_.prepared && !pairs_ && up_.kernel->prepare == gate_.kernel->prepare;
    preparations_[0] = gate_.prepared ? &gate_ : nullptr;
    preparations_[1] = !pairs_ && up_.prepared && !known ? &up_ : nullptr;
    up_prepared_as_ = known ? 0 : 1;
    multiple_ = pairs_ ? half_multiple(gate_.kernel->out_multiple)
                       : common_multiple(gate_.kernel->out_multiple, up_.kernel->out_multiple);
    for (const Value* v : {&gate, &down, node.present(3) ? &node.stack(3, experts, 0, 0) : &down})
      transposed_ = transposed_ || v->weight.transposed;
  }

  static void take(Role& role, const Value& stack, const Value* bias) {
    role.experts = stack.weight.experts;
    role.shape = stack.weight.view;
    if (bias && bias->kind == DT_CONST) role.bias = bias->floats;
    if (bias && bias->kind == DT_WEIGHT && bias->weight.view.codes) role.bias = plain_values(bias->weight.view);
  }

  // gate holds both: its first rows stay, up gets the others.
  void halve() {
    up_.shape = gate_.shape = rows_of(gate_.shape, 0, inner_);
    for (WeightView& view : gate_.experts) {
      up_.experts.push_back(rows_of(view, inner_, inner_));
      view = rows_of(view, 0, inner_);
    }
    std::vector<float> both;
    both.swap(gate_.bias);
    for (auto at = both.begin(); at != both.end(); at += 2 * inner_) {
      gate_.bias.insert(gate_.bias.end(), at, at + inner_);
      up_.bias.insert(up_.bias.end(), at + inner_, at + 2 * inner_);
    }
  }

  static int64_t common_multiple(int64_t a, int64_t b) {
    int64_t common = a;
    while (common % b) common += a;
    return common;
  }
  static int64_t half_multiple(int64_t m) { return m % 2 ? m : m / 2; }  // 2 * result is a multiple of m

  void name_it() {
    implementation = std::string("moe_") + gate_.kernel->name;
    for (const Role* role : {&up_, &down_})
      if (role->kernel && implementation.find(role->kernel->name) == std::string::npos)
        implementation += std::string("+") + role->kernel->name;
    implementation += "+" + unit_.implementation;
    if (transposed_) implementation += "+transposed";
  }

  // ---- scratch --------------------------------------------------------------------------------------------------

  Layout layout(int64_t n) const {
    Layout l{};
    const int64_t pairs = n * router_.top_k, active = std::min(router_.experts, pairs);
    l.small = n <= kReplicate;
    l.wave_padded = l.small ? active * kPrepareRows : std::max(kWaveRows, padded(n));
    l.wave_rows = std::min(pairs, l.wave_padded);
    size_t own = 0, shared = 0;
    const auto place = [](size_t& end, size_t bytes) {
      const size_t at = end;
      end += round_up(bytes);
      return at;
    };
    const auto floats = [](int64_t rows, int64_t width) { return static_cast<size_t>(rows * width) * 4; };
    l.inner = place(shared, floats(l.wave_rows, inner_));
    if (!l.small) l.gathered = place(shared, floats(l.wave_rows, width_));
    size_t& common = l.small ? own : shared;
    // of a small step: the first row, the second, both
    const int64_t of_x = l.small ? 3 * kPrepareRows : l.wave_padded;
    for (int i = 0; i < 2; ++i)
      if (preparations_[i]) l.prepared[i] = place(common, preparations_[i]->prepared * static_cast<size_t>(of_x));
    l.prepared_inner = place(common, down_.prepared * static_cast<size_t>(l.wave_padded));
    l.chosen = place(common, static_cast<size_t>(pairs) * sizeof(int32_t));
    l.weights = place(common, static_cast<size_t>(pairs) * sizeof(float));
    l.starts = place(own, static_cast<size_t>(router_.experts + 1) * sizeof(int32_t));
    l.order = place(own, static_cast<size_t>(pairs) * sizeof(int32_t));
    l.route = place(own, route_scratch(router_));
    // gate of pairs has two floats per output, up has one
    const int64_t rows = std::min(n, l.wave_rows);
    l.chunk = place(own, 3 * floats(1, std::max(kChunkFloats, rows * least_chunk(std::max(multiple_, down_.kernel->out_multiple)))));
    size_t kernel = 0;
    for (const Role* role : {&gate_, &up_, &down_})
      if (role->kernel && role->kernel->scratch_bytes)
        kernel = std::max(kernel, role->kernel->scratch_bytes(role->shape, rows));
    l.kernel = place(own, kernel);
    l.shared_bytes = shared;
    l.own_bytes = own;
    return l;
  }

  // Outputs of one kernel call for so many rows.
  static int64_t least_chunk(int64_t multiple) { return (64 + multiple - 1) / multiple * multiple; }
  static int64_t chunk(int64_t rows, int64_t multiple) {
    return std::max(least_chunk(multiple), kChunkFloats / rows / multiple * multiple);
  }

  // ---- a step ---------------------------------------------------------------------------------------------------

  void route_all(const Wave& w) const {
    const Range share = w.l.small ? Range{0, w.n} : w.team.share(w.n);
    const int64_t k = router_.top_k;
    for (int64_t t = share.begin; t < share.end; ++t)
      route(router_, w.run.floats(logits_) + t * router_.experts, w.at<int32_t>(w.l.chosen) + t * k,
            w.at<float>(w.l.weights) + t * k, w.mine<uint8_t>(w.l.route));
    if (!w.l.small) w.team.barrier();
  }

  // The next experts whose segments fit; false at the end.
  bool next_wave(Wave& w) const {
    const int32_t* starts = w.mine<int32_t>(w.l.starts);
    w.begin = w.end;
    int64_t rows = 0, in_groups = 0;
    for (; w.end < router_.experts; ++w.end) {
      const int64_t more = starts[w.end + 1] - starts[w.end];
      if (rows + more > w.l.wave_rows || in_groups + padded(more) > w.l.wave_padded) break;
      rows += more;
      in_groups += padded(more);
    }
    return rows > 0;
  }

  template <class Do>
  void each_segment(const Wave& w, Do act) const {
    const int32_t* starts = w.mine<int32_t>(w.l.starts);
    Segment s{0, 0, 0, 0, 0};
    for (s.expert = w.begin; s.expert < w.end; ++s.expert) {
      s.pairs = starts[s.expert];
      s.rows = starts[s.expert + 1] - s.pairs;
      if (s.rows == 0) continue;
      act(s);
      s.row += s.rows;
      s.padded_row += padded(s.rows);
    }
  }

  // This thread's groups of kPrepareRows rows: act(segment, first row, end) with rows counted in the segment.
  template <class Do>
  void each_group(const Wave& w, Do act) const {
    int64_t groups = 0;
    each_segment(w, [&](const Segment& s) { groups += padded(s.rows) / kPrepareRows; });
    const Range share = w.team.share(groups);
    each_segment(w, [&](const Segment& s) {
      const int64_t first = s.padded_row / kPrepareRows, count = padded(s.rows) / kPrepareRows;
      const int64_t begin = std::max(share.begin, first) - first, end = std::min(share.end, first + count) - first;
      if (begin < end) act(s, begin * kPrepareRows, std::min(end * kPrepareRows, s.rows));
    });
  }

  int64_t token_of(const Wave& w, int64_t pair) const { return w.mine<int32_t>(w.l.order)[pair] / router_.top_k; }

  // Which preparation of a small step holds the segment: row 0, row 1, both.
  int64_t slot_of(const Wave& w, const Segment& s) const { return s.rows == 2 ? 2 : token_of(w, s.pairs); }

  void prepare_x(const Wave& w) const {
    const float* x = w.run.floats(x_);
    if (w.l.small) {
      for (int i = 0; i < 2; ++i) {
        const Role* role = preparations_[i];
        for (int64_t slot = 0; role && slot < (w.n == 2 ? 3 : 1); ++slot)
          role->kernel->prepare(x + slot % 2 * width_, width_, width_, 0, slot == 2 ? 2 : 1,
                                w.at<uint8_t>(w.l.prepared[i]) + role->prepared * static_cast<size_t>(slot * kPrepareRows));
      }
      return;
    }
    each_group(w, [&](const Segment& s, int64_t begin, int64_t end) {
      float* rows = w.gathered() + s.row * width_;
      for (int64_t r = begin; r < end; ++r)
        std::memcpy(rows + r * width_, x + token_of(w, s.pairs + r) * width_, static_cast<size_t>(width_) * 4);
      for (int i = 0; i < 2; ++i)
        if (const Role* role = preparations_[i])
          role->kernel->prepare(rows, width_, width_, begin, end,
                                w.at<uint8_t>(w.l.prepared[i]) + role->prepared * static_cast<size_t>(s.padded_row));
    });
    w.team.barrier();
  }

  // The thread's part of `all` units of work, of which a segment's cost `each` and come after `before`.
  static Range cut(int64_t low, int64_t high, int64_t before, int64_t each, int64_t units) {
    const auto unit = [&](int64_t at) { return std::clamp<int64_t>((at - before + each - 1) / each, 0, units); };
    return {low > before ? unit(low) : 0, high > before ? unit(high) : 0};
  }

  void gate_and_up(const Wave& w) const {
    const int64_t units = (inner_ + multiple_ - 1) / multiple_;
    int64_t all = 0, before = 0;
    each_segment(w, [&](const Segment& s) { all += units * (kRowCost + s.rows); });
    const int64_t low = all * w.team.index() / w.team.size(), high = all * (w.team.index() + 1) / w.team.size();
    each_segment(w, [&](const Segment& s) {
      const Range mine = cut(low, high, before, kRowCost + s.rows, units);
      before += units * (kRowCost + s.rows);
      const int64_t width = chunk(s.rows, multiple_), end = std::min(mine.end * multiple_, inner_);
      for (int64_t o = mine.begin * multiple_; o < end; o += width) inner_of(w, s, {o, std::min(o + width, end)});
    });
  }

  // Columns `part` of inner for one segment.
  void inner_of(const Wave& w, const Segment& s, Range part) const {
    const int64_t n = part.end - part.begin;
    const float* x = w.l.small ? w.run.floats(x_) + token_of(w, s.pairs) * width_ : w.gathered() + s.row * width_;
    const auto prepared = [&](const Role& role, int i) -> const void* {
      if (!role.prepared) return nullptr;
      const int64_t row = w.l.small ? slot_of(w, s) * kPrepareRows : s.padded_row;
      return w.at<uint8_t>(w.l.prepared[i]) + role.prepared * static_cast<size_t>(row);
    };
    float *gates = w.inner() + s.row * inner_ + part.begin, *ups = w.mine<float>(w.l.chunk);
    void* scratch = w.mine<uint8_t>(w.l.kernel);
    if (pairs_) {
      float* both = ups + s.rows * n;
      multiply(gate_, s, x, prepared(gate_, 0), {2 * part.begin, 2 * part.end}, both, 2 * n, scratch);
      split_pairs(both, 2 * n, s.rows, n, gates, inner_, ups, n);
    } else {
      multiply(gate_, s, x, prepared(gate_, 0), part, gates, inner_, scratch);
      multiply(up_, s, x, prepared(up_, up_prepared_as_), part, ups, n, scratch);
    }
    unit_.kernel({gates, inner_, ups, n, gates, inner_, s.rows, n, unit_.limit, unit_.alpha});
  }

  // Outputs `part` of one expert for a segment's rows; y is where the first of them goes.
  static void multiply(const Role& role, const Segment& s, const float* x, const void* prepared, Range part, float* y,
                       int64_t y_stride, void* scratch) {
    WeightView view = role.experts[static_cast<size_t>(s.expert)];
    view.out = part.end;
    const Epilogue epilogue{role.bias_of(s.expert), nullptr, 0};
    role.kernel->run(view, x, view.in, prepared, s.rows, part.begin, part.end, y - part.begin, y_stride, epilogue, scratch);
  }

  void prepare_inner(const Wave& w) const {
    if (!down_.prepared) return;
    uint8_t* to = w.at<uint8_t>(w.l.prepared_inner);
    const auto prepare = [&](const Segment& s, int64_t begin, int64_t end) {
      down_.kernel->prepare(w.inner() + s.row * inner_, inner_, inner_, begin, end,
                            to + down_.prepared * static_cast<size_t>(s.padded_row));
    };
    if (w.l.small) return each_segment(w, [&](const Segment& s) { prepare(s, 0, s.rows); });
    each_group(w, prepare);
    w.team.barrier();
  }

  void down_and_sum(const Wave& w) const {
    const int64_t multiple = down_.kernel->out_multiple;
    const Range share = w.team.share(width_, multiple);
    float *y = w.run.result(y_), *out = w.mine<float>(w.l.chunk);
    if (w.begin == 0)
      for (int64_t t = 0; t < w.n; ++t)
        std::fill(y + t * width_ + share.begin, y + t * width_ + share.end, 0.0f);
    each_segment(w, [&](const Segment& s) {
      const int64_t width = chunk(s.rows, multiple);
      const void* prepared = w.at<uint8_t>(w.l.prepared_inner) + down_.prepared * static_cast<size_t>(s.padded_row);
      for (int64_t o = share.begin; o < share.end; o += width) {
        const Range part{o, std::min(o + width, share.end)};
        const int64_t n = part.end - part.begin;
        multiply(down_, s, w.inner() + s.row * inner_, down_.prepared ? prepared : nullptr, part, out, n,
                 w.mine<uint8_t>(w.l.kernel));
        for (int64_t r = 0; r < s.rows; ++r) {
          const int64_t pair = w.mine<int32_t>(w.l.order)[s.pairs + r];
          add_weighted(y + pair / router_.top_k * width_ + o, w.at<float>(w.l.weights)[pair], out + r * n, n);
        }
      }
    });
  }

  int x_, logits_, y_;
  Lead lead_;
  int64_t width_, inner_ = 0, multiple_ = 1;  // of outputs of gate and up together
  Router router_;
  Role gate_, up_, down_;
  bool pairs_ = false, transposed_ = false;
  const Role* preparations_[2] = {nullptr, nullptr};  // of x; up has its own where its kernel wants another
  int up_prepared_as_ = 0;
  GluUnit unit_;
};

}  // namespace

std::unique_ptr<Task> make_moe(const NodeView& node, const BuildContext& context) {
  node.expect_counts(5, 9, 1);
  return std::make_unique<Moe>(node, context);
}

}  // namespace datong
