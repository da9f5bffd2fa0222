#include "kernels/glu/glu.h"

namespace datong {

#if DATONG_X86
#define DATONG_VARIANTS(kind) \
  {"avx512", has_avx512, kind##_avx512}, {"avx2", has_avx2, kind##_avx2}, {"ref", always, kind##_ref}
#elif DATONG_ARM64
#define DATONG_VARIANTS(kind) {"neon", has_neon, kind##_neon}, {"ref", always, kind##_ref}
#else
#define DATONG_VARIANTS(kind) {"ref", always, kind##_ref}
#endif

static const Variant<Glu> kSilu[] = {DATONG_VARIANTS(silu_glu)};
static const Variant<Glu> kGeluTanh[] = {DATONG_VARIANTS(gelu_tanh_glu)};
static const Variant<Glu> kSiluClamp[] = {DATONG_VARIANTS(silu_clamp_glu)};
static const Variant<Glu> kOai[] = {DATONG_VARIANTS(oai_glu)};

std::span<const Variant<Glu>> glu_variants(GluKind kind) {
  switch (kind) {
    case GluKind::gelu_tanh: return kGeluTanh;
    case GluKind::silu_clamp: return kSiluClamp;
    case GluKind::oai: return kOai;
    default: return kSilu;
  }
}

}  // namespace datong
