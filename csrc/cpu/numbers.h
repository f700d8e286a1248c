// Numbers of a state in small formats: decoded to float32, and encoded again.
#pragma once

#include <algorithm>

#include "../formats.h"
#include "kernels.h"

namespace wpadamw::cpu::WPADAMW_ISA {
namespace {

// Elements that are decoded at a time: with all that belongs to them they stay in the caches of a core.
constexpr int64_t kPiece = 1024;
static_assert(kPiece % kFormatBlock == 0 && kPiece % kBlock == 0 && kChunkNumel % kPiece == 0);

WPADAMW_HOST_DEVICE float scale_of_block(const float* values) {
  int32_t largest = 0;
  for (int j = 0; j < kFormatBlock; ++j) {
    const int32_t magnitude = magnitude_of(values[j]);
    largest = magnitude > largest ? magnitude : largest;
  }
  return scale_of(largest);
}

// Leaves the values that can be read again. Loops of a length and of one width that compilers know.
template <typename Coded>
WPADAMW_HOST_DEVICE void store_block(float* values, float scale, float factor, uint32_t first,
                                     typename Coded::code_t* to) {
  alignas(64) int32_t codes[kFormatBlock];
#pragma GCC ivdep
  for (int j = 0; j < kFormatBlock; ++j) {
    codes[j] = Coded::code_of(values[j], factor, noise_at(static_cast<uint32_t>(j), first));
  }
#pragma GCC ivdep
  for (int j = 0; j < kFormatBlock; ++j) values[j] = Coded::number_of(codes[j], scale);
  for (int j = 0; j < kFormatBlock; ++j) to[j] = static_cast<typename Coded::code_t>(codes[j]);
}

// Whole blocks, at most those of a piece. Roots of all scales are taken together: one by one each
// would be waited for.
template <typename Coded>
void store_blocks(float* values, int64_t num_blocks, uint32_t first,
                  typename Coded::code_t* codes, float* scales) {
  float factors[kPiece / kFormatBlock];
  for (int64_t b = 0; b < num_blocks; ++b) scales[b] = scale_of_block(values + b * kFormatBlock);
  for (int64_t b = 0; b < num_blocks; ++b) factors[b] = Coded::factor_of(scales[b]);
  for (int64_t b = 0; b < num_blocks; ++b) {
    const int64_t i = b * kFormatBlock;
    store_block<Coded>(values + i, scales[b], factors[b], first + static_cast<uint32_t>(i),
                       codes + i);
  }
}

template <typename Coded>
void load_codes(const typename Coded::code_t* codes, const float* scales, int64_t n, float* to) {
  for (int64_t begin = 0; begin < n; begin += kFormatBlock) {
    const float scale = scales[begin / kFormatBlock];
    const int64_t end = std::min<int64_t>(begin + kFormatBlock, n);
#pragma GCC ivdep
    for (int64_t j = begin; j < end; ++j) to[j] = Coded::number_of(codes[j], scale);
  }
}

template <typename Coded>
void store_codes(float* values, int64_t n, uint32_t first, typename Coded::code_t* codes,
                 float* scales) {
  const int64_t num_blocks = n / kFormatBlock, done = num_blocks * kFormatBlock, left = n - done;
  store_blocks<Coded>(values, num_blocks, first, codes, scales);
  if (left == 0) return;
  // The last block lacks elements: zeros do no harm.
  float rest[kFormatBlock] = {};
  typename Coded::code_t codes_of_rest[kFormatBlock];
  std::copy_n(values + done, left, rest);
  store_blocks<Coded>(rest, 1, first + static_cast<uint32_t>(done), codes_of_rest,
                      scales + num_blocks);
  std::copy_n(rest, left, values + done);
  std::copy_n(codes_of_rest, left, codes + done);
}

// A tensor of a state, from some element on: the first one of a block.
struct Numbers {
  Format format;
  void* memory;
  float* scales;
  int64_t place;  // in its tensor

  void load(int64_t n, float* to) const {
    if (format == Format::kInt8) {
      load_codes<Int8>(static_cast<const int8_t*>(memory), scales, n, to);
    } else if (format == Format::kUInt8) {
      load_codes<UInt8>(static_cast<const uint8_t*>(memory), scales, n, to);
    } else {
      const auto* values = static_cast<const bfloat16*>(memory);
#pragma GCC ivdep
      for (int64_t j = 0; j < n; ++j) to[j] = to_real(values[j]);
    }
  }

  // Leaves the values that can be read again: what follows goes by these.
  void store(float* values, int64_t n, uint32_t key) const {
    const uint32_t first = static_cast<uint32_t>(place) + key;
    auto* halves = static_cast<bfloat16*>(memory);
    if (format == Format::kInt8) {
      store_codes<Int8>(values, n, first, static_cast<int8_t*>(memory), scales);
    } else if (format == Format::kUInt8) {
      store_codes<UInt8>(values, n, first, static_cast<uint8_t*>(memory), scales);
    } else {
#pragma GCC ivdep
      for (int64_t j = 0; j < n; ++j) {
        halves[j] = noisy_bfloat16(values[j], noise_at(static_cast<uint32_t>(j), first));
        values[j] = to_real(halves[j]);
      }
    }
  }
};

}  // namespace
}  // namespace wpadamw::cpu::WPADAMW_ISA
