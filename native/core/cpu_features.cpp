#include "core/cpu_features.h"

#include <cstring>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

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
#elif DATONG_ARM64
  f.neon = true;  // part of the base instruction set
#if defined(__linux__)
  f.neon_dotprod = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#endif
#endif
  return f;
}

namespace {

struct Isa {
  const char* name;
  CpuFeatures use;
  bool CpuFeatures::*needs;
  const char* lacks;  // in words
};

constexpr Isa kIsas[] = {
    {"avx2", {.avx2 = true}, &CpuFeatures::avx2, "no AVX2 with FMA and F16C"},
    {"avx512", {.avx2 = true, .avx512 = true}, &CpuFeatures::avx512, "no AVX-512 F, BW, VL and DQ"},
    {"neon", {.neon = true}, &CpuFeatures::neon, "no NEON"},
    {"neon_dotprod", {.neon = true, .neon_dotprod = true}, &CpuFeatures::neon_dotprod, "no NEON dot product"},
};

}  // namespace

CpuFeatures cpu_features_for(const char* isa) {
  const CpuFeatures have = detect_cpu_features();
  if (!std::strcmp(isa, "best")) return have;
  if (!std::strcmp(isa, "ref")) return {};
  for (const Isa& i : kIsas) {
    if (std::strcmp(isa, i.name)) continue;
    if (have.*i.needs) return i.use;
    throw Error(DT_UNSUPPORTED, text("[cpu] isa `%s` was asked for, this processor has %s", isa, i.lacks));
  }
  throw Error(DT_INVALID,
              text("[cpu] option isa is ref, avx2, avx512, neon, neon_dotprod or best, `%.40s` came", isa));
}

const char* isa_in_words(const CpuFeatures& f) {
  return f.avx512_vnni    ? "avx512 + vnni"
         : f.avx512       ? "avx512"
         : f.avx2         ? "avx2"
         : f.neon_dotprod ? "neon + dotprod"
         : f.neon         ? "neon"
                          : "ref";
}

}  // namespace datong
