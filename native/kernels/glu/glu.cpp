#include "kernels/glu/glu.h"

namespace datong {

static const Variant<Glu> kVariants[] = {
#if DATONG_X86
    {"avx512", has_avx512, silu_glu_avx512},
    {"avx2", has_avx2, silu_glu_avx2},
#endif
    {"ref", always, silu_glu_ref},
};

std::span<const Variant<Glu>> silu_glu_variants() { return kVariants; }

}  // namespace datong
