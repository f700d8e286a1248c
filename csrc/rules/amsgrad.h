// AdamW with the running maximum of v in the place of v (Reddi et al. 2018, Algorithm 2).
#pragma once

#include "adamw.h"

namespace wpadamw::amsgrad {

struct Rule {
  using AdamW = adamw::Rule;

  static constexpr Names<3> kStateNames = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
  static constexpr int kNumStates = 3;
  static constexpr int kNumTerms = 0;
  enum { kExpAvg, kExpAvgSq, kMaxExpAvgSq };

  template <typename real_t>
  using State = Values<real_t, kNumStates>;

  using Hyper = AdamW::Hyper;
  template <typename real_t>
  using Step = AdamW::Step<real_t>;
  template <typename real_t>
  using Look = AdamW::Look<real_t>;
  static constexpr auto kHyperNames = AdamW::kHyperNames;
  static constexpr auto kStepNames = AdamW::kStepNames;
  static constexpr auto kLookNames = AdamW::kLookNames;

  static WPADAMW_HOST_DEVICE Row<Step<double>, Look<double>> scalars(const Hyper& hyper,
                                                                     int64_t count, int64_t ahead,
                                                                     double share) {
    return AdamW::scalars(hyper, count, ahead, share);
  }

  template <typename real_t>
  static WPADAMW_HOST_DEVICE void step(real_t& weight, State<real_t>& state, real_t grad,
                                       const Step<real_t>& step, const Look<real_t>& look) {
    AdamW::move_moments(state.at[kExpAvg], state.at[kExpAvgSq], grad, step);
    state.at[kMaxExpAvgSq] = maximum(state.at[kMaxExpAvgSq], state.at[kExpAvgSq]);
    weight = AdamW::move(weight, direction(state, look), step);
  }

  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t predict(real_t weight, const State<real_t>& state,
                                            const Look<real_t>& look) {
    return AdamW::predict_along(weight, direction(state, look), look);
  }

  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t recover(real_t predicted, const State<real_t>& state,
                                            const Look<real_t>& look) {
    return AdamW::recover_along(predicted, direction(state, look), look);
  }

  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t direction(const State<real_t>& state,
                                              const Look<real_t>& look) {
    return AdamW::direction(state.at[kExpAvg], state.at[kMaxExpAvgSq], look);
  }
};

}  // namespace wpadamw::amsgrad
