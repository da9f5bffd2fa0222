#include "kernels/attention/attention.h"

namespace datong {

static const Variant<AttentionKernel> kVariants[] = {
#if DATONG_X86
    {"avx512bf16", has_avx512_bf16, {prepare_queries_avx512bf16, attend_avx512bf16, store_kv_avx512bf16}},
    {"avx512", has_avx512, {prepare_queries_ref, attend_avx512, store_kv_avx2}},  // storing is bound by memory
    {"avx2", has_avx2, {prepare_queries_ref, attend_avx2, store_kv_avx2}},
#elif DATONG_ARM64
    {"neon", has_neon, {prepare_queries_ref, attend_neon, store_kv_neon}},
#endif
    {"ref", always, {prepare_queries_ref, attend_ref, store_kv_ref}},
};

std::span<const Variant<AttentionKernel>> attention_variants() { return kVariants; }

}  // namespace datong
