// How one element of a tensor is read and written.
#pragma once

#include "kernels.h"

namespace wpadamw::cpu::WPADAMW_ISA {
namespace {

// Every pointer is at the first element. Gradients are of the state's dtype or of another one, and
// are converted to it block by block: loops for each of both would take twice as long to compile.
template <typename Rule, typename param_t>
struct Tensor {
  using real_t = typename RealOf<param_t>::type;
  using other_grad_t = std::conditional_t<std::is_same_v<param_t, double>, float, param_t>;
  using State = typename Rule::template State<real_t>;
  using Look = typename Rule::template Look<real_t>;

  param_t* param;
  real_t* weight;  // or null
  const void* grad;
  bool has_real_grad;
  Values<real_t*, Rule::kNumStates> state;
  real_t* average = nullptr;  // or null: there are none
  real_t average_share{};
  real_t grad_factor;
  RowOf<Rule, real_t> row;
  Look held{};
  const double* looks;                 // of the row
  const double* held_looks = nullptr;  // of what the parameter holds
  int num_looks;
  real_t* terms;  // or null: kNumTracked times kChunkNumel, of a chunk that is tracked

  explicit WPADAMW_HOST_DEVICE Tensor(const Task& task)
      : param(reinterpret_cast<param_t*>(task.param)),
        weight(reinterpret_cast<real_t*>(task.weight)),
        grad(reinterpret_cast<const void*>(task.grad)),
        has_real_grad(task.has_real_grad),
        grad_factor(static_cast<real_t>(task.grad_factor)),
        row(round_row<Rule, real_t>(task.row, task.num_further())),
        looks(looks_of<Rule>(task.row, task.num_further())),
        num_looks(task.num_looks),
        terms(static_cast<real_t*>(task.terms)) {
    if (task.held != nullptr) {
      held_looks = looks_of<Rule>(task.held, task.num_further());
      held = round_nth_look<Rule, real_t>(held_looks, 0);
    }
    const auto flat = [&](int k) { return static_cast<real_t*>(task.state[k]) + task.offset; };
    for (int k = 0; k < Rule::kNumStates; ++k) state.at[k] = flat(k);
    if (task.has_averages) {
      average = flat(Rule::kNumStates);
      average_share = static_cast<real_t>(task.row[kNumStep<Rule>]);
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

  // From what the parameter holds, where all but its first look has been undone.
  template <Source kSource>
  WPADAMW_HOST_DEVICE real_t true_weight(int64_t i, const State& values, param_t found) const {
    if constexpr (kSource == Source::kBackup) return weight[i];
    else if constexpr (kSource == Source::kParam) return to_real(found);
    else return Rule::recover(to_real(found), values, held);
  }

  // Few predictions have further looks: with these apart, the compiler keeps the scalars of the usual
  // loop in registers from block to block.

  // What n elements from `begin` on hold, all but the first look of it undone.
  [[gnu::noinline]] void undo(int64_t begin, int64_t n, real_t* values) const {
    for (int64_t j = 0; j < n; ++j) values[j] = param[begin + j];
    for (int k = num_looks - 1; k > 0; --k) {
      const Look look = round_nth_look<Rule, real_t>(held_looks, k);
#pragma GCC ivdep
      for (int64_t j = 0; j < n; ++j) {
        values[j] = Rule::recover(values[j], load_state(begin + j), look);
      }
    }
  }

  // Goes on with n values, by all looks from one on.
  [[gnu::noinline]] void look_on(int first, int64_t begin, int64_t n,
                                            real_t* values) const {
    for (int k = first; k < num_looks; ++k) {
      const Look look = round_nth_look<Rule, real_t>(looks, k);
#pragma GCC ivdep
      for (int64_t j = 0; j < n; ++j) {
        values[j] = Rule::predict(values[j], load_state(begin + j), look);
      }
    }
  }

  // Both are said to be rare: without it the usual loop is a tenth slower.
  WPADAMW_HOST_DEVICE bool has_averages() const { return __builtin_expect(average != nullptr, 0); }
  WPADAMW_HOST_DEVICE bool is_tracked() const { return __builtin_expect(terms != nullptr, 0); }

  // Moves the averages of n elements from `begin` on towards their new weights.
  [[gnu::noinline]] void move_averages(int64_t begin, int64_t n, const real_t* weights) const {
    real_t* averages = average + begin;
#pragma GCC ivdep
    for (int64_t j = 0; j < n; ++j) {
      averages[j] = moved_average(averages[j], weights[j], average_share);
    }
  }

  // n gradients from element `begin` on, in `values` if they have to be converted.
  WPADAMW_HOST_DEVICE const real_t* gradients(int64_t begin, int64_t n, real_t* values) const {
    if (std::is_same_v<other_grad_t, real_t> || has_real_grad) return real_grad() + begin;
    for (int64_t j = 0; j < n; ++j) values[j] = static_cast<real_t>(to_real(other_grad()[begin + j]));
    return values;
  }
  WPADAMW_HOST_DEVICE const real_t* real_grad() const { return static_cast<const real_t*>(grad); }
  WPADAMW_HOST_DEVICE const other_grad_t* other_grad() const {
    return static_cast<const other_grad_t*>(grad);
  }
};

}  // namespace
}  // namespace wpadamw::cpu::WPADAMW_ISA
