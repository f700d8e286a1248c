// The four operations of a bucket, and what each does to one element. Values in, values out: loops
// and memory are the backends' own.
#pragma once

#include "host_device.h"
#include "scalars.h"

namespace wpadamw {

enum class Operation { kStep, kStepAndPredict, kPredict, kRestore };

WPADAMW_HOST_DEVICE constexpr bool is_step(Operation operation) {
  return operation == Operation::kStep || operation == Operation::kStepAndPredict;
}

template <typename Rule, typename real_t>
struct Element {
  typename Rule::template State<real_t> state;
  real_t weight;  // the true one
};

// The true weight of a parameter without a backup that holds the prediction made with `last`.
template <typename Rule, typename real_t>
WPADAMW_HOST_DEVICE real_t recover_weight(real_t predicted,
                                          const typename Rule::template State<real_t>& state,
                                          const Scalars<real_t>& last) {
  return Rule::recover_weight(predicted, Rule::direction(state, last), last);
}

// Returns what the parameter holds afterwards. `grad` is for steps.
template <Operation kOperation, typename Rule, typename real_t>
WPADAMW_HOST_DEVICE real_t apply(Element<Rule, real_t>& e, real_t grad, const Scalars<real_t>& s) {
  if constexpr (kOperation == Operation::kRestore) return e.weight;
  if constexpr (is_step(kOperation)) e.state = Rule::update(e.state, grad * s.grad_factor, s);
  const real_t direction = Rule::direction(e.state, s);
  if constexpr (is_step(kOperation)) e.weight = Rule::step_weight(e.weight, direction, s);
  if constexpr (kOperation == Operation::kStep) return e.weight;
  return Rule::predict_weight(e.weight, direction, s);
}

}  // namespace wpadamw
