// CUDA's status codes as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace wpadamw::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + " failed: " + cudaGetErrorString(status));
}

// One-dimensional, on a stream that is given as Python holds it.
inline cudaLaunchConfig_t launch_config(int64_t num_blocks, int num_threads, void* stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(num_blocks));
  config.blockDim = dim3(static_cast<unsigned>(num_threads));
  config.stream = static_cast<cudaStream_t>(stream);
  return config;
}

}  // namespace wpadamw::cuda
