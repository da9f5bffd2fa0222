#include "kernels/vector/vector.h"

namespace datong {

static const Variant<VectorKernel> kVariants[] = {
#if DATONG_X86
    {"avx512", has_avx512, {dot_avx512, axpy_avx512, widen_avx512}},
    {"avx2", has_avx2, {dot_avx2, axpy_avx2, widen_avx2}},
#elif DATONG_ARM64
    {"neon", has_neon, {dot_neon, axpy_neon, widen_neon}},
#endif
    {"ref", always, {dot_ref, axpy_ref, widen_ref}},
};

std::span<const Variant<VectorKernel>> vector_variants() { return kVariants; }

}  // namespace datong
