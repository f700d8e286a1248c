// How the numbers of a state are stored: the formats of wpadamw/formats.py, which says what is meant.
#pragma once

#include <cmath>
#include <cstdint>

#include "float_types.h"

namespace wpadamw {

enum class Format : int { kWhole, kBFloat16, kInt8, kUInt8 };
constexpr int kNumFormats = 4;

// Neighbours that share a scale.
constexpr int kFormatBlock = 64;

WPADAMW_HOST_DEVICE constexpr bool has_scales(Format format) {
  return format == Format::kInt8 || format == Format::kUInt8;
}
WPADAMW_HOST_DEVICE constexpr bool is_noisy(Format format) {
  return format == Format::kBFloat16 || format == Format::kUInt8;
}

// Noise: of 16 bits, a hash of the place of a number in its tensor, and of the update.

constexpr int kBitsOfNoise = 16;

WPADAMW_HOST_DEVICE uint32_t mixed(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}
// Moments have stream 0, weights stream 1. float32 counts whole numbers up to 2^24.
WPADAMW_HOST_DEVICE uint32_t key_of(double count, uint32_t stream) {
  return mixed(static_cast<uint32_t>(count) + (stream << 25));
}
WPADAMW_HOST_DEVICE uint32_t noise_at(uint32_t place, uint32_t key) {
  return mixed(place + key) >> kBitsOfNoise;
}

// A comparison of bits, of which compilers make no branch.
WPADAMW_HOST_DEVICE bool is_nan(uint32_t bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }

// Up where the bits that are cut off and the noise make a whole.
WPADAMW_HOST_DEVICE bfloat16 noisy_bfloat16(float value, uint32_t noise) {
  const uint32_t bits = bits_of(value), rounded = (bits + noise) >> kBitsOfNoise;
  return {static_cast<uint16_t>(is_nan(bits) ? 0x7fc0u : rounded)};
}

// Codes of blocks.

// Of numbers without a sign: their bits have their order, and NaN is above all.
WPADAMW_HOST_DEVICE int32_t magnitude_of(float value) {
  return static_cast<int32_t>(bits_of(value) & 0x7fffffffu);
}
// Of the largest magnitude in a block.
WPADAMW_HOST_DEVICE float scale_of(int32_t magnitude) {
  return float_of(magnitude > 0x7f800000 ? 0x7fc00000u : static_cast<uint32_t>(magnitude));
}

// What roots are multiplied by is a little too large, so that the largest number has the largest code
// whatever is rounded.
constexpr float kAbove = 1.0f + 0x1p-22f;
// Noise stays this far below a whole, so that what has been decoded is rounded to its own code.
constexpr int32_t kMostNoise = (1 << kBitsOfNoise) - 128;

// Rounded down after a share of the way to the next one; 0 for what is no number.
WPADAMW_HOST_DEVICE int32_t rounded_code(float root, float factor, float share, int32_t most) {
  const float moved = root * factor + share;
  const auto code = static_cast<int32_t>(moved > 0.0f ? moved : 0.0f);
  return code < most ? code : most;
}

// A number with a sign is the square of its code, of the scale.
struct Int8 {
  using code_t = int8_t;

  static WPADAMW_HOST_DEVICE float factor_of(float scale) {
    return 127.0f * kAbove / std::sqrt(scale);
  }
  static WPADAMW_HOST_DEVICE int32_t code_of(float value, float factor, uint32_t) {
    const int32_t code = rounded_code(std::sqrt(std::fabs(value)), factor, 0.5f, 127);
    return value < 0.0f ? -code : code;
  }
  static WPADAMW_HOST_DEVICE float number_of(int32_t code, float scale) {
    const float root = float(code) * (1.0f / 127.0f);
    return root * std::fabs(root) * scale;
  }
};

// A mean of squares is the fourth power.
struct UInt8 {
  using code_t = uint8_t;

  static WPADAMW_HOST_DEVICE float factor_of(float scale) {
    return 255.0f * kAbove / std::sqrt(std::sqrt(scale));
  }
  static WPADAMW_HOST_DEVICE int32_t code_of(float value, float factor, uint32_t noise) {
    const auto found = static_cast<int32_t>(noise);
    const float share = float(found < kMostNoise ? found : kMostNoise) * 0x1p-16f;
    const float root = std::sqrt(std::sqrt(std::fabs(value)));
    const int32_t code = rounded_code(root, factor, share, 255);
    const int32_t least = value > 0.0f;  // what is not zero stays so: it may be divided by
    return code > least ? code : least;
  }
  static WPADAMW_HOST_DEVICE float number_of(int32_t code, float scale) {
    const float root = float(code) * (1.0f / 255.0f);
    const float square = root * root;
    return square * square * scale;
  }
};

// Weights in two parts: a bfloat16 parameter, and what it lacks.

struct Parts {
  bfloat16 high;
  int16_t rest;
};

WPADAMW_HOST_DEVICE float joined(bfloat16 high, int16_t rest) {
  // Below a zero from outside there is nothing: its sign would be borrowed from.
  const bool is_below_zero = (high.bits & 0x7fffu) == 0 && rest < 0;
  const int32_t lower = is_below_zero ? 0 : rest;
  return float_of((uint32_t{high.bits} << 16) + static_cast<uint32_t>(lower));
}

WPADAMW_HOST_DEVICE Parts split(float value) {
  const uint32_t found = bits_of(value), bits = is_nan(found) ? 0x7fc00000u : found;
  const auto rest = static_cast<int16_t>(bits & 0xffffu);
  const uint32_t high = bits - static_cast<uint32_t>(int32_t{rest});
  return {{static_cast<uint16_t>(high >> 16)}, rest};
}

}  // namespace wpadamw
