// Random weights of any format for tests and benchmarks, and what they mean, computed independently of the kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "datong/backend.h"
#include "kernels/linear/linear.h"

namespace datong::testing {

inline const char* const kFormats[] = {"f32",  "f16",  "bf16", "q4_0", "q4_1", "q5_0",
                                       "q5_1", "q8_0", "q4_k", "q5_k", "q6_k",
                                       "fp8_128", "fp8_128_bf16", "fp8_128_e8m0", "mxfp8", "mxfp4", "nvfp4", "nvfp4_div"};

// IEEE half <-> double by the definition.
inline double half_value(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const double v = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return h & 0x8000 ? -v : v;
}
inline uint16_t half_bits(double v) {  // nearest below in magnitude; |v| < 65504
  int exponent = 0;
  const double m = std::frexp(std::fabs(v), &exponent);  // [0.5, 1)
  const int e = exponent + 14;
  const int bits = e <= 0 ? static_cast<int>(std::ldexp(std::fabs(v), 24))
                          : (e << 10) | (static_cast<int>(std::ldexp(m, 11)) & 1023);
  return static_cast<uint16_t>(bits | (v < 0 ? 0x8000 : 0));
}

// Each piece lies in memory of exactly its size (so that a sanitizer sees reads past it), starting at an odd address.
class TestWeight {
 public:
  WeightView view{};

  TestWeight(const std::string& format, int64_t out, int64_t in, uint32_t seed) : format_(format), engine_(seed) {
    view.format = format_.c_str();
    view.out = out;
    view.in = in;
    view.min_sign = 1;
    if (format == "f32" || format == "f16" || format == "bf16") {
      plain();
      return;
    }
    if (format.find("fp") != std::string::npos) {
      tiles();
      return;
    }
    const bool k = format.back() == 'k';
    view.block = format == "q6_k" ? 16 : 32;
    view.super_block = k ? 256 : 0;
    view.has_min = format == "q4_1" || format == "q5_1" || format == "q4_k" || format == "q5_k";
    view.min_sign = k ? -1 : 1;
    const bool nibbles = format[1] == '4', is_signed = !view.has_min;
    view.codes_dtype = nibbles ? (is_signed ? DT_I4 : DT_U4) : (is_signed ? DT_I8 : DT_U8);
    uint8_t* codes = piece(nibbles ? out * in / 2 : out * in);
    for (int64_t i = 0; i < (nibbles ? out * in / 2 : out * in); ++i) codes[i] = static_cast<uint8_t>(engine_());
    view.codes = codes;
    const int64_t blocks = out * (in / view.block);
    view.scale = k ? small(blocks, format == "q6_k") : halves(blocks, 0.02);
    if (view.has_min) view.min = k ? small(blocks, false) : halves(blocks, 0.1);
    if (k) view.super_scale = reinterpret_cast<uint16_t*>(halves(out * (in / 256), 0.001));
    if (k && view.has_min) view.super_min = reinterpret_cast<uint16_t*>(halves(out * (in / 256), 0.001));
  }

  // w[o, i] by the formula of datong/spec/formats.py.
  double at(int64_t o, int64_t i) const { return product(o * view.in + i) + min(o * view.in + i); }

  // Size of the two terms: what rounding errors are relative to, for they may cancel.
  double size_at(int64_t o, int64_t i) const {
    return std::fabs(product(o * view.in + i)) + std::fabs(min(o * view.in + i));
  }

  // Every value, [out, in].
  std::vector<double> dense() const {
    std::vector<double> v(static_cast<size_t>(view.out * view.in));
    for (int64_t o = 0; o < view.out; ++o)
      for (int64_t i = 0; i < view.in; ++i) v[static_cast<size_t>(o * view.in + i)] = at(o, i);
    return v;
  }

  // Bytes of all pieces.
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* piece(int64_t n) {
    memory_.push_back(std::make_unique<uint8_t[]>(static_cast<size_t>(n) + 1));
    bytes_ += n;
    return memory_.back().get() + 1;
  }
  double normal(double scale) { return std::normal_distribution<double>(0, scale)(engine_); }
  uint8_t* halves(int64_t n, double scale) {
    uint8_t* p = piece(2 * n);
    for (int64_t i = 0; i < n; ++i) put(p + 2 * i, half_bits(normal(scale)));
    return p;
  }
  uint8_t* small(int64_t n, bool is_signed) {  // sub-scales: 6 bits, or i8
    uint8_t* p = piece(n);
    for (int64_t i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(is_signed ? engine_() : engine_() & 63);
    return p;
  }
  static void put(uint8_t* p, uint16_t v) { std::memcpy(p, &v, 2); }
  static uint16_t get(const void* p, int64_t i) {
    uint16_t v;
    std::memcpy(&v, static_cast<const uint8_t*>(p) + 2 * i, 2);
    return v;
  }
  void plain() {
    const bool wide = format_ == "f32";
    view.codes_dtype = wide ? DT_F32 : format_ == "f16" ? DT_F16 : DT_BF16;
    const int64_t n = view.out * view.in;
    uint8_t* p = piece(n * (wide ? 4 : 2));
    for (int64_t i = 0; i < n; ++i) {
      const float f = static_cast<float>(normal(0.05));
      uint32_t bits;
      std::memcpy(&bits, &f, 4);
      if (wide) std::memcpy(p + 4 * i, &f, 4);
      else put(p + 2 * i, format_ == "f16" ? half_bits(f) : static_cast<uint16_t>(bits >> 16));
    }
    view.codes = p;
  }
  double plain_at(int64_t n) const {
    if (format_ == "f16") return half_value(get(view.codes, n));
    float f;
    if (format_ == "f32") {
      std::memcpy(&f, view.codes + 4 * n, 4);
    } else {
      const uint32_t bits = static_cast<uint32_t>(get(view.codes, n)) << 16;
      std::memcpy(&f, &bits, 4);
    }
    return f;
  }
  // Float codes in tiles; values by the tables of OCP OFP8 1.0 and MX 1.0.
  void tiles() {
    const bool nibbles = format_.find("fp4") != std::string::npos;
    view.tile = format_.rfind("fp8", 0) == 0 ? 128 : 1;
    view.block = view.tile > 1 ? 128 : format_.rfind("nv", 0) == 0 ? 16 : 32;
    view.codes_dtype = nibbles ? DT_F4E2M1 : DT_F8E4M3;
    view.scale_dtype = format_ == "fp8_128" ? DT_F32 : format_ == "fp8_128_bf16" ? DT_BF16 : view.block == 16 ? DT_F8E4M3 : DT_F8E8M0;
    const int64_t n = nibbles ? view.out * view.in / 2 : view.out * view.in;
    uint8_t* codes = piece(n);
    for (int64_t i = 0; i < n; ++i) {
      codes[i] = static_cast<uint8_t>(engine_());
      if (!nibbles && (codes[i] & 0x7f) == 0x7f) codes[i] ^= 1;  // no NaN
    }
    view.codes = codes;
    const int64_t count = (view.out + view.tile - 1) / view.tile * ((view.in + view.block - 1) / view.block);
    const int bytes = view.scale_dtype == DT_F32 ? 4 : view.scale_dtype == DT_BF16 ? 2 : 1;
    uint8_t* scale = piece(count * bytes);
    for (int64_t i = 0; i < count; ++i) {
      const float f = static_cast<float>(normal(0.05));
      uint32_t bits;
      std::memcpy(&bits, &f, 4);
      if (bytes == 4) std::memcpy(scale + 4 * i, &f, 4);
      if (bytes == 2) put(scale + 2 * i, static_cast<uint16_t>(bits >> 16));
      if (bytes == 1) scale[i] = static_cast<uint8_t>(view.scale_dtype == DT_F8E8M0 ? 118 + engine_() % 12 : engine_() % 0x7f);
    }
    view.scale = scale;
    if (view.block != 16) return;
    const float factor = 0.0371f;
    uint8_t* p = piece(4);
    std::memcpy(p, &factor, 4);
    view.factor = p;
    view.divides = format_ == "nvfp4_div";
  }
  static double eight(int c) {
    const int e = c >> 3 & 15, m = c & 7;
    const double v = e ? std::ldexp(8 + m, e - 10) : std::ldexp(m, -9);
    return c & 0x80 ? -v : v;
  }
  double tile_scale(int64_t n) const {
    const int64_t i = n / view.in / view.tile * ((view.in + view.block - 1) / view.block) + n % view.in / view.block;
    const uint8_t* p = static_cast<const uint8_t*>(view.scale);
    float f = 0;
    uint32_t bits = 0;
    if (view.scale_dtype == DT_F32) std::memcpy(&f, p + 4 * i, 4);
    if (view.scale_dtype == DT_BF16) {
      bits = static_cast<uint32_t>(get(p, i)) << 16;
      std::memcpy(&f, &bits, 4);
    }
    double s = view.scale_dtype == DT_F8E8M0 ? std::ldexp(1, p[i] - 127) : view.scale_dtype == DT_F8E4M3 ? eight(p[i]) : f;
    if (!view.factor) return s;
    float factor;
    std::memcpy(&factor, view.factor, 4);
    return view.divides ? s / factor : s * factor;
  }
  double product(int64_t n) const {  // n: flat index
    if (view.tile) {
      static const double kFour[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
      if (view.codes_dtype == DT_F8E4M3) return eight(view.codes[n]) * tile_scale(n);
      const int v = view.codes[n / 2] >> (n % 2 * 4) & 15;
      return (v & 8 ? -1 : 1) * kFour[v & 7] * tile_scale(n);
    }
    if (!view.block) return plain_at(n);
    return level(view.scale, view.super_scale, n / view.block) * code(n);
  }
  double min(int64_t n) const {
    return view.has_min ? view.min_sign * level(view.min, view.super_min, n / view.block) : 0;
  }
  int code(int64_t n) const {
    if (view.codes_dtype == DT_I8) return static_cast<int8_t>(view.codes[n]);
    if (view.codes_dtype == DT_U8) return view.codes[n];
    const int v = view.codes[n / 2] >> (n % 2 * 4) & 15;
    return view.codes_dtype == DT_I4 && v >= 8 ? v - 16 : v;
  }
  double level(const void* one, const uint16_t* super, int64_t b) const {
    if (!view.super_block) return half_value(get(one, b));
    const uint8_t byte = static_cast<const uint8_t*>(one)[b];
    const double k = view.has_min ? byte : static_cast<int8_t>(byte);
    return half_value(get(super, b / (view.super_block / view.block))) * k;
  }

  std::string format_;
  std::mt19937 engine_;
  int64_t bytes_ = 0;
  std::vector<std::unique_ptr<uint8_t[]>> memory_;
};

}  // namespace datong::testing
