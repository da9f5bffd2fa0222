// What this processor can do, and what the user lets us use of it.
#pragma once

namespace datong {

// Each flag includes operating system support (saved registers). A kernel may run only if the flags that its source
// file was compiled with are set.
struct CpuFeatures {
  bool avx2 = false;          // AVX2 + FMA + F16C
  bool avx512 = false;        // AVX-512 F + BW + VL + DQ, and avx2
  bool avx512_vnni = false;   // avx512 + AVX512_VNNI
  bool avx512_bf16 = false;   // avx512 + AVX512_BF16
  bool neon = false;          // every 64-bit ARM processor
  bool neon_dotprod = false;  // neon + the SDOT instruction of ARMv8.2: Kunpeng 920, not Phytium FT-2000+
};

// What the processor has.
CpuFeatures detect_cpu_features();

// `isa`: ref | avx2 | avx512 (without VNNI and BF16) | neon (without SDOT) | neon_dotprod | best. Throws
// Error(DT_INVALID) if the name is unknown, and Error(DT_UNSUPPORTED) if this processor lacks it.
CpuFeatures cpu_features_for(const char* isa);

// The best instruction set of `features` in words: `avx512 + vnni`.
const char* isa_in_words(const CpuFeatures& features);

}  // namespace datong
