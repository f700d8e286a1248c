// What kernels on the device are handed, by value, and the calls that launch them.
#pragma once

#include <cstdint>
#include <string>

#include "../dtype.h"
#include "../operation.h"
#include "../scalars.h"
#include "../step_scalars.h"

namespace wpadamw::cuda {

// Elements of one block: so many that every thread has several 16-byte accesses of each array under
// way, so few that a bucket of small tensors fills the chip.
constexpr int kThreads = 256;
constexpr int kElementsPerThread = 8;
constexpr int kChunkNumel = kThreads * kElementsPerThread;

// Of one access to memory. Flat buffers begin at multiples of it.
constexpr int kAccessBytes = 16;

// The share of one block: up to kChunkNumel elements of one tensor, in memory order.
struct Chunk {
  uintptr_t param;  // address of the chunk's first element
  int64_t offset;   // of its state in the flat buffers, in elements
  int64_t begin;    // of the chunk in its tensor, in elements
  int32_t tensor;
  int32_t numel;
};

// Every pointer is to device memory.
struct Bucket {
  RuleId rule{};
  DType param_dtype{};
  const Chunk* chunks = nullptr;
  int64_t num_chunks = 0;
  int64_t num_tensors = 0;
  const uintptr_t* grads = nullptr;  // per tensor; 0: no gradient, steps leave it alone
  void* weight = nullptr;            // flat backup of the true weights, or null
  void* state[kMaxStates] = {};
};

// The scalars of a call: at most two rows here, or any number of them in device memory.
struct Rows {
  const double* scalars = nullptr;  // rows of kNumScalars in device memory; null: those below
  const int32_t* index = nullptr;   // with `scalars`: each tensor's row, then each tensor's last row
  double row[kNumScalars] = {};     // this operation's scalars
  double last[kNumScalars] = {};    // the prediction that the parameters hold
  bool holds_prediction = false;    // whether there is one; in `index` -1 says that there is none
};

struct Call {
  Operation operation{};
  DType grad_dtype{};
  Rows rows;
  const float* found_inf = nullptr;  // in device memory; not 0: the call does nothing
  void* stream = nullptr;
};

// Counts and records of a bucket's parameters in device memory, and the rows computed from them.
struct Columns {
  int64_t num_tensors = 0;
  float* steps = nullptr;
  Prediction* predictions = nullptr;
  const StepOptions* options = nullptr;  // of this call
  const bool* has_grad = nullptr;
  const float* found_inf = nullptr;
  Scalars<double>* scalars = nullptr;  // written: each tensor's row, then each tensor's last row
  int32_t* index = nullptr;            // written: which they are, as in Rows
};

// All of them throw std::runtime_error where a launch fails.
void run(const Bucket& bucket, const Call& call);
void advance(const Columns& columns, Operation operation, void* stream);

// Why no kernel of this build runs here, or an empty string.
std::string why_not();

}  // namespace wpadamw::cuda
