// A forced instruction set has nothing that the processor lacks, nor anything better than its name; what is not there is
// an error that says so.
#include "core/cpu_features.h"

#include "core/error.h"
#include "testing/check.h"

using namespace datong;

int main() {
  const CpuFeatures have = detect_cpu_features();
  const auto within = [&](const CpuFeatures& f) {
    return f.avx2 <= have.avx2 && f.avx512 <= have.avx512 && f.avx512_vnni <= have.avx512_vnni &&
           f.avx512_bf16 <= have.avx512_bf16 && f.neon <= have.neon && f.neon_dotprod <= have.neon_dotprod;
  };
  int refused = 0;
  for (const char* isa : {"ref", "avx2", "avx512", "neon", "neon_dotprod", "best"}) {
    try {
      const CpuFeatures f = cpu_features_for(isa);
      CHECK(within(f), "%s uses what is not there", isa);
      if (!std::strcmp(isa, "neon")) CHECK(f.neon && !f.neon_dotprod);
      if (!std::strcmp(isa, "avx512")) CHECK(f.avx2 && f.avx512 && !f.avx512_vnni);
      if (!std::strcmp(isa, "ref")) CHECK(!std::strcmp(isa_in_words(f), "ref"));
    } catch (const Error& e) {
      ++refused;
      CHECK(e.code() == DT_UNSUPPORTED && std::strstr(e.what(), isa) && std::strstr(e.what(), "this processor has no"),
            "%s", e.what());
    }
  }
  CHECK(refused > 0, "no processor has both AVX2 and NEON");
  try {
    cpu_features_for("mmx");
    CHECK(false, "mmx is known");
  } catch (const Error& e) {
    CHECK(e.code() == DT_INVALID && std::strstr(e.what(), "`mmx` came"), "%s", e.what());
  }
  return testing::result();
}
