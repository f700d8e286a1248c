// The CUDA loop over what is stored in small formats: csrc/cpu/stored_loop.h, a chunk each block.
#pragma once

#include "check.h"
#include "stored_elements.h"
#include "sum_kernel.h"

namespace wpadamw::cuda {
namespace {

// What a step is tracked by, or a rule's terms: summed by halves over a chunk.
template <int kNum>
struct ChunkSums {
  float at[kNum > 0 ? kNum : 1][kWidth];

  // All threads of a block call it. What lacks is 0.
  __device__ void write(int n, double* partial) {
#pragma unroll
    for (int t = 0; t < kNum; ++t) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) at[t][j] = j < n ? at[t][j] : 0.0f;
      const double sum = sum_of_block(at[t]);
      if (threadIdx.x == 0) partial[int64_t{t} * gridDim.x + blockIdx.x] = sum;
    }
  }
};

template <typename Rule>
__device__ void run_stored_step(const StoredArguments<Rule>& arguments, const Chunk& chunk,
                                uintptr_t grad, double* partial) {
  StoredElements<Rule, Operation::kStepAndPredict> elements(arguments, chunk, grad);
  const RowOf<Rule, float> row = arguments.row_of(chunk.tensor);
  elements.load(partial != nullptr);
  elements.undo();
  ChunkSums<kNumTracked> sums;
  float (&old)[kWidth] = sums.at[1];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) old[j] = elements.weight[j];
  elements.step(row);
  const double count = arguments.count_of(chunk.tensor);
  elements.store_state(count);
  if (arguments.has_averages()) elements.move_averages();
  if (arguments.has_weights) elements.store_weight();
  float held[kWidth];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) held[j] = elements.weight[j];
  if (arguments.predicts) elements.predict(row.look, held);
  elements.store_param(held, count);
  if (partial == nullptr) return;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const float error = elements.shown[j] - elements.weight[j], moved = elements.weight[j] - old[j];
    sums.at[0][j] = error * error;
    sums.at[1][j] = moved * moved;
    sums.at[2][j] = error * moved;
  }
  sums.write(elements.range.n, partial);
}

// A prediction, or a restore.
template <typename Rule, Operation kOperation>
__device__ void run_stored_move(const StoredArguments<Rule>& arguments, const Chunk& chunk) {
  const bool moves = kOperation == Operation::kPredict && !arguments.moves_nothing(chunk.tensor);
  if (kOperation == Operation::kPredict && !arguments.has_weights && !moves) return;
  StoredElements<Rule, kOperation> elements(arguments, chunk, 0);
  elements.load(false);
  elements.undo();
  if (moves) elements.predict(arguments.row_of(chunk.tensor).look, elements.weight);
  elements.store_param(elements.weight, 0.0);
}

// `partial`: of a step that is tracked, else null.
template <typename Rule, Operation kOperation>
__global__ void __launch_bounds__(kThreads, 1)
    stored_kernel(const StoredArguments<Rule> arguments, double* partial) {
  if (arguments.is_void()) return;
  const Chunk chunk = arguments.chunks[blockIdx.x];
  if constexpr (is_step(kOperation)) {
    const uintptr_t grad = arguments.grads[chunk.tensor];
    if (grad != 0) run_stored_step(arguments, chunk, grad, partial);
  } else {
    run_stored_move<Rule, kOperation>(arguments, chunk);
  }
}

template <typename Rule>
__global__ void __launch_bounds__(kThreads)
    stored_sum_kernel(const StoredArguments<Rule> arguments, double* partial) {
  const Chunk chunk = arguments.chunks[blockIdx.x];
  const uintptr_t grad = arguments.grads[chunk.tensor];
  if (grad == 0) return;
  StoredElements<Rule, Operation::kStep> elements(arguments, chunk, grad);
  const RowOf<Rule, float> row = arguments.row_of(chunk.tensor);
  const float factor = arguments.factor();
  elements.load(false);
  elements.undo();
  ChunkSums<Rule::kNumTerms> sums;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const auto terms = Rule::terms(elements.weight[j], elements.state_of(j),
                                   elements.grad[j] * factor, row.step, row.look);
#pragma unroll
    for (int t = 0; t < Rule::kNumTerms; ++t) sums.at[t][j] = terms.at[t];
  }
  sums.write(elements.range.n, partial);
}

template <typename Rule, Operation kOperation>
void launch_stored(const Bucket& bucket, const Call& call, double* partial) {
  const cudaLaunchConfig_t config = launch_config(bucket.num_chunks, kThreads, call.stream);
  const StoredArguments<Rule> arguments(bucket, call);
  check(cudaLaunchKernelEx(&config, stored_kernel<Rule, kOperation>, arguments, partial),
        "launch of stored_kernel");
}

template <typename Rule>
void launch_stored_sum(const Bucket& bucket, const Call& call, double* partial) {
  const cudaLaunchConfig_t config = launch_config(bucket.num_chunks, kThreads, call.stream);
  const StoredArguments<Rule> arguments(bucket, call);
  check(cudaLaunchKernelEx(&config, stored_sum_kernel<Rule>, arguments, partial),
        "launch of stored_sum_kernel");
}

// Rules whose state is kept whole have none.
template <typename Rule>
constexpr StoredTable stored_table() {
  if constexpr (!kCanStep<Rule>) {
    return {};
  } else if constexpr (Rule::kNumTerms == 0) {
    return {launch_stored<Rule, Operation::kStepAndPredict>,
            launch_stored<Rule, Operation::kPredict>, launch_stored<Rule, Operation::kRestore>,
            nullptr};
  } else {
    return {launch_stored<Rule, Operation::kStepAndPredict>,
            launch_stored<Rule, Operation::kPredict>, launch_stored<Rule, Operation::kRestore>,
            launch_stored_sum<Rule>};
  }
}

}  // namespace
}  // namespace wpadamw::cuda
