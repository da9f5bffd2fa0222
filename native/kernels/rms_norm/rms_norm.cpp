#include "kernels/rms_norm/rms_norm.h"

namespace datong {

static const Variant<RmsNorm> kVariants[] = {
#if DATONG_X86
    {"avx512", has_avx512, rms_norm_avx512},
    {"avx2", has_avx2, rms_norm_avx2},
#elif DATONG_ARM64
    {"neon", has_neon, rms_norm_neon},
#endif
    {"ref", always, rms_norm_ref},
};

std::span<const Variant<RmsNorm>> rms_norm_variants() { return kVariants; }

}  // namespace datong
