#include "kernels/elementwise/elementwise.h"

namespace datong {

#if DATONG_X86
#define DATONG_VARIANTS(op) {"avx2", has_avx2, op##_avx2}, {"ref", always, op##_ref}
#elif DATONG_ARM64
#define DATONG_VARIANTS(op) {"neon", has_neon, op##_neon}, {"ref", always, op##_ref}
#else
#define DATONG_VARIANTS(op) {"ref", always, op##_ref}
#endif

static const Variant<Elementwise> kAdd[] = {DATONG_VARIANTS(add)};
static const Variant<Elementwise> kMul[] = {DATONG_VARIANTS(mul)};
static const Variant<Elementwise> kSigmoid[] = {DATONG_VARIANTS(sigmoid)};
static const Variant<Scale> kScale[] = {DATONG_VARIANTS(scale)};

std::span<const Variant<Elementwise>> add_variants() { return kAdd; }
std::span<const Variant<Elementwise>> mul_variants() { return kMul; }
std::span<const Variant<Elementwise>> sigmoid_variants() { return kSigmoid; }
std::span<const Variant<Scale>> scale_variants() { return kScale; }

}  // namespace datong
