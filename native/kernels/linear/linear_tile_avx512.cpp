// Tile formats with AVX-512.
#include "kernels/linear/linear_tile.h"

namespace datong {
namespace {

bool usable(const CpuFeatures& cpu, const WeightView& w) { return cpu.avx512 && w.tile > 0; }

constexpr LinearKernel kKernels[] = {tile_kernel<linear_plain_avx512>("tile_avx512", usable)};

}  // namespace

KernelTable linear_tile_avx512() { return {kKernels, 1}; }

}  // namespace datong
