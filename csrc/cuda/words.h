// Neighbouring elements of any width as they lie in memory, in registers.
#pragma once

#include "../formats.h"
#include "pack.h"

namespace wpadamw::cuda {

// What one thread has of a chunk that is stored in small formats: an eighth of a block of codes.
constexpr int kWidth = kElementsPerThread;
constexpr int kThreadsPerFormatBlock = kFormatBlock / kWidth;

// Bytes of an element.
__device__ inline int size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }
__device__ inline int size_of(Format format) {
  return format == Format::kWhole ? 4 : has_scales(format) ? 1 : 2;
}

// Which of a thread's elements are there, and whether wide accesses find them.
struct Range {
  int n;
  bool has_packs;

  __device__ bool is_pack() const { return has_packs && n == kWidth; }
};

struct Words {
  uint32_t at[kWidth] = {};

  // All loads of a thread come before its first use of one. What lacks is 0.
  __device__ void load(const void* from, int size, const Range& range) {
    if (!range.is_pack()) return load_singly(from, size, range.n);
    if (size == 1) {
      const uint2 bits = *static_cast<const uint2*>(from);
      at[0] = bits.x, at[1] = bits.y;
      return;
    }
    set(0, static_cast<const uint4*>(from)[0]);
    if (size == 4) set(4, static_cast<const uint4*>(from)[1]);
  }

  __device__ void store(void* to, int size, const Range& range) const {
    if (!range.is_pack()) return store_singly(to, size, range.n);
    if (size == 1) {
      *static_cast<uint2*>(to) = {at[0], at[1]};
      return;
    }
    static_cast<uint4*>(to)[0] = get(0);
    if (size == 4) static_cast<uint4*>(to)[1] = get(4);
  }

  // Elements of a size that compilers know.

  template <typename bits_t>
  __device__ bits_t bits(int j) const {
    constexpr int kPerWord = 4 / sizeof(bits_t);
    return static_cast<bits_t>(at[j / kPerWord] >> (j % kPerWord * 8 * int{sizeof(bits_t)}));
  }

  template <typename bits_t>
  __device__ void put(int j, bits_t bits) {
    constexpr int kPerWord = 4 / sizeof(bits_t);
    const uint32_t moved = uint32_t{bits} << (j % kPerWord * 8 * int{sizeof(bits_t)});
    at[j / kPerWord] = j % kPerWord == 0 ? moved : at[j / kPerWord] | moved;
  }

 private:
  __device__ void set(int first, const uint4& bits) {
    at[first] = bits.x, at[first + 1] = bits.y, at[first + 2] = bits.z, at[first + 3] = bits.w;
  }
  __device__ uint4 get(int first) const {
    return {at[first], at[first + 1], at[first + 2], at[first + 3]};
  }

  template <typename bits_t>
  __device__ void load_each(const void* from, int n) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      put(j, j < n ? static_cast<const bits_t*>(from)[j] : bits_t{0});
    }
  }
  template <typename bits_t>
  __device__ void store_each(void* to, int n) const {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if (j < n) static_cast<bits_t*>(to)[j] = bits<bits_t>(j);
    }
  }

  __device__ void load_singly(const void* from, int size, int n) {
    if (size == 4) load_each<uint32_t>(from, n);
    if (size == 2) load_each<uint16_t>(from, n);
    if (size == 1) load_each<uint8_t>(from, n);
  }
  __device__ void store_singly(void* to, int size, int n) const {
    if (size == 4) store_each<uint32_t>(to, n);
    if (size == 2) store_each<uint16_t>(to, n);
    if (size == 1) store_each<uint8_t>(to, n);
  }
};

// Numbers of the floating-point types.

__device__ inline void widen(const Words& words, DType dtype, float (&to)[kWidth]) {
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    if (dtype == DType::kFloat32) to[j] = float_of(words.at[j]);
    if (dtype == DType::kBFloat16) to[j] = to_real(bfloat16{words.bits<uint16_t>(j)});
    if (dtype == DType::kFloat16) to[j] = to_real(float16{words.bits<uint16_t>(j)});
  }
}

__device__ inline Words narrowed(const float (&values)[kWidth], DType dtype) {
  Words words;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    if (dtype == DType::kFloat32) words.at[j] = bits_of(values[j]);
    if (dtype == DType::kBFloat16) words.put(j, Round<bfloat16>::from(values[j]).bits);
    if (dtype == DType::kFloat16) words.put(j, Round<float16>::from(values[j]).bits);
  }
  return words;
}

}  // namespace wpadamw::cuda
