// Tile formats in plain C++; also what 64-bit ARM runs, with its own f32 kernel.
#include "kernels/linear/linear_tile.h"

namespace datong {
namespace {

bool usable(const CpuFeatures&, const WeightView& w) { return w.tile > 0; }
[[maybe_unused]] bool usable_neon(const CpuFeatures& cpu, const WeightView& w) { return cpu.neon && w.tile > 0; }

constexpr LinearKernel kKernels[] = {
#if DATONG_ARM64
    tile_kernel<linear_plain_neon>("tile_neon", usable_neon),
#endif
    tile_kernel<linear_ref>("tile_ref", usable),
};

}  // namespace

KernelTable linear_tile_ref() { return {kKernels, sizeof kKernels / sizeof kKernels[0]}; }

}  // namespace datong
