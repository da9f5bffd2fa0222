// A part made runnable: its values resolved, a task per node, memory for one step.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/mapped_file.h"
#include "executor/schedule.h"

namespace datong {

struct Device {
  CpuFeatures features;
  std::string isa;
  ThreadPool pool;
  Device(CpuFeatures f, std::string name, int threads) : features(f), isa(std::move(name)), pool(threads) {}
};

struct ProgramOptions {
  CacheType cache_type = CacheType::f16;
  bool cache_type_given = false;  // else f32 where all weights are f32
  int64_t max_tokens = 0;         // largest step; 0: grows as needed
  int64_t max_rows = 0;
  Activations activations = Activations::i8;
  bool pack_weights = true;        // matrices are copied once into the layout of their kernels; else used as they are stored
  std::string pack_directory{};    // where the copies are kept; empty: in memory
};

// Was the step filled in by a host that knows window tables and state slots?
bool covers_states(const dt_step& step);

class Program {
 public:
  // Throws Error. `part` is not needed afterwards.
  Program(std::shared_ptr<Device> device, const dt_part& part, const ProgramOptions& options);

  // Runs all nodes. `inputs`: one per part input that is not ids, positions or rows, in order. `outputs`: one per part
  // output; filled in. Throws Error(DT_INVALID) before anything was computed or stored.
  void run(const Cache* cache, const dt_step& step, const dt_tensor* inputs, int32_t input_count, dt_tensor* outputs,
           int32_t output_count);

  std::unique_ptr<Cache> create_cache(const CacheSize& size) const;
  size_t node_count() const { return tasks_.size(); }
  const std::string& implementation(size_t node) const { return tasks_[node]->implementation; }
  const std::vector<CacheSpec>& caches() const { return caches_; }
  CacheType cache_type() const { return cache_type_; }
  int64_t mapped_bytes() const { return mapped_bytes_; }
  int64_t private_bytes() const { return private_bytes_; }
  int64_t arena_bytes() const;

  // Times of the nodes, from now on; switching on begins anew. A timed step waits for all threads after each node.
  struct Time {
    int64_t runs = 0, total = 0, last_begin = 0, last = 0;  // nanoseconds
  };
  void profile(bool on);
  const Time& time(size_t node) const { return times_[node]; }

 private:
  enum class Source { ids, positions, rows, host };
  struct Input {
    int value;
    Source source;
  };
  void read_values(const dt_part& part);
  void read_inputs(const dt_part& part);
  void read_caches(const dt_part& part);
  void place_temps(const dt_part& part);
  void build_tasks(const dt_part& part);
  void check_defined(const NodeView& node, std::vector<bool>& defined) const;
  void check_step(const dt_step& step, const Cache* cache);
  void check_sequences(const dt_step& step) const;
  void check_tables(const dt_step& step, const int32_t* tables, int64_t width, int64_t blocks, int64_t window) const;
  void check_slots(const dt_step& step, const Cache& cache);
  void bind_inputs(const dt_step& step, const dt_tensor* inputs, int32_t input_count);
  void* host_input(const Value& v, const dt_tensor* inputs, int32_t i, int32_t count) const;
  void reserve(int64_t tokens, int64_t rows);
  void reserve_scratch(const Schedule& plan, int64_t tokens, int64_t rows);
  void place_private(const Schedule& plan, int64_t tokens, int64_t rows);
  void point_to_own(size_t thread, size_t value);
  struct Side {    // one thread's side of a step
    Run all, own;  // own: the thread's own tokens alone
  };
  Side side_of(const Team& team) const;
  void run_task(size_t i, const Schedule& plan, const Side& side, Team& team) const;
  void run_tasks(Team& team) const;
  void run_timed(Team& team);
  StepSize size() const { return step_size(run_.tokens, run_.rows, device_->pool.size()); }
  const Schedule& schedule() const { return schedules_[static_cast<size_t>(size())]; }

  std::shared_ptr<Device> device_;
  ProgramOptions options_;
  MappedFiles files_;
  std::vector<Value> values_;
  std::vector<Input> inputs_;
  std::vector<int> outputs_;
  std::vector<CacheSpec> caches_;
  CacheType cache_type_;
  int64_t longest_window_ = 0;   // of the caches that keep a window
  bool has_full_ = false, has_states_ = false;
  std::vector<uint32_t> slot_seen_;  // by state slot, the number of the step that used it last
  uint32_t steps_ = 0;
  PackedWeights packed_;
  std::vector<std::unique_ptr<Task>> tasks_;
  std::vector<std::vector<int>> reads_, writes_;  // temps of each task
  Schedule schedules_[3];                         // by StepSize
  int64_t mapped_bytes_ = 0, private_bytes_ = 0;

  // memory of a step: grows, never shrinks
  int64_t unit_bytes_[3] = {0, 0, 0};  // of each arena, by Lead
  struct Free {
    void operator()(uint8_t* p) const;
  };
  using Memory = std::unique_ptr<uint8_t, Free>;
  static Memory allocate(size_t bytes);
  struct Block {
    Memory memory;
    size_t size = 0;
    void grow(size_t bytes);
  };
  Block arenas_[3], shared_;
  std::vector<Block> own_, private_;            // by thread; private_: temps that each has one of
  size_t own_room_ = 0;                         // of own_: behind it lies the shared scratch of a thread that runs a task alone
  std::vector<void*> at_;                       // by value
  std::vector<std::vector<void*>> private_at_;  // by thread and value, for small and large steps
  std::vector<uint8_t*> own_at_;
  std::vector<std::vector<int64_t>> output_dims_;
  int64_t placed_tokens_ = -1, placed_rows_ = -1;
  Run run_;
  std::function<void(Team&)> job_;
  bool timed_ = false;
  std::vector<Time> times_;  // by task
};

}  // namespace datong
