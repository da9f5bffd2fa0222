// One node, ready to run. All threads of the team run all tasks, in order; a task splits its own work.
#pragma once

#include <memory>
#include <string>

#include "core/cpu_features.h"
#include "core/thread_pool.h"
#include "executor/cache.h"
#include "executor/packed_weights.h"
#include "executor/value.h"
#include "kernels/glu/glu.h"

namespace datong {

// What a task sees of the step. Pointers are valid during the step only.
struct Run {
  int64_t tokens = 0, rows = 0, sequences = 0;
  const int64_t* query_starts = nullptr;  // [S + 1]
  const int64_t* context_lens = nullptr;  // [S]
  const int32_t* block_tables = nullptr;  // [S, table_width]
  int64_t table_width = 0;
  const int32_t* window_tables = nullptr;  // [S, window_width]; of windows with blocks of their own
  int64_t window_width = 0;
  const int32_t* state_slots = nullptr;  // [S]
  const Cache* cache = nullptr;
  void* const* at = nullptr;         // address of each value, by index
  uint8_t* shared = nullptr;         // scratch that all threads see
  uint8_t* const* own = nullptr;     // scratch of each thread, by team index
  int64_t count(Lead lead) const { return lead == Lead::rows ? rows : tokens; }
  const float* floats(int index) const { return static_cast<const float*>(at[index]); }
  float* result(int index) const { return static_cast<float*>(at[index]); }
};

// Steps of up to so many tokens and rows replicate small work instead of sharing it out.
constexpr int64_t kReplicate = 2;
// Steps of at least so many tokens per thread give each thread tokens of its own.
constexpr int64_t kTokensEach = 16;

struct Scratch {
  size_t shared = 0, own = 0;  // bytes
};

class Task {
 public:
  virtual ~Task() = default;

  // Called by every thread of the team with the same Run. Must not throw or allocate.
  virtual void run(const Run&, Team&) const = 0;

  // Scratch for a step of that size or a smaller one. Shared scratch is not kept from one task to the next.
  virtual Scratch scratch(int64_t /*tokens*/, int64_t /*rows*/, int /*threads*/) const { return {}; }

  // True: so little work per row that for a few rows each thread does all of it for itself, which saves a barrier. Its
  // results are then private to each thread. Must not use scratch.
  virtual bool replicable() const { return false; }

  // True: a row of the results depends on the same row of the inputs alone. In large steps each thread then runs all of it
  // for tokens of its own, as a team of one: what it needs next lies in its own core's cache, and nobody waits.
  virtual bool row_wise() const { return replicable(); }

  // Looks at the numbers in the step (token ids, rows) before anything runs. Throws Error(DT_INVALID).
  virtual void check(const Run&) const {}

  // Of copies of weights that the task made for itself.
  virtual int64_t private_bytes() const { return 0; }

  std::string implementation;
};

// What matrices are multiplied with. `i8`: block formats round activations to 8 bits, plain ones leave them in f32.
// `f32`: nothing is rounded. `bf16`: rounded to bf16, for bf16 matrices only.
enum class Activations { i8, f32, bf16 };

struct BuildContext {
  CpuFeatures features;
  const std::vector<CacheSpec>* caches = nullptr;  // null: a question, not a compilation
  Activations activations = Activations::i8;
  CacheType cache_type = CacheType::f16;
  PackedWeights* packed = nullptr;  // null: weights stay as they are stored
};

// Checks the node and picks its kernels. Throws Error(DT_UNSUPPORTED) with the reason, or Error(DT_INVALID).
std::unique_ptr<Task> make_task(const NodeView&, const BuildContext&);

// Names of the operators of tier `fused` that make_task knows; ends with null.
const char* const* fused_operators();

// The best kernel for a matrix. Throws as make_task.
const LinearKernel& pick_linear(const NodeView&, const WeightView&, const BuildContext&);

// The gated unit that a node's attributes kind, limit and alpha name.
struct GluUnit {
  Glu kernel = nullptr;
  float limit = 0, alpha = 0;
  std::string implementation;
};
GluUnit read_glu(const NodeView&, const CpuFeatures&);  // throws as make_task

using MakeTask = std::unique_ptr<Task> (*)(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_embedding(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_linear(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_linear_add(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_linear_multi(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_linear_glu(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_rms_norm(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_add_rms_norm(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_rope_table(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_rope(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_attention(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_causal_conv(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_gated_delta(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_linear_attention(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_select_keys(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_sparse_attention(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_layer_norm(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_latent_attention(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_glu(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_elementwise(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_slice(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_moe(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_scale(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_scale_groups(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_concat(const NodeView&, const BuildContext&);
std::unique_ptr<Task> make_take_rows(const NodeView&, const BuildContext&);

}  // namespace datong
