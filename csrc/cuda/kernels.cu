// What needs no rule: the choice of a kernel, and the sums of tensors from those of their chunks.
#include "check.h"
#include "launch.h"

namespace wpadamw::cuda {
namespace {

constexpr int kThreadsPerBlock = 128;

// The first chunk of a tensor, or the first of those after it.
__device__ int64_t first_chunk(const Chunk* chunks, int64_t num_chunks, int64_t tensor) {
  int64_t first = 0, past = num_chunks;
  while (first < past) {
    const int64_t middle = (first + past) / 2;
    if (chunks[middle].tensor < tensor) {
      first = middle + 1;
    } else {
      past = middle;
    }
  }
  return first;
}

// One thread per tensor, from its first chunk to its last.
__global__ void add_chunks(const Chunk* chunks, int64_t num_chunks, const uintptr_t* grads,
                           int64_t num_tensors, int num_terms, const double* partial,
                           double* sums) {
  const int64_t tensor = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (tensor >= num_tensors) return;
  const bool has_grad = grads[tensor] != 0;
  const int64_t first = first_chunk(chunks, num_chunks, tensor);
  const int64_t past = has_grad ? first_chunk(chunks, num_chunks, tensor + 1) : first;
  for (int t = 0; t < num_terms; ++t) {
    double sum = 0.0;
#pragma unroll 8
    for (int64_t i = first; i < past; ++i) sum += partial[t * num_chunks + i];
    sums[t * num_tensors + tensor] = sum;
  }
}

// One thread, from the first number to the last.
__global__ void add_numbers(const double* numbers, int64_t count, double* total) {
  double sum = 0.0;
#pragma unroll 8
  for (int64_t i = 0; i < count; ++i) sum += numbers[i];
  *total = sum;
}

int position_of(const Bucket& bucket, const Call& call) {
  return wpadamw::position_of(bucket.param_dtype, call.grad_dtype);
}

void sum_by(Sum of_chunks, const Bucket& bucket, const Call& call, int num_terms, double* partial,
            double* sums) {
  if (bucket.num_tensors == 0) return;
  if (bucket.num_chunks > 0) of_chunks(bucket, call, partial);
  const int64_t num_blocks = (bucket.num_tensors + kThreadsPerBlock - 1) / kThreadsPerBlock;
  const cudaLaunchConfig_t config = launch_config(num_blocks, kThreadsPerBlock, call.stream);
  check(cudaLaunchKernelEx(&config, add_chunks, bucket.chunks, bucket.num_chunks, bucket.grads,
                           bucket.num_tensors, num_terms, static_cast<const double*>(partial),
                           sums),
        "launch of add_chunks");
}

Sum stored_run(const StoredTable& table, Operation operation) {
  if (is_step(operation)) return table.step;
  return operation == Operation::kPredict ? table.predict : table.restore;
}

}  // namespace

void run(const Bucket& bucket, const Call& call, const Kernels& kernels) {
  if (bucket.num_chunks == 0) return;
  if (bucket.is_small()) return stored_run(kernels.stored, call.operation)(bucket, call, nullptr);
  const RunTable& table = kernels.run[position_of(bucket, call)];
  table.at[static_cast<int>(call.operation)][bucket.has_weights](bucket, call);
}

void sum(const Bucket& bucket, const Call& call, const Kernels& kernels, int num_terms,
         double* partial, double* sums) {
  const SumTable& table = kernels.sum[position_of(bucket, call)];
  const Sum of_chunks = bucket.is_small() ? kernels.stored.sum : table.at[bucket.has_weights];
  sum_by(of_chunks, bucket, call, num_terms, partial, sums);
}

void track(const Bucket& bucket, const Call& call, const Kernels& kernels, double* partial,
           double* sums) {
  const SumTable& table = kernels.track[position_of(bucket, call)];
  const Sum of_chunks = bucket.is_small() ? kernels.stored.step : table.at[bucket.has_weights];
  sum_by(of_chunks, bucket, call, kNumTracked, partial, sums);
}

void total(const double* numbers, int64_t count, double* total, void* stream) {
  const cudaLaunchConfig_t config = launch_config(1, 1, stream);
  check(cudaLaunchKernelEx(&config, add_numbers, numbers, count, total), "launch of add_numbers");
}

std::string why_not() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) return std::string("no CUDA device: ") + cudaGetErrorString(status);
  if (count == 0) return "no CUDA device";
  cudaFuncAttributes attributes;
  const cudaError_t has_image = cudaFuncGetAttributes(&attributes, add_chunks);
  return has_image == cudaSuccess ? "" : cudaGetErrorString(has_image);
}

}  // namespace wpadamw::cuda
