// The tables that make up linear_kernels(). Private to kernels/linear.
#pragma once

#include "kernels/linear/linear.h"

namespace datong {

struct KernelTable {
  const LinearKernel* items;
  int count;
};

KernelTable linear_plain_avx512bf16();
KernelTable linear_plain_avx512();
KernelTable linear_plain_avx2();
KernelTable linear_block_avx512vnni();
KernelTable linear_block_avx2();
KernelTable linear_plain_neon();
KernelTable linear_block_neon();
KernelTable linear_block_neon_dotprod();
KernelTable linear_ref();
KernelTable linear_tile_avx512();
KernelTable linear_tile_avx2();
KernelTable linear_tile_ref();

}  // namespace datong
