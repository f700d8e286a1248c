// The one attribute that lets a per-element function run in CPU loops and in CUDA kernels.
#pragma once

#if defined(__CUDACC__)
#define WPADAMW_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Always inlined: the CPU loop is compiled once per instruction set, and a shared out-of-line copy
// of an inline function could come from the wrong one.
#define WPADAMW_HOST_DEVICE inline __attribute__((always_inline))
#endif
