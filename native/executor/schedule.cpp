#include "executor/schedule.h"

#include <algorithm>

#include "kernels/linear/linear.h"

namespace datong {
namespace {

// A temp's place in an arena.
struct Span {
  Lead arena;
  int64_t begin, end;
  bool by_tokens;  // each thread touches the rows of its own tokens alone

  // May two threads meet there?
  bool clashes(const Span& o) const {
    if (by_tokens && o.by_tokens && begin == o.begin && end == o.end) return false;
    return arena == o.arena && begin < o.end && o.begin < end;
  }
};

bool clash(const std::vector<Span>& a, const std::vector<Span>& b) {
  return std::any_of(a.begin(), a.end(), [&](const Span& x) {
    return std::any_of(b.begin(), b.end(), [&](const Span& y) { return x.clashes(y); });
  });
}

bool contains(const std::vector<int>& all, int one) { return std::find(all.begin(), all.end(), one) != all.end(); }

// Every temp that the task reads or writes has a row per token.
bool can_go_by_tokens(const Steps& s, size_t task) {
  const auto has_tokens = [&](int v) { return s.values[static_cast<size_t>(v)].lead == Lead::tokens; };
  return s.tasks[task]->row_wise() && std::all_of(s.reads[task].begin(), s.reads[task].end(), has_tokens) &&
         std::all_of(s.writes[task].begin(), s.writes[task].end(), has_tokens);
}

// Results of replicated tasks. Part outputs are never private.
void plan_small(const Steps& s, Schedule& plan) {
  for (size_t i = 0; i < s.tasks.size(); ++i) {
    const bool is_output = std::any_of(s.writes[i].begin(), s.writes[i].end(), [&](int v) { return contains(s.outputs, v); });
    plan.replicated[i] = s.tasks[i]->replicable() && !is_output;
    for (int v : s.writes[i]) plan.is_private[static_cast<size_t>(v)] = plan.replicated[i];
  }
}

// Temps that only tasks by tokens touch are private. The others get places anew, each as near the start as one of its size
// is free: so layer by layer the same values lie in the same place, and a thread writes where it wrote before. A line that
// another core has written last is dear.
void plan_large(const Steps& s, Schedule& plan) {
  std::vector<size_t> last(s.values.size(), 0);
  for (size_t v = 0; v < s.values.size(); ++v)
    plan.is_private[v] = s.values[v].kind == DT_TEMP && s.values[v].lead == Lead::tokens && !contains(s.outputs, static_cast<int>(v));
  for (size_t i = 0; i < s.tasks.size(); ++i) {
    plan.by_tokens[i] = can_go_by_tokens(s, i);
    for (const auto* touched : {&s.reads[i], &s.writes[i]})
      for (int v : *touched) {
        last[static_cast<size_t>(v)] = i;
        if (!plan.by_tokens[i]) plan.is_private[static_cast<size_t>(v)] = false;
      }
  }
  struct Place {
    int64_t offset, size;
    int value;  // -1: free
  };
  std::vector<Place> places;
  for (size_t i = 0; i < s.tasks.size(); ++i) {
    for (int v : s.writes[i]) {
      const auto index = static_cast<size_t>(v);
      if (s.values[index].lead != Lead::tokens || plan.is_private[index]) continue;
      const int64_t size = s.values[index].size;
      auto place = std::find_if(places.begin(), places.end(), [&](const Place& p) { return p.value < 0 && p.size == size; });
      if (place == places.end()) {
        place = places.insert(place, {plan.token_bytes, size, v});
        plan.token_bytes += (size + 63) / 64 * 64;
      }
      place->value = v;
      plan.offset[index] = place->offset;
    }
    for (Place& p : places)
      if (p.value >= 0 && last[static_cast<size_t>(p.value)] == i && !contains(s.outputs, p.value)) p.value = -1;
  }
}

// A barrier stands before a task that touches bytes which a task since the last barrier wrote, or that writes bytes
// which one read. Shared scratch is such bytes too: a task that uses it waits for the last user. Private temps are not.
void plan_barriers(const Steps& s, StepSize size, Schedule& plan) {
  std::vector<Span> read, written;
  bool shared_used = false;
  for (size_t i = 0; i < s.tasks.size(); ++i) {
    const auto spans = [&](const std::vector<int>& values) {
      std::vector<Span> result;
      for (int v : values) {
        const auto index = static_cast<size_t>(v);
        const int64_t at = plan.offset[index];
        if (!plan.is_private[index]) result.push_back({s.values[index].arena, at, at + s.values[index].size, plan.by_tokens[i]});
      }
      return result;
    };
    const std::vector<Span> reads = spans(s.reads[i]), writes = spans(s.writes[i]);
    const int64_t most = size == StepSize::small ? kReplicate : kReplicate + 1;
    const bool shared = !plan.by_tokens[i] && s.tasks[i]->scratch(most, most, s.threads).shared > 0;
    const bool wait = clash(reads, written) || clash(writes, written) || clash(writes, read) || (shared && shared_used);
    if (wait) {
      read.clear();
      written.clear();
      shared_used = false;
    }
    plan.barrier_before[i] = wait;
    read.insert(read.end(), reads.begin(), reads.end());
    written.insert(written.end(), writes.begin(), writes.end());
    shared_used = shared_used || shared;
  }
}

}  // namespace

StepSize step_size(int64_t tokens, int64_t rows, int threads) {
  if (tokens <= kReplicate && rows <= kReplicate) return StepSize::small;
  return threads > 1 && tokens >= kTokensEach * threads ? StepSize::large : StepSize::medium;
}

Range own_tokens(int64_t tokens, int threads, int thread) { return Team(thread, threads, nullptr).share(tokens, kPrepareRows); }

Schedule plan_schedule(const Steps& s, StepSize size, int64_t token_bytes) {
  Schedule plan;
  for (auto* by_task : {&plan.barrier_before, &plan.replicated, &plan.by_tokens}) by_task->assign(s.tasks.size(), false);
  plan.is_private.assign(s.values.size(), false);
  for (const Value& v : s.values) plan.offset.push_back(v.offset);
  if (size == StepSize::small) plan_small(s, plan);
  if (size == StepSize::large) plan_large(s, plan);
  else plan.token_bytes = token_bytes;
  plan_barriers(s, size, plan);
  return plan;
}

}  // namespace datong
