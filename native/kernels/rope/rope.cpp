#include "kernels/rope/rope.h"

namespace datong {

static const Variant<Rope> kVariants[] = {
#if DATONG_X86
    {"avx2", has_avx2, rope_avx2},
#elif DATONG_ARM64
    {"neon", has_neon, rope_neon},
#endif
    {"ref", always, rope_ref},
};

std::span<const Variant<Rope>> rope_variants() { return kVariants; }

}  // namespace datong
