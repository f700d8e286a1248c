// The CUDA loop: predict, restore and step over a bucket. One launch serves all tensors of a bucket,
// one block each chunk of one.
#pragma once

#include <utility>

#include "check.h"
#include "elements.h"

namespace wpadamw::cuda {
namespace {

template <typename Rule, typename param_t, typename grad_t, Operation kOperation, bool kHasBackup>
struct BucketBlock : Elements<Rule, param_t, grad_t, kOperation, kHasBackup> {
  using Base = Elements<Rule, param_t, grad_t, kOperation, kHasBackup>;
  using typename Base::real_t;
  template <int kN>
  using Loaded = typename Base::template Loaded<kN>;
  using Base::Base;

  bool moves = true;  // where it predicts: a prediction may move nothing

  // Returns what it holds, predicted by the first look.
  template <int kN>
  __device__ real_t run_element(Loaded<kN>& loaded, int j) const {
    Element<Rule, real_t> element = this->element(loaded, j);
    real_t gradient{};
    if constexpr (is_step(kOperation)) gradient = this->gradient(loaded, j);
    real_t held = apply<kOperation>(element, gradient, this->row);
    if constexpr (predicts(kOperation)) held = moves ? held : element.weight;
    loaded.weight.values[j] = element.weight;
#pragma unroll
    for (int k = 0; k < Rule::kNumStates; ++k) {
      loaded.state.at[k].values[j] = element.state.at[k];
    }
    return held;
  }

  template <int kN>
  __device__ void store(int i, const Loaded<kN>& loaded) const {
    if constexpr (is_step(kOperation)) {
      if constexpr (kHasBackup) loaded.weight.store(this->weight + i);
#pragma unroll
      for (int k = 0; k < Rule::kNumStates; ++k) loaded.state.at[k].store(this->state.at[k] + i);
    }
    loaded.param.store(this->param + i);
  }

  // All loads of a thread before its first use of one: they wait for memory together.
  __device__ void run_packs() const {
    constexpr int kWidth = Base::kWidth, kPacks = Base::kPacks;
    Loaded<kWidth> loaded[kPacks];
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int i = (p * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
      if (i + kWidth <= this->numel) this->load(i, loaded[p]);
    }
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int i = (p * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
      if (i + kWidth > this->numel) return;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        loaded[p].param.values[j] = Round<param_t>::from(run_element(loaded[p], j));
      }
      store(i, loaded[p]);
    }
  }

  __device__ void run_singly(const Arguments<Rule, real_t>& arguments, int begin) const {
#pragma unroll 1
    for (int i = begin + static_cast<int>(threadIdx.x); i < this->numel; i += kThreads) {
      Loaded<1> loaded;
      this->load(i, loaded);
      this->undo(arguments, loaded);
      real_t held = run_element(loaded, 0);
      if (predicts(kOperation) && moves) held = this->look_on(arguments, loaded, held);
      loaded.param.values[0] = Round<param_t>::from(held);
      store(i, loaded);
    }
  }

  __device__ void run(const Arguments<Rule, real_t>& arguments) const {
    const bool has_packs = this->has_packs(arguments);
    if (has_packs) run_packs();
    run_singly(arguments, has_packs ? this->numel / Base::kWidth * Base::kWidth : 0);
  }
};

// Blocks that a multiprocessor must have room for: so many that others load while one computes, so
// few that no register spills.
template <typename Rule, typename real_t>
constexpr int kMinBlocks = sizeof(real_t) == 4 && Rule::kNumStates < 4 ? 5 - Rule::kNumStates : 1;

template <typename Rule, typename param_t, typename grad_t, Operation kOperation, bool kHasBackup>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Rule, typename RealOf<param_t>::type>)
    bucket_kernel(const Arguments<Rule, typename RealOf<param_t>::type> arguments) {
  if (arguments.is_void()) return;
  const Chunk chunk = arguments.chunks[blockIdx.x];
  uintptr_t grad = 0;
  if constexpr (is_step(kOperation)) {
    grad = arguments.grads[chunk.tensor];
    if (grad == 0) return;
  }
  BucketBlock<Rule, param_t, grad_t, kOperation, kHasBackup> block(arguments, chunk, grad);
  if constexpr (is_step(kOperation)) block.moves = arguments.predicts;
  if constexpr (kOperation == Operation::kPredict) {
    block.moves = !arguments.moves_nothing(chunk.tensor);
    if (!kHasBackup && !block.moves) return;  // it holds its true weights
  }
  block.run(arguments);
}

// An update that is not predicted from is done by the kernel of one that is: half of the machine code.
constexpr Operation compiled_for(Operation operation) {
  return is_step(operation) ? Operation::kStepAndPredict : operation;
}

template <typename Rule, typename dtypes, Operation kOperation, bool kHasBackup>
void launch_bucket(const Bucket& bucket, const Call& call) {
  const cudaLaunchConfig_t config = launch_config(bucket.num_chunks, kThreads, call.stream);
  const Arguments<Rule, typename dtypes::real_t> arguments(bucket, call);
  check(cudaLaunchKernelEx(&config,
                           bucket_kernel<Rule, typename dtypes::param_t, typename dtypes::grad_t,
                                         kOperation, kHasBackup>,
                           arguments),
        "launch of bucket_kernel");
}

template <typename Rule, typename dtypes, Operation kOperation, bool kHasBackup>
constexpr Run run_or_null() {
  if constexpr (kCanStep<Rule> &&
                has_source<Rule, dtypes>(kHasBackup ? Source::kBackup : Source::kParam)) {
    return launch_bucket<Rule, DtypesOf<kOperation, dtypes>, compiled_for(kOperation), kHasBackup>;
  } else {
    return nullptr;
  }
}

template <typename Rule, typename dtypes, int... kOperations>
constexpr RunTable run_table(std::integer_sequence<int, kOperations...>) {
  return {{{run_or_null<Rule, dtypes, Operation(kOperations), false>(),
            run_or_null<Rule, dtypes, Operation(kOperations), true>()}...}};
}

template <typename Rule, typename dtypes>
constexpr RunTable run_table() {
  return run_table<Rule, dtypes>(std::make_integer_sequence<int, kNumOperations>());
}

}  // namespace
}  // namespace wpadamw::cuda
