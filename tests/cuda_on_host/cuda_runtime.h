// Stands in for CUDA's header, so that the kernels' own source runs on the host: a launch is a loop
// over blocks and threads. For tests on machines without a GPU.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static thread_local  // blocks run one after the other

struct alignas(8) uint2 {
  unsigned x, y;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct dim3 {
  unsigned x;
  dim3(unsigned x = 1) : x(x) {}
};

inline thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

// The threads of a block take turns at its barriers: each is a coroutine with a stack of its own,
// which runs its thread of one block after the other. Jumps between them ask nothing of the system.
class BlockOnHost {
 public:
  // The first thread tells whether the kernel has barriers; without one the others need no turns.
  void run(unsigned num_threads, const std::function<void()>& kernel) {
    kernel_ = &kernel;
    if (turns_.size() < num_threads) turns_.resize(num_threads);
    if (is_waiting_after_turn(0)) {
      for (unsigned i = 1; i < num_threads; ++i) is_waiting_after_turn(i);
      while (is_any_waiting_after_turns(num_threads)) {}
    } else {
      for (threadIdx.x = 1; threadIdx.x < num_threads; ++threadIdx.x) kernel();
    }
  }

  // Of the thread that has the turn.
  void wait() {
    if (_setjmp(turns_[threadIdx.x].place) == 0) _longjmp(scheduler_, 1);
  }

 private:
  struct Turn {
    jmp_buf place;
    std::vector<char> stack;
    bool is_waiting = false;  // at a barrier
  };

  bool is_waiting_after_turn(unsigned i) {
    threadIdx.x = i;
    if (_setjmp(scheduler_) == 0) {
      if (!turns_[i].stack.empty()) _longjmp(turns_[i].place, 1);
      start(turns_[i]);
    }
    return turns_[threadIdx.x].is_waiting;
  }

  bool is_any_waiting_after_turns(unsigned num_threads) {
    bool is_any_waiting = false;
    for (unsigned i = 0; i < num_threads; ++i) {
      if (turns_[i].is_waiting) is_any_waiting |= is_waiting_after_turn(i);
    }
    return is_any_waiting;
  }

  static void start(Turn& turn) {
    turn.stack.resize(1 << 16);
    ucontext_t beginning;
    getcontext(&beginning);
    beginning.uc_stack.ss_sp = turn.stack.data();
    beginning.uc_stack.ss_size = turn.stack.size();
    makecontext(&beginning, &BlockOnHost::run_turns, 0);
    setcontext(&beginning);
  }

  static void run_turns();

  const std::function<void()>* kernel_ = nullptr;
  jmp_buf scheduler_;
  std::vector<Turn> turns_;
};

inline thread_local BlockOnHost block_on_host;

inline void BlockOnHost::run_turns() {
  for (;;) {
    block_on_host.turns_[threadIdx.x].is_waiting = true;
    (*block_on_host.kernel_)();
    block_on_host.turns_[threadIdx.x].is_waiting = false;
    block_on_host.wait();
  }
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
