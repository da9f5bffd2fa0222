// The lists of kernel variants: best first, the reference last, which is always usable.
#pragma once

#include <span>

#include "core/cpu_features.h"

namespace datong {

template <class Kernel>
struct Variant {
  const char* name;  // ISA: avx512, avx2, neon, ref
  bool (*usable)(const CpuFeatures&);
  Kernel kernel;
};

template <class Kernel>
const Variant<Kernel>& pick(std::span<const Variant<Kernel>> variants, const CpuFeatures& features) {
  for (const auto& variant : variants)
    if (variant.usable(features)) return variant;
  return variants.back();
}

inline bool always(const CpuFeatures&) { return true; }
inline bool has_avx2(const CpuFeatures& f) { return f.avx2; }
inline bool has_avx512(const CpuFeatures& f) { return f.avx512; }
inline bool has_avx512_bf16(const CpuFeatures& f) { return f.avx512_bf16; }
inline bool has_neon(const CpuFeatures& f) { return f.neon; }

}  // namespace datong
