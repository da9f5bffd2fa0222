// How the tasks of a program are run in a step: who does what, where temps lie, and where all threads meet.
//
// Steps are of three sizes:
//   small   up to kReplicate tokens and rows: some tasks are done by every thread for itself
//   medium  every task is shared out
//   large   kTokensEach per thread and more: each thread has a range of the tokens, and does tasks that treat rows alike
//           for these alone (ADR 0031)
#pragma once

#include <memory>
#include <vector>

#include "executor/task.h"

namespace datong {

enum class StepSize { small, medium, large };
StepSize step_size(int64_t tokens, int64_t rows, int threads);

// The part of the tokens of a large step that is the thread's own.
Range own_tokens(int64_t tokens, int threads, int thread);

// A program as the schedule sees it. Values by index; reads, writes: temps of each task.
struct Steps {
  const std::vector<Value>& values;
  const std::vector<std::unique_ptr<Task>>& tasks;
  const std::vector<std::vector<int>>&reads, &writes;
  const std::vector<int>& outputs;
  int threads;
};

struct Schedule {
  std::vector<bool> barrier_before, replicated, by_tokens;  // by task
  std::vector<bool> is_private;   // by value: each thread has one of its own, of small steps whole, of large ones its tokens
  std::vector<int64_t> offset;    // by value, of temps that are not private: bytes per token or row in their arena
  int64_t token_bytes = 0;        // of the arena of tokens, per token
};

// `token_bytes`: of the arena that the values' own offsets lie in.
Schedule plan_schedule(const Steps& steps, StepSize size, int64_t token_bytes);

}  // namespace datong
