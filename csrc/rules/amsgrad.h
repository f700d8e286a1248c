// AdamW with the running maximum of v in the place of v (Reddi et al. 2018, Algorithm 2).
#pragma once

#include "adamw.h"

namespace wpadamw {

struct AMSGrad : DecoupledDecay {
  static constexpr const char* kName = "amsgrad";
  static constexpr int kNumStates = 3;
  enum { kExpAvg, kExpAvgSq, kMaxExpAvgSq };

  template <typename real_t>
  struct State {
    real_t at[kNumStates];
  };

  // A NaN on either side wins, as in torch.maximum.
  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t maximum(real_t a, real_t b) {
    return (a > b || a != a) ? a : b;
  }

  template <typename real_t>
  static WPADAMW_HOST_DEVICE State<real_t> update(State<real_t> state, real_t grad,
                                                  const Scalars<real_t>& s) {
    const real_t exp_avg_sq = AdamW::exp_avg_sq(state.at[kExpAvgSq], grad, s);
    return {{AdamW::exp_avg(state.at[kExpAvg], grad, s), exp_avg_sq,
             maximum(state.at[kMaxExpAvgSq], exp_avg_sq)}};
  }

  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t direction(State<real_t> state, const Scalars<real_t>& s) {
    return AdamW::adam_direction(state.at[kExpAvg], state.at[kMaxExpAvgSq], s);
  }
};

}  // namespace wpadamw
