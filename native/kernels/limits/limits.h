// What this machine can do at best, as a yardstick: bytes read from memory, and multiply-adds from registers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/cpu_features.h"

namespace datong {

// Places of a share that are read in turn, as a matrix is read by rows: one stream alone leaves prefetchers idle.
constexpr int64_t kLimitStreams = 8;

// Reads kLimitStreams stretches of `part` bytes, a multiple of 64, that lie one behind another. The sum keeps it honest.
uint64_t read_streams(const uint8_t* from, int64_t part);

// Independent multiply-adds in registers.
struct PeakKernel {
  const char* name;  // of the instruction set
  bool (*usable)(const CpuFeatures&);
  int64_t operations;          // of one round; a multiply-add is two
  uint64_t (*run)(int64_t rounds);
};

// Best first; empty where nothing was written for this processor.
std::span<const PeakKernel> int8_peaks();
std::span<const PeakKernel> f32_peaks();

}  // namespace datong
