// How a finished block of parameters goes to memory.
#pragma once

#include <cstdint>
#include <cstring>

#include "../host_device.h"

// Not the large one where the small one has all.
#if defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace wpadamw::cpu::WPADAMW_ISA {
namespace {

#if defined(__x86_64__)

#if defined(__AVX512F__)
using Vector = __m512i;
WPADAMW_HOST_DEVICE void stream(Vector* to, const Vector* from) {
  _mm512_stream_si512(to, _mm512_load_si512(from));
}
#else
using Vector = __m128i;
WPADAMW_HOST_DEVICE void stream(Vector* to, const Vector* from) {
  _mm_stream_si128(to, _mm_load_si128(from));
}
#endif

// Streaming stores do not read the line that they overwrite: 32 bytes per parameter instead of 36.
// The compiler emits them only for intrinsics. `from` is aligned, `to` need not be.
template <typename value_t>
WPADAMW_HOST_DEVICE void write_out(value_t* to, const value_t* from, int64_t n, bool streaming) {
  const size_t num_bytes = static_cast<size_t>(n) * sizeof(value_t);
  if (!streaming || reinterpret_cast<uintptr_t>(to) % sizeof(Vector) != 0) {
    std::memcpy(to, from, num_bytes);
    return;
  }
  // Whole vectors: streaming blocks are.
  for (size_t k = 0; k < num_bytes / sizeof(Vector); ++k) {
    stream(reinterpret_cast<Vector*>(to) + k, reinterpret_cast<const Vector*>(from) + k);
  }
}

#else

template <typename value_t>
WPADAMW_HOST_DEVICE void write_out(value_t* to, const value_t* from, int64_t n, bool) {
  std::memcpy(to, from, static_cast<size_t>(n) * sizeof(value_t));
}

#endif

}  // namespace
}  // namespace wpadamw::cpu::WPADAMW_ISA
