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

  // Returns what it holds, predicted by the first look: the direction is at hand.
  template <int kN>
  __device__ real_t step_element(Loaded<kN>& loaded, int j) const {
    Element<Rule, real_t> element = this->element(loaded, j);
    const real_t predicted = apply<kOperation>(element, this->gradient(loaded, j), this->row);
    loaded.weight.values[j] = element.weight;
#pragma unroll
    for (int k = 0; k < Rule::kNumStates; ++k) {
      loaded.state.at[k].values[j] = element.state.at[k];
    }
    return moves ? predicted : element.weight;
  }

  template <int kN>
  __device__ void run_loaded(const Arguments<Rule, real_t>& arguments, int i,
                             Loaded<kN>& loaded) const {
    real_t held[kN];
    this->undo(arguments, loaded);
    run_undone(arguments, i, loaded, held);
  }

  // An update is stored before further looks: they find its registers free.
  template <int kN>
  __device__ void run_undone(const Arguments<Rule, real_t>& arguments, int i, Loaded<kN>& loaded,
                             real_t (&held)[kN]) const {
    constexpr int kNumDone = is_step(kOperation) ? 1 : 0;
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      if constexpr (is_step(kOperation)) held[j] = step_element(loaded, j);
      if constexpr (!is_step(kOperation)) held[j] = this->element(loaded, j).weight;
    }
    if constexpr (is_step(kOperation)) {
      store_updated(i, loaded);
      if (arguments.has_averages()) move_averages(arguments, i, loaded);
    }
    if constexpr (predicts(kOperation)) {
      this->look_on(arguments, loaded, kNumDone, moves ? arguments.num_looks : 0, held);
    }
#pragma unroll
    for (int j = 0; j < kN; ++j) loaded.param.values[j] = Round<param_t>::from(held[j]);
    loaded.param.store(this->param + i);
  }

  template <int kN>
  __device__ void store_updated(int i, const Loaded<kN>& loaded) const {
    if constexpr (kHasBackup) loaded.weight.store(this->weight + i);
#pragma unroll
    for (int k = 0; k < Rule::kNumStates; ++k) loaded.state.at[k].store(this->state.at[k] + i);
  }

  // After the state has been stored: its registers are free. What is known of the chunk is read again
  // for the same reason.
  template <int kN>
  __device__ void move_averages(const Arguments<Rule, real_t>& arguments, int i,
                                const Loaded<kN>& loaded) const {
    real_t* averages = arguments.averages + arguments.chunks[blockIdx.x].offset + i;
    const real_t share = arguments.average_share_of(this->tensor);
    Pack<real_t, kN> average;
    average.load(averages);
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      average.values[j] = moved_average(average.values[j], loaded.weight.values[j], share);
    }
    average.store(averages);
  }

  // A block may do more with what has been loaded: it is `self`. All loads of a thread come before its
  // first use of one: they wait for memory together.
  template <typename Self>
  static __device__ void run_packs(const Self& self, const Arguments<Rule, real_t>& arguments) {
    constexpr int kWidth = Base::kWidth, kPacks = Base::kPacks;
    Loaded<kWidth> loaded[kPacks];
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int i = (p * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
      if (i + kWidth <= self.numel) self.load(i, loaded[p]);
    }
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int i = (p * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
      if (i + kWidth > self.numel) return;
      self.run_loaded(arguments, i, loaded[p]);
    }
  }

  template <typename Self>
  static __device__ void run_singly(const Self& self, const Arguments<Rule, real_t>& arguments,
                                    int begin) {
#pragma unroll 1
    for (int i = begin + static_cast<int>(threadIdx.x); i < self.numel; i += kThreads) {
      Loaded<1> loaded;
      self.load(i, loaded);
      self.run_loaded(arguments, i, loaded);
    }
  }

  template <typename Self>
  static __device__ void run(const Self& self, const Arguments<Rule, real_t>& arguments) {
    const bool has_packs = self.has_packs();
    if (has_packs) run_packs(self, arguments);
    run_singly(self, arguments, has_packs ? self.numel / Base::kWidth * Base::kWidth : 0);
  }
};

// Blocks that a multiprocessor must have room for: so many that others load while one computes, so
// few that no register spills.
template <typename Rule, typename param_t, Operation kOperation>
constexpr int min_blocks() {
  if (sizeof(param_t) > 4 || Rule::kNumStates > 3) return 1;
  return is_step(kOperation) && Rule::kNumStates > 1 ? 3 : 4;
}

template <typename Rule, typename param_t, typename grad_t, Operation kOperation, bool kHasBackup>
__global__ void __launch_bounds__(kThreads, min_blocks<Rule, param_t, kOperation>())
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
  block.run(block, arguments);
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
