// Plain formats with NEON: f32 arithmetic, which every 64-bit ARM processor has.
#include <arm_neon.h>

#include "kernels/linear/linear_list.h"
#include "kernels/linear/linear_plain.h"

namespace datong {
namespace {

struct V {
  using Reg = float32x4_t;
  static constexpr int64_t kLanes = 4;
  static constexpr int kTokens = 4;  // 16 accumulators, 4 rows, 1 token: 21 of 32 registers
  static Reg zero() { return vdupq_n_f32(0); }
  static Reg load(const float* p) { return vld1q_f32(p); }
  static Reg load(const float* p, int64_t count) {
    float copy[4] = {};
    for (int64_t i = 0; i < count; ++i) copy[i] = p[i];
    return vld1q_f32(copy);
  }
  static void store(float* p, Reg v) { vst1q_f32(p, v); }
  static void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }
  static Reg fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
  static void sum4(Reg a, Reg b, Reg c, Reg d, float out[4]) {
    vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
  }
};

// Weights have any alignment: they are read as bytes.
struct F32Weights {
  static constexpr int64_t kBytes = 4;
  static float32x4_t load(const uint8_t* p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
  static float32x4_t load(const uint8_t* p, int64_t count) {
    uint8_t copy[16] = {};
    memcpy(copy, p, static_cast<size_t>(count) * 4);
    return load(copy);
  }
};

struct Halves {
  static constexpr int64_t kBytes = 2;
  static uint8x8_t bytes(const uint8_t* p, int64_t count) {
    uint8_t copy[8] = {};
    memcpy(copy, p, static_cast<size_t>(count) * 2);
    return vld1_u8(copy);
  }
};

struct F16Source : Halves {
  static float32x4_t widen(uint8x8_t v) { return vcvt_f32_f16(vreinterpret_f16_u8(v)); }
  static float32x4_t load(const uint8_t* p) { return widen(vld1_u8(p)); }
  static float32x4_t load(const uint8_t* p, int64_t count) { return widen(bytes(p, count)); }
};

struct Bf16Source : Halves {
  static float32x4_t widen(uint8x8_t v) { return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(v), 16)); }
  static float32x4_t load(const uint8_t* p) { return widen(vld1_u8(p)); }
  static float32x4_t load(const uint8_t* p, int64_t count) { return widen(bytes(p, count)); }
};

bool is_f32(const CpuFeatures& cpu, const WeightView& w) { return cpu.neon && strcmp(w.format, "f32") == 0; }
bool is_f16(const CpuFeatures& cpu, const WeightView& w) { return cpu.neon && strcmp(w.format, "f16") == 0; }
bool is_bf16(const CpuFeatures& cpu, const WeightView& w) { return cpu.neon && strcmp(w.format, "bf16") == 0; }

constexpr LinearKernel kKernels[] = {
    {"f32_neon", is_f32, no_bytes, nullptr, nullptr, run_plain<V, F32Weights>, 4},
    {"f16_neon", is_f16, no_bytes, nullptr, plain_scratch<V, F16Source>, run_plain<V, F16Source>, 4},
    {"bf16_neon", is_bf16, no_bytes, nullptr, plain_scratch<V, Bf16Source>, run_plain<V, Bf16Source>, 4},
};

}  // namespace

KernelTable linear_plain_neon() { return {kKernels, sizeof kKernels / sizeof kKernels[0]}; }

}  // namespace datong
