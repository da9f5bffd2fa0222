#include "kernels/causal_conv/causal_conv.h"

namespace datong {

static const Variant<CausalConv> kVariants[] = {
#if DATONG_X86
    {"avx512", has_avx512, causal_conv_avx512},
    {"avx2", has_avx2, causal_conv_avx2},
#elif DATONG_ARM64
    {"neon", has_neon, causal_conv_neon},
#endif
    {"ref", always, causal_conv_ref},
};

std::span<const Variant<CausalConv>> causal_conv_variants() { return kVariants; }

}  // namespace datong
