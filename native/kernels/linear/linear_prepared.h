// Layout of activations quantised to int8, of one token. Private to kernels/linear.
//
// Blocks of 32: n = round(x * 127 / max|x|), d = max|x| / 127, so x ~ d * n, and q = n. A block with a NaN or infinity gets
// d = NaN or infinity and spoils every result that uses it, as it would in f32; a block below 1e-35 counts as zeros. A block
// with an outlier has a smaller d, and four n of more bits, n = q + 64 e: linear_outliers.h.
//
//   codes  [blocks4 * 32] i8    q; blocks4, blocks16: blocks rounded up to 4, 16; padding is zeros
//   scale  [blocks16] f32       d
//   sums   [blocks16] f32       d * sum(n): what a format's `min` is multiplied by
//   bias   [blocks16] i32       nibble order: -8 * sum(n)
//          [2 * blocks16] i32   byte order: -128 * sum(n) of each 16
//   extra  [blocks4 * 32] i8    e, in the places of the codes; zeros without an outlier
//   group  [blocks16] u8        the outlier's group; kNoGroup: no outlier, as in the padding
//
// Signed codes c are used as the unsigned c + 8 or c + 128, for the processors multiply unsigned by signed bytes;
// `bias` takes the excess away, exactly, before anything is rounded.
//
// Nibble order serves 4-bit weights: of each 128 elements first the 64 even ones, then the 64 odd ones. The low nibbles
// of 64 stored bytes are the even elements, so no weight has to be shuffled. Byte order is the plain order.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace datong {
namespace {

constexpr int64_t kBlock = 32;
constexpr float kTiny = 1e-35f;

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct PreparedLayout {
  int64_t blocks;  // of 32
  int64_t scale, sums, bias, extra, group, size;  // byte offsets; bytes per token

  PreparedLayout(int64_t in, bool nibbles) : blocks(in / kBlock) {
    const int64_t floats = round_up(blocks, 16) * 4;
    scale = round_up(blocks, 4) * kBlock;
    sums = scale + floats;
    bias = sums + floats;
    extra = bias + floats * (nibbles ? 1 : 2);
    group = extra + scale;
    size = round_up(group + round_up(blocks, 16), 64);
  }
};

template <bool kNibbles>
size_t prepared_bytes(int64_t in) {
  return static_cast<size_t>(PreparedLayout(in, kNibbles).size);
}

inline const float* floats_at(const uint8_t* p, int64_t offset) { return reinterpret_cast<const float*>(p + offset); }
inline const int32_t* ints_at(const uint8_t* p, int64_t offset) { return reinterpret_cast<const int32_t*>(p + offset); }

}  // namespace
}  // namespace datong
