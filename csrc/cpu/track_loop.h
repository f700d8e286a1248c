// A step over a chunk of a tensor that also tells how good the prediction was: where the gradient was
// computed, against where the step has led. The chunk's arrays are still in the cache.
#pragma once

#include "sum_loop.h"

namespace wpadamw::cpu::WPADAMW_ISA {
namespace {

// The true weights of n elements, by all looks of what the parameter holds.
template <Source kSource, typename Rule, typename param_t, typename real_t>
void true_weights(const Tensor<Rule, param_t>& tensor, int64_t begin, int64_t n, real_t* values) {
  if constexpr (kSource == Source::kBackup) {
    for (int64_t j = 0; j < n; ++j) values[j] = tensor.weight[begin + j];
  } else {
    for (int64_t j = 0; j < n; ++j) values[j] = to_real(tensor.param[begin + j]);
  }
  if constexpr (kSource == Source::kPrediction) tensor.recover_all(begin, n, values);
}

template <Source kSource, typename Rule, typename param_t>
void track_chunk(const Task& task, int64_t begin, int64_t n, Run run, bool predicts, bool streaming,
                 double* sums) {
  using real_t = typename RealOf<param_t>::type;
  alignas(64) real_t old[kChunkNumel], error[kChunkNumel], product[kChunkNumel];
  true_weights<kSource>(Tensor<Rule, param_t>(task), begin, n, old);
  for (int64_t j = 0; j < n; ++j) error[j] = old[j];
  if (task.held != nullptr) {
    Task of_held = task;
    of_held.row = task.held;
    Tensor<Rule, param_t>(of_held).look_on(0, begin, n, error);
  }
  run(task, begin, begin + n, streaming);
  Task after = task;
  after.held = task.row;
  const Tensor<Rule, param_t> updated(after);
  real_t* weight = product;
  if constexpr (kSource == Source::kBackup) {
    true_weights<Source::kBackup>(updated, begin, n, weight);
  } else if (predicts) {
    true_weights<Source::kPrediction>(updated, begin, n, weight);
  } else {
    true_weights<Source::kParam>(updated, begin, n, weight);
  }
  real_t* step = old;
#pragma GCC ivdep
  for (int64_t j = 0; j < n; ++j) {
    const real_t off = error[j] - weight[j], moved = weight[j] - old[j];
    error[j] = off * off;
    step[j] = moved * moved;
    product[j] = off * moved;
  }
  sums[0] = sum_by_halves(error, n);
  sums[1] = sum_by_halves(step, n);
  sums[2] = sum_by_halves(product, n);
}

template <typename Rule, typename dtypes, Source kSource>
constexpr Track track_or_null() {
  if constexpr (kCanStep<Rule> && has_source<Rule, dtypes>(kSource)) {
    return track_chunk<kSource, Rule, typename dtypes::param_t>;
  } else {
    return nullptr;
  }
}

template <typename Rule, typename dtypes>
constexpr TrackTable track_table() {
  return {{track_or_null<Rule, dtypes, Source::kBackup>(),
           track_or_null<Rule, dtypes, Source::kParam>(),
           track_or_null<Rule, dtypes, Source::kPrediction>()}};
}

}  // namespace
}  // namespace wpadamw::cpu::WPADAMW_ISA
