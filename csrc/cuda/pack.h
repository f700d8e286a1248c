// Neighbouring elements in registers, moved by 16-byte accesses where there are so many.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "launch.h"

namespace wpadamw::cuda {

static_assert(kAccessBytes == sizeof(uint4));

template <typename value_t, int kWidth>
struct Pack {
  static constexpr int kAccesses = kWidth * static_cast<int>(sizeof(value_t)) / kAccessBytes;
  static_assert(kWidth == 1 || kAccesses * kAccessBytes == kWidth * sizeof(value_t));

  value_t values[kWidth];

  __device__ void load(const value_t* from) {
    if constexpr (kWidth == 1) {
      values[0] = *from;
    } else {
#pragma unroll
      for (int k = 0; k < kAccesses; ++k) {
        const uint4 bits = reinterpret_cast<const uint4*>(from)[k];
        std::memcpy(values + k * (kWidth / kAccesses), &bits, kAccessBytes);
      }
    }
  }

  __device__ void store(value_t* to) const {
    if constexpr (kWidth == 1) {
      *to = values[0];
    } else {
#pragma unroll
      for (int k = 0; k < kAccesses; ++k) {
        uint4 bits;
        std::memcpy(&bits, values + k * (kWidth / kAccesses), kAccessBytes);
        reinterpret_cast<uint4*>(to)[k] = bits;
      }
    }
  }
};

// Elements in a 16-byte access of the narrower type.
template <typename a_t, typename b_t>
constexpr int pack_width() {
  return kAccessBytes / static_cast<int>(sizeof(a_t) < sizeof(b_t) ? sizeof(a_t) : sizeof(b_t));
}

__device__ inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kAccessBytes == 0;
}

}  // namespace wpadamw::cuda
