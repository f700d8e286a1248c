// Counts, records and scalars of a bucket's parameters where the host must not wait for them: one
// thread per parameter.
#include "check.h"
#include "launch.h"

namespace wpadamw::cuda {
namespace {

constexpr int kThreadsPerBlock = 128;

__device__ void write_last(const Columns& columns, int64_t i) {
  const int64_t count = static_cast<int64_t>(columns.steps[i]);
  const int64_t last = columns.num_tensors + i;
  columns.scalars[last] = prediction_scalars(columns.predictions[i], count);
  columns.index[last] = moves_nothing(columns.predictions[i], count) ? -1 : static_cast<int32_t>(last);
}

__device__ void advance_step(const Columns& columns, int64_t i) {
  const StepOptions& options = *columns.options;
  const int64_t count = static_cast<int64_t>(columns.steps[i]) + 1;
  columns.scalars[i] =
      step_scalars(options.prediction, options.weight_decay, count, options.grad_factor);
  const bool is_void = columns.found_inf != nullptr && *columns.found_inf != 0.0f;
  if (!columns.has_grad[i] || is_void) return;
  columns.steps[i] = static_cast<float>(count);
  columns.predictions[i] = options.prediction.made != 0.0 ? options.prediction : Prediction{};
}

__device__ void advance_prediction(const Columns& columns, int64_t i) {
  if (columns.predictions[i].made == 0.0) columns.predictions[i] = columns.options->prediction;
  const int64_t count = static_cast<int64_t>(columns.steps[i]);
  columns.scalars[i] = prediction_scalars(columns.predictions[i], count);
}

__global__ void advance_kernel(const Columns columns, Operation operation) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= columns.num_tensors) return;
  columns.index[i] = static_cast<int32_t>(i);
  write_last(columns, i);
  if (is_step(operation)) advance_step(columns, i);
  if (operation == Operation::kPredict) advance_prediction(columns, i);
}

}  // namespace

void advance(const Columns& columns, Operation operation, void* stream) {
  if (columns.num_tensors == 0) return;
  const int64_t num_blocks = (columns.num_tensors + kThreadsPerBlock - 1) / kThreadsPerBlock;
  const cudaLaunchConfig_t config = launch_config(num_blocks, kThreadsPerBlock, stream);
  check(cudaLaunchKernelEx(&config, advance_kernel, columns, operation), "launch of advance_kernel");
}

}  // namespace wpadamw::cuda
