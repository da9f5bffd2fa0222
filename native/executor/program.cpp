#include "executor/program.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "core/error.h"

namespace datong {

Program::Program(std::shared_ptr<Device> device, const dt_part& part, const ProgramOptions& options)
    : device_(std::move(device)), options_(options), cache_type_(options.cache_type) {
  if (part.struct_size < offsetof(dt_part, arena_rows) + sizeof part.arena_rows)
    throw Error(DT_INVALID, text("[cpu] dt_part has struct_size %zu, version 1.0 has %zu", part.struct_size, sizeof part));
  constexpr int32_t kMost = 1 << 22;
  for (int32_t count : {part.value_count, part.node_count, part.input_count, part.output_count, part.cache_count})
    if (count < 0 || count > kMost) throw Error(DT_INVALID, text("[cpu] a part has %d of something", count));
  if ((part.value_count && !part.values) || (part.node_count && !part.nodes) || (part.input_count && !part.inputs) ||
      (part.output_count && !part.outputs) || (part.cache_count && !part.caches))
    throw Error(DT_INVALID, "[cpu] a part counts things that it does not have");
  read_values(part);
  read_inputs(part);
  read_caches(part);
  place_temps(part);
  build_tasks(part);
  const Steps steps{values_, tasks_, reads_, writes_, outputs_, device_->pool.size()};
  for (const StepSize size : {StepSize::small, StepSize::medium, StepSize::large})
    schedules_[static_cast<size_t>(size)] = plan_schedule(steps, size, unit_bytes_[static_cast<int>(Lead::tokens)]);
  at_.assign(values_.size(), nullptr);
  own_.resize(static_cast<size_t>(device_->pool.size()));
  own_at_.assign(own_.size(), nullptr);
  private_.resize(own_.size());
  private_at_.assign(own_.size(), at_);
  times_.resize(tasks_.size());
  job_ = [this](Team& team) { timed_ ? run_timed(team) : run_tasks(team); };
  if (options_.max_tokens) reserve(options_.max_tokens, std::max<int64_t>(1, options_.max_rows));
}

void Program::read_values(const dt_part& part) {
  bool all_f32 = true, rounded = false;  // rounded: activations are, to 8 bits, in some matrix
  std::vector<std::pair<const uint8_t*, int64_t>> seen;  // tied weights are mapped once
  for (int32_t i = 0; i < part.value_count; ++i) {
    values_.push_back(read_value(item(part.values, i), &files_));
    const Value& v = values_.back();
    private_bytes_ += static_cast<int64_t>(v.floats.size() * 4 + v.ints.size() * 8);
    if (v.kind != DT_WEIGHT) continue;
    private_bytes_ += v.weight.own_bytes;
    all_f32 = all_f32 && v.weight.view.codes_dtype == DT_F32;
    rounded = rounded || (v.weight.view.block > 0 && v.weight.view.tile == 0 && options_.activations == Activations::i8);
    const std::pair<const uint8_t*, int64_t> key{v.weight.view.codes, v.weight.bytes};
    if (std::find(seen.begin(), seen.end(), key) != seen.end()) continue;
    seen.push_back(key);
    mapped_bytes_ += v.weight.bytes;
  }
  if (!options_.cache_type_given) cache_type_ = all_f32 ? CacheType::f32 : rounded && device_->features.avx512_bf16 ? CacheType::bf16 : CacheType::f16;
}

void Program::read_inputs(const dt_part& part) {
  auto index = [&](int32_t i) {
    if (i < 0 || i >= part.value_count) throw Error(DT_INVALID, text("[cpu] the part's inputs or outputs name value %d", i));
    return i;
  };
  for (int32_t i = 0; i < part.input_count; ++i) {
    const int value = index(part.inputs[i]);
    const Value& v = values_[static_cast<size_t>(value)];
    if (v.kind != DT_INPUT) throw Error(DT_INVALID, text("[cpu] part input `%.120s` is of another kind", v.name.c_str()));
    Source source = Source::host;
    if (v.name == "ids") source = Source::ids;
    if (v.name == "positions") source = Source::positions;
    if (v.name == "rows") source = Source::rows;
    if (source != Source::host && (v.dtype != DT_I64 || v.width != 1 ||
                                   v.lead != (source == Source::rows ? Lead::rows : Lead::tokens)))
      throw Error(DT_INVALID, text("[cpu] part input `%s` wants i64 [%s]", v.name.c_str(), source == Source::rows ? "R" : "T"));
    inputs_.push_back({value, source});
  }
  for (int32_t i = 0; i < part.output_count; ++i) {
    const int value = index(part.outputs[i]);
    const Value& v = values_[static_cast<size_t>(value)];
    if (v.kind != DT_TEMP) throw Error(DT_INVALID, text("[cpu] part output `%.120s` is computed by nobody", v.name.c_str()));
    outputs_.push_back(value);
    std::vector<int64_t> dims{0};
    dims.insert(dims.end(), v.dims.begin(), v.dims.end());
    output_dims_.push_back(dims);
  }
}

void Program::read_caches(const dt_part& part) {
  for (int32_t i = 0; i < part.cache_count; ++i) {
    const dt_cache_spec& c = item(part.caches, i);
    constexpr int32_t kMost = 1 << 16;
    const int32_t kind = c.struct_size >= offsetof(dt_cache_spec, kind) + sizeof c.kind ? c.kind : DT_CACHE_TOKENS;
    if (kind != DT_CACHE_TOKENS && kind != DT_CACHE_LATENT && kind != DT_CACHE_INDEX && kind != DT_CACHE_RECURRENT && kind != DT_CACHE_CONV)
      throw Error(DT_UNSUPPORTED, text("[cpu] the cache of layer %d is of kind %d, which this backend does not keep", c.layer, kind));
    // a convolution over one token keeps nothing; an index has keys alone
    const int32_t least = kind == DT_CACHE_CONV || kind == DT_CACHE_INDEX ? 0 : 1;
    if (kind == DT_CACHE_INDEX && (c.value_dim || c.window))
      throw Error(DT_INVALID, text("[cpu] the index of layer %d has values or a window", c.layer));
    if (c.kv_heads < 1 || c.key_dim < 1 || c.value_dim < least || c.kv_heads > kMost || c.key_dim > kMost << 4 ||
        c.value_dim > kMost || c.window < 0)
      throw Error(DT_INVALID, text("[cpu] the cache of layer %d has a size that is not positive or too large", c.layer));
    for (const CacheSpec& other : caches_)
      if (other.layer == c.layer && static_cast<int32_t>(other.kind) == kind)
        throw Error(DT_INVALID, text("[cpu] layer %d has two caches of one kind", c.layer));
    caches_.push_back({c.layer, c.kv_heads, c.key_dim, c.value_dim, c.window, static_cast<CacheKind>(kind)});
  }
  for (const CacheSpec& c : caches_) {
    has_states_ = has_states_ || c.is_state();
    has_full_ = has_full_ || (!c.is_state() && !c.is_window());
    if (c.is_window()) longest_window_ = std::max(longest_window_, c.window);
  }
}

// Planned temps must lie in their arena; the others get their own place behind it.
void Program::place_temps(const dt_part& part) {
  int64_t end[3] = {0, part.arena_tokens, part.arena_rows};
  if (end[1] < 0 || end[2] < 0) throw Error(DT_INVALID, "[cpu] an arena has a negative size");
  constexpr int64_t kMost = int64_t{1} << 36;  // bytes per token
  for (Value& v : values_) {
    if (v.kind != DT_TEMP) continue;
    if (v.arena == Lead::none) {
      v.arena = v.lead;
      int64_t& at = end[static_cast<int>(v.lead)];
      v.offset = (at + 63) / 64 * 64;
      v.size = v.row_bytes();
      at = v.offset + v.size;
      if (at > kMost) throw Error(DT_INVALID, "[cpu] the temps of a part are too large");
    } else if (v.size > kMost || v.offset > (v.arena == Lead::tokens ? part.arena_tokens : part.arena_rows) - v.size) {
      throw Error(DT_INVALID, text("[cpu] temp `%.120s` lies outside its arena", v.name.c_str()));
    }
  }
  for (int lead : {1, 2}) unit_bytes_[lead] = end[lead];
}

void Program::check_defined(const NodeView& node, std::vector<bool>& defined) const {
  for (int i = 0; i < node.input_count(); ++i) {
    const int index = node.input_index(i);
    if (index >= 0 && !defined[static_cast<size_t>(index)])
      node.invalid(text("reads `%.120s`, which nothing before it makes", values_[static_cast<size_t>(index)].name.c_str()));
  }
  for (int i = 0; i < node.output_count(); ++i) {
    const auto index = static_cast<size_t>(node.output_index(i));
    if (values_[index].kind != DT_TEMP || defined[index])
      node.invalid(text("writes `%.120s`, which is no temp or is made twice", values_[index].name.c_str()));
    defined[index] = true;
  }
}

void Program::build_tasks(const dt_part& part) {
  std::vector<bool> defined(values_.size());
  for (size_t i = 0; i < values_.size(); ++i) defined[i] = values_[i].kind == DT_WEIGHT || values_[i].kind == DT_CONST;
  for (const Input& input : inputs_) defined[static_cast<size_t>(input.value)] = true;
  const BuildContext context{device_->features, &caches_, options_.activations, cache_type_,
                             options_.pack_weights ? &packed_ : nullptr};
  for (int32_t i = 0; i < part.node_count; ++i) {
    const NodeView node(item(part.nodes, i), values_);
    check_defined(node, defined);
    tasks_.push_back(make_task(node, context));
    private_bytes_ += tasks_.back()->private_bytes();
    std::vector<int> reads, writes;
    for (int k = 0; k < node.input_count(); ++k)
      if (node.present(k) && values_[static_cast<size_t>(node.input_index(k))].kind == DT_TEMP)
        reads.push_back(node.input_index(k));
    for (int k = 0; k < node.output_count(); ++k) writes.push_back(node.output_index(k));
    reads_.push_back(reads);
    writes_.push_back(writes);
  }
  packed_.make(options_.pack_directory, device_->pool);
  private_bytes_ += packed_.private_bytes();
  mapped_bytes_ += packed_.mapped_bytes() - packed_.original_bytes();
  for (int output : outputs_)
    if (!defined[static_cast<size_t>(output)])
      throw Error(DT_INVALID, text("[cpu] part output `%.120s` is made by no node", values_[static_cast<size_t>(output)].name.c_str()));
}

std::unique_ptr<Cache> Program::create_cache(const CacheSize& size) const {
  return std::make_unique<Cache>(caches_, cache_type_, size);
}

int64_t Program::arena_bytes() const {
  size_t bytes = arenas_[1].size + arenas_[2].size + shared_.size;
  for (const Block& b : own_) bytes += b.size;
  for (const Block& b : private_) bytes += b.size;
  return static_cast<int64_t>(bytes);
}

void Program::Free::operator()(uint8_t* p) const { std::free(p); }

Program::Memory Program::allocate(size_t bytes) {
  auto* p = static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  if (!p) throw Error(DT_OUT_OF_MEMORY, text("[cpu] no memory for %zu bytes of activations", bytes));
  return Memory(p);
}

void Program::Block::grow(size_t bytes) {
  if (bytes <= size) return;
  memory.reset();
  size = 0;
  memory = allocate(bytes);
  size = bytes;
}

// Room and addresses for a step of that size. Temps are packed for the step at hand, so that a small step stays in cache.
void Program::reserve(int64_t tokens, int64_t rows) {
  if (tokens == placed_tokens_ && rows == placed_rows_) return;
  placed_tokens_ = -1;
  run_.tokens = tokens;
  run_.rows = rows;
  const Schedule& plan = schedule();
  const int64_t counts[3] = {0, tokens, rows}, bytes[3] = {0, plan.token_bytes, unit_bytes_[2]};
  for (int lead : {1, 2}) arenas_[lead].grow(static_cast<size_t>(bytes[lead] * counts[lead] + 64));
  reserve_scratch(plan, tokens, rows);
  for (size_t i = 0; i < values_.size(); ++i) {
    const Value& v = values_[i];
    if (v.kind != DT_TEMP) continue;
    const int lead = static_cast<int>(v.arena);
    at_[i] = plan.is_private[i] ? nullptr : arenas_[lead].memory.get() + plan.offset[i] * counts[lead];
  }
  if (size() != StepSize::medium) place_private(plan, tokens, rows);
  placed_tokens_ = tokens;
  placed_rows_ = rows;
}

void Program::reserve_scratch(const Schedule& plan, int64_t tokens, int64_t rows) {
  const int threads = device_->pool.size();
  Scratch most;
  size_t alone = 0;  // shared scratch of a task that a thread runs for its own tokens
  for (size_t i = 0; i < tasks_.size(); ++i) {
    const int64_t count = plan.by_tokens[i] ? own_tokens(tokens, threads, 0).end : tokens;  // the first thread has the most
    const Scratch s = tasks_[i]->scratch(count, rows, plan.by_tokens[i] ? 1 : threads);
    size_t& shared = plan.by_tokens[i] ? alone : most.shared;
    shared = std::max(shared, s.shared);
    most.own = std::max(most.own, s.own);
  }
  shared_.grow(most.shared + 64);
  own_room_ = (most.own + 63) / 64 * 64;
  for (size_t i = 0; i < own_.size(); ++i) {
    own_[i].grow(own_room_ + alone + 64);
    own_at_[i] = own_[i].memory.get();
  }
}

// Each thread's own temps, and in large steps where its own tokens begin in the others.
void Program::place_private(const Schedule& plan, int64_t tokens, int64_t rows) {
  const int threads = device_->pool.size();
  if (size() == StepSize::large) tokens = own_tokens(tokens, threads, 0).end, rows = 0;
  const int64_t start[3] = {0, 0, (unit_bytes_[1] * tokens + 63) / 64 * 64}, counts[3] = {0, tokens, rows};
  for (size_t t = 0; t < private_.size(); ++t) {
    private_[t].grow(static_cast<size_t>(start[2] + unit_bytes_[2] * rows + 64));
    for (size_t i = 0; i < values_.size(); ++i) {
      const int lead = static_cast<int>(values_[i].arena);
      if (plan.is_private[i])
        private_at_[t][i] = private_[t].memory.get() + start[lead] + values_[i].offset * counts[lead];
      else
        point_to_own(t, i);
    }
  }
}

// Where the thread's own tokens of a value that all share begin; of other sizes of step and other values, where it begins.
void Program::point_to_own(size_t thread, size_t value) {
  const Value& v = values_[value];
  void*& to = private_at_[thread][value] = at_[value];
  if (to && v.lead == Lead::tokens && size() == StepSize::large)
    to = static_cast<uint8_t*>(to) + own_tokens(run_.tokens, device_->pool.size(), static_cast<int>(thread)).begin * v.row_bytes();
}

void Program::bind_inputs(const dt_step& step, const dt_tensor* inputs, int32_t input_count) {
  int32_t next = 0;
  for (const Input& input : inputs_) {
    const Value& v = values_[static_cast<size_t>(input.value)];
    const auto index = static_cast<size_t>(input.value);
    void*& at = at_[index];
    if (input.source == Source::ids) at = const_cast<int64_t*>(step.ids);
    if (input.source == Source::positions) at = const_cast<int64_t*>(step.positions);
    if (input.source == Source::rows) at = const_cast<int64_t*>(step.row_indices);
    if (input.source == Source::host) at = host_input(v, inputs, next++, input_count);
    if (size() != StepSize::medium)
      for (size_t t = 0; t < private_at_.size(); ++t) point_to_own(t, index);
  }
  if (next != input_count) throw Error(DT_INVALID, text("[run] %d inputs came, the part has %d", input_count, next));
}

void* Program::host_input(const Value& v, const dt_tensor* inputs, int32_t i, int32_t count) const {
  if (i >= count || !inputs) throw Error(DT_INVALID, text("[run] input `%.120s` did not come", v.name.c_str()));
  const dt_tensor& t = item(inputs, i);
  int64_t elements = 1;
  for (int32_t d = 0; d < t.rank && t.dims; ++d) elements *= t.dims[d];
  if (t.dtype != v.dtype || elements != run_.count(v.lead) * v.width || (elements && !t.data))
    throw Error(DT_INVALID, text("[run] input `%.120s` has another dtype or size than [%lld, %lld]", v.name.c_str(),
                                 static_cast<long long>(run_.count(v.lead)), static_cast<long long>(v.width)));
  return t.data;
}

void Program::run(const Cache* cache, const dt_step& step, const dt_tensor* inputs, int32_t input_count,
                  dt_tensor* outputs, int32_t output_count) {
  check_step(step, cache);
  if (output_count != static_cast<int32_t>(outputs_.size()))
    throw Error(DT_INVALID, text("[run] %d outputs were asked for, the part has %zu", output_count, outputs_.size()));
  run_.tokens = step.tokens;
  run_.rows = step.rows;
  run_.sequences = step.sequences;
  run_.query_starts = step.query_starts;
  run_.context_lens = step.context_lens;
  run_.block_tables = step.block_tables;
  run_.table_width = step.table_width;
  const bool extended = covers_states(step);
  run_.window_tables = extended ? step.window_tables : nullptr;
  run_.window_width = extended ? step.window_width : 0;
  run_.state_slots = extended ? step.state_slots : nullptr;
  run_.cache = cache;
  reserve(step.tokens, step.rows);
  bind_inputs(step, inputs, input_count);
  run_.at = at_.data();
  run_.shared = shared_.memory.get();
  run_.own = own_at_.data();
  for (const auto& task : tasks_) task->check(run_);
  device_->pool.run(job_);
  for (size_t i = 0; i < outputs_.size(); ++i) {
    const Value& v = values_[static_cast<size_t>(outputs_[i])];
    output_dims_[i][0] = run_.count(v.lead);
    outputs[i] = {sizeof(dt_tensor), v.dtype, static_cast<int32_t>(output_dims_[i].size()), output_dims_[i].data(),
                  at_[static_cast<size_t>(outputs_[i])]};
  }
}

Program::Side Program::side_of(const Team& team) const {
  const auto thread = static_cast<size_t>(team.index());
  Side side{run_, run_};
  if (size() == StepSize::small) side.all.at = private_at_[thread].data();
  if (size() != StepSize::large) return side;
  const Range mine = own_tokens(run_.tokens, team.size(), team.index());
  side.own.tokens = mine.end - mine.begin;
  side.own.at = private_at_[thread].data();
  side.own.own = &own_at_[thread];
  side.own.shared = own_at_[thread] + own_room_;
  return side;
}

void Program::run_task(size_t i, const Schedule& plan, const Side& side, Team& team) const {
  Team alone(0, 1, nullptr);
  const bool by_tokens = plan.by_tokens[i];
  tasks_[i]->run(by_tokens ? side.own : side.all, by_tokens || plan.replicated[i] ? alone : team);
}

void Program::run_tasks(Team& team) const {
  const Schedule& plan = schedule();
  const Side side = side_of(team);
  for (size_t i = 0; i < tasks_.size(); ++i) {
    if (plan.barrier_before[i]) team.barrier();
    run_task(i, plan, side, team);
  }
}

void Program::profile(bool on) {
  timed_ = on;
  if (on) times_.assign(tasks_.size(), {});
}

// As run_tasks, with all threads meeting after each task, so that its time is that of the slowest.
void Program::run_timed(Team& team) {
  const Schedule& plan = schedule();
  const Side side = side_of(team);
  const auto now = [] {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  team.barrier();
  int64_t begin = now();
  for (size_t i = 0; i < tasks_.size(); ++i) {
    run_task(i, plan, side, team);
    team.barrier();
    if (team.index() != 0) continue;
    const int64_t end = now();
    Time& t = times_[i];
    ++t.runs;
    t.total += end - begin;
    t.last_begin = begin;
    t.last = end - begin;
    begin = end;
  }
}

}  // namespace datong
