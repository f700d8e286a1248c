// The four operations of a bucket, and what each does to one element. Values in, values out: loops
// and memory are the backends' own.
#pragma once

#include "host_device.h"
#include "rule.h"

namespace wpadamw {

enum class Operation { kStep, kStepAndPredict, kPredict, kRestore };
constexpr int kNumOperations = 4;

WPADAMW_HOST_DEVICE constexpr bool is_step(Operation operation) {
  return operation == Operation::kStep || operation == Operation::kStepAndPredict;
}

WPADAMW_HOST_DEVICE constexpr bool predicts(Operation operation) {
  return operation == Operation::kStepAndPredict || operation == Operation::kPredict;
}

// Where the true weight of an element is found: in the backup, in the parameter, or behind the
// prediction that the parameter holds.
enum class Source { kBackup, kParam, kPrediction };
constexpr int kNumSources = 3;

template <typename Rule, typename real_t>
struct Element {
  typename Rule::template State<real_t> state;
  real_t weight;  // the true one
};

// Returns what the parameter holds afterwards, predicted by the first look. `grad` is for steps.
template <Operation kOperation, typename Rule, typename real_t>
WPADAMW_HOST_DEVICE real_t apply(Element<Rule, real_t>& e, real_t grad,
                                 const RowOf<Rule, real_t>& row) {
  if constexpr (kOperation == Operation::kRestore) return e.weight;
  if constexpr (is_step(kOperation)) Rule::step(e.weight, e.state, grad, row.step, row.look);
  if constexpr (kOperation == Operation::kStep) return e.weight;
  return Rule::predict(e.weight, e.state, row.look);
}

}  // namespace wpadamw
