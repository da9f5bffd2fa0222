// The list of linear kernels, best first.
#include "kernels/linear/linear.h"

#include <vector>

#include "kernels/linear/linear_list.h"

namespace datong {

std::span<const LinearKernel> linear_kernels() {
  static const std::vector<LinearKernel> all = [] {
    std::vector<LinearKernel> v;
    const KernelTable tables[] = {
#if DATONG_X86
        linear_plain_avx512(), linear_block_avx512vnni(), linear_plain_avx2(), linear_block_avx2(),
        linear_tile_avx512(),  linear_tile_avx2(),
#elif DATONG_ARM64
        linear_plain_neon(),   linear_block_neon_dotprod(), linear_block_neon(),
#endif
        linear_tile_ref(),     linear_ref(),
    };
    for (const KernelTable& t : tables) v.insert(v.end(), t.items, t.items + t.count);
    return v;
  }();
  return all;
}

std::span<const LinearKernel> bf16_linear_kernels() {
#if DATONG_X86
  const KernelTable t = linear_plain_avx512bf16();
  return {t.items, static_cast<size_t>(t.count)};
#else
  return {};
#endif
}

}  // namespace datong
