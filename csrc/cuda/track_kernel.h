// A step that also tells how good predictions were, by sums over the chunks of a bucket: those of
// csrc/cpu/bucket_loop.h.
#pragma once

#include "bucket_kernel.h"
#include "stored_kernel.h"

namespace wpadamw::cuda {
namespace {

// Each element's terms wait in shared memory for all threads.
template <typename real_t>
struct Terms {
  real_t at[kNumTracked][kChunkNumel];
};

template <typename Rule, typename param_t, typename grad_t, bool kHasBackup>
struct TrackBlock : BucketBlock<Rule, param_t, grad_t, Operation::kStepAndPredict, kHasBackup> {
  using Base = BucketBlock<Rule, param_t, grad_t, Operation::kStepAndPredict, kHasBackup>;
  using typename Base::real_t;
  template <int kN>
  using Loaded = typename Base::template Loaded<kN>;
  using Base::Base;

  Terms<real_t>* terms = nullptr;

  template <int kN>
  __device__ void run_loaded(const Arguments<Rule, real_t>& arguments, int i,
                             Loaded<kN>& loaded) const {
    real_t shown[kN], old[kN], held[kN];
    if constexpr (kHasBackup) loaded.param.load(this->param + i);
#pragma unroll
    for (int j = 0; j < kN; ++j) shown[j] = to_real(loaded.param.values[j]);
    this->undo(arguments, loaded);
#pragma unroll
    for (int j = 0; j < kN; ++j) old[j] = this->element(loaded, j).weight;
    this->run_undone(arguments, i, loaded, held);
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      const real_t error = shown[j] - loaded.weight.values[j];
      const real_t moved = loaded.weight.values[j] - old[j];
      terms->at[0][i + j] = error * error;
      terms->at[1][i + j] = moved * moved;
      terms->at[2][i + j] = error * moved;
    }
  }
};

// The sum of each term by halves, in the first element's place.
template <typename real_t>
__device__ void sum_terms(Terms<real_t>& terms) {
  for (int half = kChunkNumel / 2; half > 0; half /= 2) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < half; i += kThreads) {
#pragma unroll
      for (int t = 0; t < kNumTracked; ++t) terms.at[t][i] += terms.at[t][i + half];
    }
  }
}

template <typename Rule, typename param_t, typename grad_t, bool kHasBackup>
__global__ void __launch_bounds__(kThreads, 1)  // left alone compilers spill for a second block
    track_kernel(const Arguments<Rule, typename RealOf<param_t>::type> arguments, double* partial) {
  using real_t = typename RealOf<param_t>::type;
  __shared__ Terms<real_t> terms;
  if (arguments.is_void()) return;
  const Chunk chunk = arguments.chunks[blockIdx.x];
  const uintptr_t grad = arguments.grads[chunk.tensor];
  if (grad == 0) return;
  TrackBlock<Rule, param_t, grad_t, kHasBackup> block(arguments, chunk, grad);
  block.moves = arguments.predicts;
  block.terms = &terms;
  for (int i = chunk.numel + static_cast<int>(threadIdx.x); i < kChunkNumel; i += kThreads) {
    for (int t = 0; t < kNumTracked; ++t) terms.at[t][i] = real_t{0};
  }
  block.run(block, arguments);
  sum_terms(terms);
  if (threadIdx.x != 0) return;
  for (int t = 0; t < kNumTracked; ++t) {
    partial[int64_t{t} * gridDim.x + blockIdx.x] = terms.at[t][0];
  }
}

template <typename Rule, typename dtypes, bool kHasBackup>
void launch_track(const Bucket& bucket, const Call& call, double* partial) {
  const cudaLaunchConfig_t config = launch_config(bucket.num_chunks, kThreads, call.stream);
  const Arguments<Rule, typename dtypes::real_t> arguments(bucket, call);
  check(cudaLaunchKernelEx(
            &config,
            track_kernel<Rule, typename dtypes::param_t, typename dtypes::grad_t, kHasBackup>,
            arguments, partial),
        "launch of track_kernel");
}

// One kernel of a rule serves all whose state is float32.
template <typename Rule, typename dtypes, bool kHasBackup>
constexpr Sum track_or_null() {
  if constexpr (!kCanStep<Rule> ||
                !has_source<Rule, dtypes>(kHasBackup ? Source::kBackup : Source::kParam)) {
    return nullptr;
  } else if constexpr (std::is_same_v<typename dtypes::real_t, float>) {
    return launch_stored<Rule, Operation::kStepAndPredict>;
  } else {
    return launch_track<Rule, dtypes, kHasBackup>;
  }
}

template <typename Rule, typename dtypes>
constexpr SumTable track_table() {
  return {{track_or_null<Rule, dtypes, false>(), track_or_null<Rule, dtypes, true>()}};
}

}  // namespace
}  // namespace wpadamw::cuda
