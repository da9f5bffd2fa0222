// A task that treats every row alike: its work is a row of equal units, cut anywhere.
#pragma once

#include "executor/task.h"

namespace datong {

class RowTask : public Task {
 public:
  int64_t chunks(const Run& run, int, int threads) const override {
    const int64_t n = run.count(lead_) * per_row_;
    return chunks_of_floats(n * floats_, (n + multiple_ - 1) / multiple_, threads);
  }
  void run(const Run& run, int, int64_t chunk, int64_t chunks, int) const override {
    run_units(run, piece_of(run.count(lead_) * per_row_, multiple_, chunks, chunk));
  }

 protected:
  // Each token or row has `per_row` units of so many floats; chunks begin at multiples of `multiple` units.
  void set_units(Lead lead, int64_t per_row, int64_t floats, int64_t multiple = 1) {
    lead_ = lead;
    per_row_ = per_row;
    floats_ = floats;
    multiple_ = multiple;
  }
  virtual void run_units(const Run& run, Range units) const = 0;
  Lead lead_ = Lead::none;

 private:
  int64_t per_row_ = 1, floats_ = 1, multiple_ = 1;
};

}  // namespace datong
