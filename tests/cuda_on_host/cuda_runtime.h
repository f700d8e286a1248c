// Stands in for CUDA's header, so that the kernels' own source runs on the host: a launch is a loop
// over blocks and threads. For tests on machines without a GPU.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static thread_local  // blocks run one after the other

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct dim3 {
  unsigned x;
  dim3(unsigned x = 1) : x(x) {}
};

inline thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

// The threads of a block take turns at its barriers: each is a coroutine with a stack of its own.
class BlockOnHost {
 public:
  // The first thread tells whether the kernel has barriers; without one the others need no stacks.
  void run(unsigned num_threads, const std::function<void()>& kernel) {
    kernel_ = &kernel;
    if (threads_.size() < num_threads) threads_.resize(num_threads);  // contexts must not move
    if (is_waiting_after_turn(0)) {
      for (bool is_any_waiting = true; is_any_waiting;) {
        is_any_waiting = false;
        for (unsigned i = 1; i < num_threads; ++i) is_any_waiting |= is_waiting_after_turn(i);
        is_any_waiting |= is_waiting_after_turn(0);
      }
    } else {
      for (threadIdx.x = 1; threadIdx.x < num_threads; ++threadIdx.x) kernel();
    }
  }

  void wait() {
    Thread& thread = threads_[threadIdx.x];
    swapcontext(&thread.context, &scheduler_);
  }

 private:
  struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    bool is_running = false;
  };

  bool is_waiting_after_turn(unsigned i) {
    Thread& thread = threads_[i];
    threadIdx.x = i;
    if (!thread.is_running) start(thread);
    swapcontext(&scheduler_, &thread.context);
    return thread.is_running;
  }

  void start(Thread& thread) {
    thread.stack.resize(1 << 16);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = &scheduler_;
    thread.is_running = true;
    makecontext(&thread.context, &BlockOnHost::enter, 0);
  }

  static void enter();

  const std::function<void()>* kernel_ = nullptr;
  ucontext_t scheduler_;
  std::vector<Thread> threads_;
};

inline thread_local BlockOnHost block_on_host;

inline void BlockOnHost::enter() {
  (*block_on_host.kernel_)();
  block_on_host.threads_[threadIdx.x].is_running = false;
}

inline void __syncthreads() { block_on_host.wait(); }

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
  const std::function<void()> run_thread = [&] { kernel(arguments...); };
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    block_on_host.run(blockDim.x, run_thread);
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
