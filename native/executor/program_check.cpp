// What a step must be before anything runs: sizes, sequences in order, blocks and slots that exist.
#include <algorithm>

#include "core/error.h"
#include "executor/program.h"

namespace datong {
namespace {

// A step of more tokens would overflow no sum below; no machine has memory for it.
constexpr int64_t kMostTokens = int64_t{1} << 24;

}  // namespace

bool covers_states(const dt_step& step) {
  return step.struct_size >= offsetof(dt_step, state_slots) + sizeof step.state_slots;
}

void Program::check_step(const dt_step& step, const Cache* cache) {
  if (step.struct_size < offsetof(dt_step, row_indices) + sizeof step.row_indices)
    throw Error(DT_INVALID, text("[run] dt_step has struct_size %zu, version 1.0 has %zu", step.struct_size, sizeof step));
  auto number = [](int64_t n) { return static_cast<long long>(n); };
  if (step.tokens < 0 || step.tokens > kMostTokens || step.rows < 0 || step.rows > kMostTokens || step.sequences < 0 ||
      step.sequences > kMostTokens)
    throw Error(DT_INVALID, text("[run] a step has %lld tokens, %lld sequences and %lld rows", number(step.tokens),
                                 number(step.sequences), number(step.rows)));
  if (options_.max_tokens && step.tokens > options_.max_tokens)
    throw Error(DT_INVALID, text("[run] a step of %lld tokens came, max_tokens is %lld", number(step.tokens),
                                 number(options_.max_tokens)));
  if (options_.max_rows && step.rows > options_.max_rows)
    throw Error(DT_INVALID, text("[run] a step with %lld rows came, max_rows is %lld", number(step.rows),
                                 number(options_.max_rows)));
  if ((step.tokens && (!step.ids || !step.positions)) || (step.rows && !step.row_indices))
    throw Error(DT_INVALID, "[run] the step lacks ids, positions or row_indices");
  if (caches_.empty()) return;
  if (!cache) throw Error(DT_INVALID, "[run] the part has attention, the step came without a cache");
  if (cache->specs() != caches_ || cache->type() != cache_type_)
    throw Error(DT_INVALID, "[run] the cache belongs to another program");
  if (step.tokens && step.sequences == 0) throw Error(DT_INVALID, "[run] the step has tokens and no sequences");
  if (step.sequences == 0) return;
  check_sequences(step);
  const bool apart = cache->size().window_blocks > 0 && longest_window_ > 0, extended = covers_states(step);
  if (has_full_ || (longest_window_ && !apart))
    check_tables(step, step.block_tables, step.table_width, cache->size().blocks, has_full_ ? 0 : longest_window_);
  if (apart) {
    if (!extended || !step.window_tables) throw Error(DT_INVALID, "[run] the step lacks window_tables");
    check_tables(step, step.window_tables, step.window_width, cache->size().window_blocks, longest_window_);
  }
  if (has_states_) {
    if (!extended || !step.state_slots) throw Error(DT_INVALID, "[run] the step lacks state_slots");
    check_slots(step, *cache);
  }
}

// Every sequence has a slot of its own.
void Program::check_slots(const dt_step& step, const Cache& cache) {
  const int64_t count = cache.size().states;
  if (static_cast<int64_t>(slot_seen_.size()) < count) slot_seen_.resize(static_cast<size_t>(count), 0);
  if (++steps_ == 0) {
    std::fill(slot_seen_.begin(), slot_seen_.end(), 0);
    steps_ = 1;
  }
  for (int64_t s = 0; s < step.sequences; ++s) {
    const int32_t slot = step.state_slots[s];
    if (slot < 0 || slot >= count)
      throw Error(DT_INVALID, text("[run] the state slot of sequence %lld is %d, the cache has slots 0 .. %lld",
                                   static_cast<long long>(s), slot, static_cast<long long>(count - 1)));
    if (slot_seen_[static_cast<size_t>(slot)] == steps_)
      throw Error(DT_INVALID, text("[run] state slot %d belongs to two sequences", slot));
    slot_seen_[static_cast<size_t>(slot)] = steps_;
  }
}

void Program::check_sequences(const dt_step& step) const {
  auto number = [](int64_t n) { return static_cast<long long>(n); };
  if (!step.query_starts || !step.context_lens)
    throw Error(DT_INVALID, "[run] the step lacks query_starts or context_lens");
  if (step.query_starts[0] != 0 || step.query_starts[step.sequences] != step.tokens)
    throw Error(DT_INVALID, text("[run] query_starts run from 0 to the %lld tokens of the step, %lld to %lld came",
                                 number(step.tokens), number(step.query_starts[0]),
                                 number(step.query_starts[step.sequences])));
  for (int64_t s = 0; s < step.sequences; ++s) {
    const int64_t fresh = step.query_starts[s + 1] - step.query_starts[s], context = step.context_lens[s];
    if (fresh < 0 || step.query_starts[s + 1] > step.tokens)
      throw Error(DT_INVALID, text("[run] query_starts of sequence %lld are not in order", number(s)));
    if (fresh && context < fresh)
      throw Error(DT_INVALID, text("[run] sequence %lld has %lld new tokens and a context of %lld", number(s), number(fresh),
                                   number(context)));
  }
}

// Every block that attention will read or write exists. `window`: the longest reach; 0: all.
void Program::check_tables(const dt_step& step, const int32_t* tables, int64_t width, int64_t blocks, int64_t window) const {
  auto number = [](int64_t n) { return static_cast<long long>(n); };
  if (!tables || width < 0) throw Error(DT_INVALID, "[run] the step lacks block_tables");
  for (int64_t s = 0; s < step.sequences; ++s) {
    const int64_t fresh = step.query_starts[s + 1] - step.query_starts[s], context = step.context_lens[s];
    if (fresh == 0) continue;
    if (context > width * kBlockSize)
      throw Error(DT_INVALID, text("[run] sequence %lld has a context of %lld tokens, its block table covers %lld", number(s),
                                   number(context), number(width * kBlockSize)));
    const int64_t seen = window ? std::max<int64_t>(0, context - fresh - window + 1) : 0;
    const int32_t* table = tables + s * width;
    for (int64_t b = seen / kBlockSize; b * kBlockSize < context; ++b)
      if (table[b] < 0 || table[b] >= blocks)
        throw Error(DT_INVALID, text("[run] block %lld of sequence %lld is %d, the cache has blocks 0 .. %lld", number(b),
                                     number(s), table[b], number(blocks - 1)));
  }
}

}  // namespace datong
