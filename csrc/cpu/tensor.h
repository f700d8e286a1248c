// How one element of a tensor is read and written.
#pragma once

#include "kernels.h"

namespace wpadamw::cpu::WPADAMW_ISA {
namespace {

// Every pointer is at the first element.
template <typename Rule, typename param_t, typename grad_t>
struct Tensor {
  using real_t = typename RealOf<param_t>::type;
  using State = typename Rule::template State<real_t>;

  param_t* param;
  const grad_t* grad;
  real_t* weight = nullptr;
  Values<real_t*, Rule::kNumStates> state;
  real_t grad_factor;
  RowOf<Rule, real_t> row;
  typename Rule::template Look<real_t> held{};

  explicit WPADAMW_HOST_DEVICE Tensor(const Task& task)
      : param(reinterpret_cast<param_t*>(task.param)),
        grad(reinterpret_cast<const grad_t*>(task.grad)),
        grad_factor(static_cast<real_t>(task.grad_factor)),
        row(round_row<Rule, real_t>(task.row)) {
    if (task.held != nullptr) held = round_look<Rule, real_t>(task.held);
    if (task.weight != nullptr) weight = static_cast<real_t*>(task.weight) + task.offset;
    for (int k = 0; k < Rule::kNumStates; ++k) {
      state.at[k] = static_cast<real_t*>(task.state[k]) + task.offset;
    }
  }

  WPADAMW_HOST_DEVICE State load_state(int64_t i) const {
    State values;
    for (int k = 0; k < Rule::kNumStates; ++k) values.at[k] = state.at[k][i];
    return values;
  }

  WPADAMW_HOST_DEVICE void store_state(int64_t i, const State& values) const {
    for (int k = 0; k < Rule::kNumStates; ++k) state.at[k][i] = values.at[k];
  }

  template <Source kSource>
  WPADAMW_HOST_DEVICE real_t true_weight(int64_t i, const State& values) const {
    if constexpr (kSource == Source::kBackup) return weight[i];
    const real_t found = to_real(param[i]);
    if constexpr (kSource != Source::kPrediction) return found;
    else return Rule::recover(found, values, held);
  }

  WPADAMW_HOST_DEVICE real_t gradient(int64_t i) const { return to_real(grad[i]) * grad_factor; }
};

}  // namespace
}  // namespace wpadamw::cpu::WPADAMW_ISA
