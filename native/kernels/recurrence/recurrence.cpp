#include "kernels/recurrence/recurrence.h"

namespace datong {

static const Variant<Recurrence> kVariants[] = {
#if DATONG_X86
    {"avx512", has_avx512, recurrence_avx512},
    {"avx2", has_avx2, recurrence_avx2},
#elif DATONG_ARM64
    {"neon", has_neon, recurrence_neon},
#endif
    {"ref", always, recurrence_ref},
};

std::span<const Variant<Recurrence>> recurrence_variants() { return kVariants; }

}  // namespace datong
