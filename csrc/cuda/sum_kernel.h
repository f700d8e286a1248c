// The sums of a rule's terms over the chunks of a bucket, one block each chunk: by halves, as
// csrc/cpu/sum_loop.h adds them.
#pragma once

#include "check.h"
#include "elements.h"

namespace wpadamw::cuda {
namespace {

template <typename Rule, typename param_t, typename grad_t, bool kHasBackup>
struct SumBlock : Elements<Rule, param_t, grad_t, Operation::kStep, kHasBackup> {
  using Base = Elements<Rule, param_t, grad_t, Operation::kStep, kHasBackup>;
  using typename Base::real_t;
  using Base::kPacks;
  using Base::kWidth;
  using Terms = Values<real_t, Rule::kNumTerms>;
  template <int kN>
  using Loaded = typename Base::template Loaded<kN>;
  using Base::Base;

  // Of one thread: its packs lie kThreads * kWidth elements apart.
  struct Sums {
    Terms at[kPacks][kWidth];
  };

  template <int kN>
  __device__ Terms terms(const Loaded<kN>& loaded, int j) const {
    const Element<Rule, real_t> element = this->element(loaded, j);
    return Rule::terms(element.weight, element.state, this->gradient(loaded, j), this->row.step,
                       this->row.look);
  }

  __device__ void fill_pack(const Arguments<Rule, real_t>& arguments, int i,
                            Terms* terms_of_pack) const {
    Loaded<kWidth> loaded;
    this->load(i, loaded);
    this->undo(arguments, loaded);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) terms_of_pack[j] = terms(loaded, j);
  }

  __device__ void fill_singly(const Arguments<Rule, real_t>& arguments, int i,
                              Terms* terms_of_pack) const {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      terms_of_pack[j] = Terms{};
      if (i + j >= this->numel) continue;
      Loaded<1> loaded;
      this->load(i + j, loaded);
      this->undo(arguments, loaded);
      terms_of_pack[j] = terms(loaded, 0);
    }
  }

  __device__ void fill(const Arguments<Rule, real_t>& arguments, Sums& sums) const {
    const bool has_packs = this->has_packs();
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int i = (p * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
      if (has_packs && i + kWidth <= this->numel) {
        fill_pack(arguments, i, sums.at[p]);
      } else {
        fill_singly(arguments, i, sums.at[p]);
      }
    }
  }

  // The halvings whose elements lie in one thread's packs.
  static __device__ void add_packs(Sums& sums) {
#pragma unroll
    for (int half = kPacks / 2; half > 0; half /= 2) {
#pragma unroll
      for (int p = 0; p < half; ++p) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) add(sums.at[p][j], sums.at[p + half][j]);
      }
    }
  }

  static __device__ void add(Terms& to, const Terms& from) {
#pragma unroll
    for (int t = 0; t < Rule::kNumTerms; ++t) to.at[t] += from.at[t];
  }
};

// The sum of one term of all threads, in thread 0: halvings between threads, then within its pack.
template <int kWidth, typename real_t>
__device__ real_t sum_of_block(real_t (&values)[kWidth]) {
  __shared__ real_t shared[kWidth][kThreads];
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) shared[j][thread] = values[j];
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread >= half) continue;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) shared[j][thread] = values[j] += shared[j][thread + half];
  }
  __syncthreads();  // the next term's values may be written
#pragma unroll
  for (int half = kWidth / 2; half > 0; half /= 2) {
#pragma unroll
    for (int j = 0; j < half; ++j) values[j] += values[j + half];
  }
  return values[0];
}

template <typename Rule, typename param_t, typename grad_t, bool kHasBackup>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const Arguments<Rule, typename RealOf<param_t>::type> arguments, double* partial) {
  using Block = SumBlock<Rule, param_t, grad_t, kHasBackup>;
  const Chunk chunk = arguments.chunks[blockIdx.x];
  const uintptr_t grad = arguments.grads[chunk.tensor];
  if (grad == 0) return;
  typename Block::Sums sums;
  Block(arguments, chunk, grad).fill(arguments, sums);
  Block::add_packs(sums);
#pragma unroll
  for (int t = 0; t < Rule::kNumTerms; ++t) {
    typename Block::real_t values[Block::kWidth];
#pragma unroll
    for (int j = 0; j < Block::kWidth; ++j) values[j] = sums.at[0][j].at[t];
    const double sum = sum_of_block(values);
    if (threadIdx.x == 0) partial[int64_t{t} * gridDim.x + blockIdx.x] = sum;
  }
}

template <typename Rule, typename dtypes, bool kHasBackup>
void launch_sum(const Bucket& bucket, const Call& call, double* partial) {
  const cudaLaunchConfig_t config = launch_config(bucket.num_chunks, kThreads, call.stream);
  const Arguments<Rule, typename dtypes::real_t> arguments(bucket, call);
  check(cudaLaunchKernelEx(
            &config,
            sum_kernel<Rule, typename dtypes::param_t, typename dtypes::grad_t, kHasBackup>,
            arguments, partial),
        "launch of sum_kernel");
}

template <typename Rule, typename dtypes, bool kHasBackup>
constexpr Sum sum_or_null() {
  if constexpr (Rule::kNumTerms == 0) {
    return nullptr;
  } else if constexpr (!kCanStep<Rule>) {  // knows no true weights: what parameters hold will do
    return launch_sum<Rule, dtypes, false>;
  } else if constexpr (has_source<Rule, dtypes>(kHasBackup ? Source::kBackup : Source::kParam)) {
    return launch_sum<Rule, dtypes, kHasBackup>;
  } else {
    return nullptr;
  }
}

template <typename Rule, typename dtypes>
constexpr SumTable sum_table() {
  return {{sum_or_null<Rule, dtypes, false>(), sum_or_null<Rule, dtypes, true>()}};
}

}  // namespace
}  // namespace wpadamw::cuda
