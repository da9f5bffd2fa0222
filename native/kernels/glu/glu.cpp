#include "kernels/glu/glu.h"

namespace datong {

static const Variant<Glu> kVariants[] = {
#if DATONG_X86
    {"avx512", has_avx512, silu_glu_avx512},
    {"avx2", has_avx2, silu_glu_avx2},
#elif DATONG_ARM64
    {"neon", has_neon, silu_glu_neon},
#endif
    {"ref", always, silu_glu_ref},
};

std::span<const Variant<Glu>> silu_glu_variants() { return kVariants; }

}  // namespace datong
