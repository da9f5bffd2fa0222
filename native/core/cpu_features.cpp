#include "core/cpu_features.h"

#include <cstring>

#include "core/error.h"

namespace datong {

CpuFeatures detect_cpu_features() {
  CpuFeatures f;
#if DATONG_X86
  __builtin_cpu_init();  // also checks that the operating system saves the wide registers
  f.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  f.avx512 = f.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  f.avx512_vnni = f.avx512 && __builtin_cpu_supports("avx512vnni");
  f.avx512_bf16 = f.avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  return f;
}

CpuFeatures cpu_features_for(const char* isa) {
  const CpuFeatures have = detect_cpu_features();
  CpuFeatures use;
  if (!std::strcmp(isa, "best")) return have;
  if (!std::strcmp(isa, "ref")) return use;
  if (!std::strcmp(isa, "avx2")) {
    use.avx2 = true;
    if (have.avx2) return use;
    throw Error(DT_UNSUPPORTED, "[cpu] isa `avx2` was asked for, this processor has no AVX2 with FMA and F16C");
  }
  if (!std::strcmp(isa, "avx512")) {
    use.avx2 = use.avx512 = true;
    if (have.avx512) return use;
    throw Error(DT_UNSUPPORTED, "[cpu] isa `avx512` was asked for, this processor has no AVX-512 F, BW, VL and DQ");
  }
  throw Error(DT_INVALID, text("[cpu] option isa is ref, avx2, avx512 or best, `%.40s` came", isa));
}

}  // namespace datong
