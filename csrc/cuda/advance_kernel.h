// Counts, records and scalars of a bucket's parameters where the host must not wait for them: one
// thread per parameter.
#pragma once

#include <cmath>

#include "check.h"
#include "launch.h"

namespace wpadamw::cuda {
namespace {

constexpr int kAdvanceThreads = 128;

// A record tells whether the last update has been predicted from, by these numbers.
constexpr double kNone = 0.0, kMade = 1.0, kNull = 2.0;

// One parameter.
template <typename Rule>
struct Entry {
  using Look = typename Rule::template Look<double>;
  using Step = typename Rule::template Step<double>;

  const Ledger& ledger;
  int64_t i;

  __device__ int num_further() const { return ledger.has_averages + ledger.is_noisy; }
  __device__ int looks_width() const { return ledger.num_looks * kNumLook<Rule>; }
  __device__ double* row(int64_t position) const {
    return ledger.scalars + position * (kNumStep<Rule> + num_further() + looks_width());
  }
  __device__ double* looks(int64_t position) const {
    return row(position) + kNumStep<Rule> + num_further();
  }
  __device__ double* record() const { return ledger.predictions + i * (1 + looks_width()); }
  __device__ int64_t count() const { return static_cast<int64_t>(ledger.steps[i]); }

  // Sums lie `stride` numbers apart.
  __device__ Row<Step, Look> scalars(int64_t count, int ahead, const double* sums,
                                     int64_t stride) const {
    const auto& hyper = *reinterpret_cast<const typename Rule::Hyper*>(ledger.hyper);
    const auto row = Rule::scalars(hyper, count, ahead, ledger.shares[ahead]);
    if constexpr (Rule::kNumTerms == 0) {
      return row;
    } else {
      Values<double, Rule::kNumTerms> values;
      for (int t = 0; t < Rule::kNumTerms; ++t) values.at[t] = sums[t * stride];
      return Rule::with_sums(hyper, row, values);
    }
  }

  // Of a weight in its average, see wpadamw/rules/averaged.py.
  __device__ double average_share(int64_t count) const {
    const double past = 1.0 - ledger.hyper[kNumFields<typename Rule::Hyper, double>];
    return (1.0 - past) / (1.0 - power(past, count));
  }

  template <typename part_t>
  static __device__ void write(double* to, const part_t& part) {
    if constexpr (!std::is_empty_v<part_t>) *reinterpret_cast<part_t*>(to) = part;
  }

  __device__ void write_looks(double* to, int64_t count, const double* sums,
                              int64_t stride) const {
    for (int ahead = 0; ahead < ledger.num_looks; ++ahead) {
      write(to + ahead * kNumLook<Rule>, scalars(count, ahead, sums, stride).look);
    }
  }

  __device__ void copy_looks(double* to, const double* from) const {
    for (int k = 0; k < looks_width(); ++k) to[k] = from[k];
  }

  __device__ void write_record(double kind, const double* looks) const {
    *record() = kind;
    for (int k = 0; k < looks_width(); ++k) record()[1 + k] = kind == kMade ? looks[k] : 0.0;
  }

  __device__ void write_held() const {
    const int64_t position = ledger.num_tensors + i;
    copy_looks(looks(position), record() + 1);
    ledger.index[position] = *record() == kMade ? static_cast<int32_t>(position) : -1;
  }

  __device__ void step(bool predicts) const {
    const int64_t next = count() + 1, stride = ledger.num_tensors;
    const double* sums = ledger.sums + i;
    write(row(i), scalars(next, 0, sums, stride).step);
    if (ledger.has_averages) row(i)[kNumStep<Rule>] = average_share(next);
    if (ledger.is_noisy) row(i)[kNumStep<Rule> + ledger.has_averages] = static_cast<double>(next);
    write_looks(looks(i), next, sums, stride);
    const bool is_void = ledger.found_inf != nullptr && *ledger.found_inf != 0.0f;
    if (!ledger.has_grad[i] || is_void) return;
    ledger.steps[i] = static_cast<float>(next);
    write_record(predicts ? kMade : kNone, looks(i));
    if (predicts) return;
    for (int t = 0; t < Rule::kNumTerms; ++t) record()[1 + t] = sums[t * stride];
  }

  __device__ void predict() const {
    if (*record() == kNone) {
      const bool is_first = count() == 0;  // there is no update to predict from
      if (!is_first) write_looks(looks(i), count(), record() + 1, 1);
      write_record(is_first ? kNull : kMade, looks(i));
    }
    copy_looks(looks(i), record() + 1);
    if (*record() != kMade) ledger.index[i] = -1;
  }
};

template <typename Rule>
__global__ void advance_kernel(const Ledger ledger, Operation operation) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= ledger.num_tensors) return;
  const Entry<Rule> entry{ledger, i};
  ledger.index[i] = static_cast<int32_t>(i);
  entry.write_held();
  if (is_step(operation)) entry.step(operation == Operation::kStepAndPredict);
  if (operation == Operation::kPredict) entry.predict();
}

template <typename Rule>
void launch_advance(const Ledger& ledger, Operation operation, void* stream) {
  if (ledger.num_tensors == 0) return;
  const int64_t num_blocks = (ledger.num_tensors + kAdvanceThreads - 1) / kAdvanceThreads;
  const cudaLaunchConfig_t config = launch_config(num_blocks, kAdvanceThreads, stream);
  check(cudaLaunchKernelEx(&config, advance_kernel<Rule>, ledger, operation),
        "launch of advance_kernel");
}

template <typename Rule>
constexpr Advance advance_or_null() {
  if constexpr (kCanStep<Rule>) {
    return launch_advance<Rule>;
  } else {
    return nullptr;
  }
}

}  // namespace
}  // namespace wpadamw::cuda
