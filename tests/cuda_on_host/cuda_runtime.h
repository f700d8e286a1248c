// Stands in for CUDA's header, so that the kernels' own source runs on the host: a launch is a loop
// over blocks and threads. For tests on machines without a GPU.
#pragma once

#include <cstddef>

#define __global__
#define __device__
#define __launch_bounds__(...)

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct dim3 {
  unsigned x;
  dim3(unsigned x = 1) : x(x) {}
};

inline thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

template <typename... parameters_t, typename... arguments_t>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(parameters_t...),
                               const arguments_t&... arguments) {
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) kernel(arguments...);
  }
  return cudaSuccess;
}

struct cudaFuncAttributes {};

template <typename kernel_t>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, kernel_t*) {
  return cudaSuccess;
}

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
