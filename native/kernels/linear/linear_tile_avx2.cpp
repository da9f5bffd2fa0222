// Tile formats with AVX2.
#include "kernels/linear/linear_tile.h"

namespace datong {
namespace {

bool usable(const CpuFeatures& cpu, const WeightView& w) { return cpu.avx2 && w.tile > 0; }

constexpr LinearKernel kKernels[] = {tile_kernel<linear_plain_avx2>("tile_avx2", usable)};

}  // namespace

KernelTable linear_tile_avx2() { return {kKernels, 1}; }

}  // namespace datong
