// bfloat16 and IEEE half on the host, in integer arithmetic that compilers vectorise.
// Rounding is to nearest, ties to even, as in torch; any NaN becomes one quiet NaN.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace wpadamw {

struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

WPADAMW_HOST_DEVICE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

WPADAMW_HOST_DEVICE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

WPADAMW_HOST_DEVICE float to_real(float value) { return value; }
WPADAMW_HOST_DEVICE double to_real(double value) { return value; }
WPADAMW_HOST_DEVICE float to_real(bfloat16 value) { return float_of(uint32_t{value.bits} << 16); }

WPADAMW_HOST_DEVICE float to_real(float16 value) {
  const uint32_t magnitude = uint32_t{value.bits} & 0x7fffu;
  // The exponent field moves to float's place; 2^112 corrects its bias, exactly, subnormals too.
  const float finite = float_of(magnitude << 13) * 0x1p112f;
  const uint32_t special = 0x7f800000u | (magnitude << 13);
  const uint32_t bits = magnitude >= 0x7c00u ? special : bits_of(finite);
  return float_of(bits | ((uint32_t{value.bits} & 0x8000u) << 16));
}

template <typename value_t>
struct Round {
  template <typename real_t>
  static WPADAMW_HOST_DEVICE value_t from(real_t value) {
    return static_cast<value_t>(value);
  }
};

template <>
struct Round<bfloat16> {
  static WPADAMW_HOST_DEVICE bfloat16 from(float value) {
    const uint32_t bits = bits_of(value);
    // 0x7fff, and one more where the last kept bit is odd, carries exactly when rounding is up.
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return {static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded)};
  }
};

template <>
struct Round<float16> {
  static WPADAMW_HOST_DEVICE float16 from(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    // Normal halfs: rebias the exponent by 15 - 127, drop 13 bits of mantissa.
    const uint32_t odd = (magnitude >> 13) & 1u;
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + odd) >> 13;
    // Subnormal halfs are multiples of 2^-24: adding 0.5 leaves that multiple, rounded by the
    // addition itself, in the low bits of the sum.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
    const uint32_t half = magnitude >= (143u << 23) ? special : finite;
    return {static_cast<uint16_t>(sign | half)};
  }
};

// The type in which the mathematics for a parameter runs: its state, and its backup.
template <typename param_t>
struct RealOf {
  using type = float;
};
template <>
struct RealOf<double> {
  using type = double;
};

}  // namespace wpadamw
