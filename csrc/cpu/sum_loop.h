// The sums of a rule's terms over a chunk of a tensor, by halves: one fixed tree, whatever the vector
// width.
#pragma once

#include "tensor.h"

namespace wpadamw::cpu::WPADAMW_ISA {
namespace {

// x[i] += x[i + half] for 1024, 512, ... 1, as long as there are many three halvings at a time. Halves
// that lack all their elements add zeros.
template <typename real_t>
WPADAMW_HOST_DEVICE real_t sum_by_halves(real_t* values, int64_t n) {
  int64_t size = 1;
  while (size < n) size *= 2;
  for (int64_t i = n; i < size; ++i) values[i] = real_t{0};
  for (; size >= 256; size /= 8) {
    const int64_t part = size / 8;
    const auto pair = [&](int64_t i) { return values[i] + values[i + 4 * part]; };
#pragma GCC ivdep
    for (int64_t i = 0; i < part; ++i) {
      values[i] = (pair(i) + pair(i + 2 * part)) + (pair(i + part) + pair(i + 3 * part));
    }
  }
  for (int64_t half = size / 2; half > 0; half /= 2) {
#pragma GCC ivdep
    for (int64_t i = 0; i < half; ++i) values[i] += values[i + half];
  }
  return values[0];
}

template <Source kSource, typename Rule, typename param_t>
void sum_chunk(const Task& task, int64_t begin, int64_t n, double* sums) {
  using real_t = typename RealOf<param_t>::type;
  const Tensor<Rule, param_t> tensor(task);
  alignas(64) real_t values[Rule::kNumTerms][kChunkNumel];
  const auto* held = tensor.param + begin;
  alignas(64) real_t undone[kSource == Source::kPrediction ? kChunkNumel : 1];
  if constexpr (kSource == Source::kPrediction) {
    if (tensor.num_looks > 1) {
      tensor.undo(begin, n, undone);
      held = undone;
    }
  }
  alignas(64) real_t converted[kChunkNumel];
  const real_t* grads = tensor.gradients(begin, n, converted);
#pragma GCC ivdep
  for (int64_t j = 0; j < n; ++j) {
    const int64_t i = begin + j;
    const auto state = tensor.load_state(i);
    const real_t weight = tensor.template true_weight<kSource>(i, state, held[j]);
    const auto terms =
        Rule::terms(weight, state, grads[j] * tensor.grad_factor, tensor.row.step, tensor.row.look);
    for (int t = 0; t < Rule::kNumTerms; ++t) values[t][j] = terms.at[t];
  }
  for (int t = 0; t < Rule::kNumTerms; ++t) sums[t] = sum_by_halves(values[t], n);
}

// The same of what a step is tracked by, which its loop leaves behind.
template <typename real_t>
void track_chunk(Task task, int64_t begin, int64_t n, Run run, bool streaming, double* sums) {
  alignas(64) real_t terms[kNumTracked][kChunkNumel];
  task.terms = terms;
  run(task, begin, begin + n, streaming);
  for (int t = 0; t < kNumTracked; ++t) sums[t] = sum_by_halves(terms[t], n);
}

template <typename Rule, typename dtypes, Source kSource>
constexpr Sum sum_or_null() {
  if constexpr (Rule::kNumTerms == 0) {
    return nullptr;
  } else if constexpr (!kCanStep<Rule>) {  // knows no true weights: what parameters hold will do
    return sum_chunk<Source::kParam, Rule, typename dtypes::param_t>;
  } else if constexpr (has_source<Rule, dtypes>(kSource)) {
    return sum_chunk<kSource, Rule, typename dtypes::param_t>;
  } else {
    return nullptr;
  }
}

template <typename Rule, typename dtypes>
constexpr SumTable sum_table() {
  return {{sum_or_null<Rule, dtypes, Source::kBackup>(), sum_or_null<Rule, dtypes, Source::kParam>(),
           sum_or_null<Rule, dtypes, Source::kPrediction>()}};
}

}  // namespace
}  // namespace wpadamw::cpu::WPADAMW_ISA
