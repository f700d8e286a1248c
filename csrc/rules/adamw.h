// AdamW (Loshchilov & Hutter 2019). Values in, values out: no pointer, no loop, no dtype.
#pragma once

#include <cmath>

#include "weights.h"

namespace wpadamw {

struct AdamW : DecoupledDecay {
  static constexpr const char* kName = "adamw";
  static constexpr int kNumStates = 2;
  enum { kExpAvg, kExpAvgSq };

  template <typename real_t>
  struct State {
    real_t at[kNumStates];
  };

  // m = m + (g - m)*(1-beta1)
  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t exp_avg(real_t exp_avg, real_t grad,
                                            const Scalars<real_t>& s) {
    return exp_avg + (grad - exp_avg) * s.one_minus_beta1;
  }

  // v = v*beta2 + (g*g)*(1-beta2)
  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t exp_avg_sq(real_t exp_avg_sq, real_t grad,
                                               const Scalars<real_t>& s) {
    return exp_avg_sq * s.beta2 + (grad * grad) * s.one_minus_beta2;
  }

  // u = m / (sqrt(v)*inv_sqrt_bc2 + eps)
  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t adam_direction(real_t exp_avg, real_t exp_avg_sq,
                                                   const Scalars<real_t>& s) {
    return exp_avg / (std::sqrt(exp_avg_sq) * s.inv_sqrt_bc2 + s.eps);
  }

  template <typename real_t>
  static WPADAMW_HOST_DEVICE State<real_t> update(State<real_t> state, real_t grad,
                                                  const Scalars<real_t>& s) {
    return {{exp_avg(state.at[kExpAvg], grad, s), exp_avg_sq(state.at[kExpAvgSq], grad, s)}};
  }

  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t direction(State<real_t> state, const Scalars<real_t>& s) {
    return adam_direction(state.at[kExpAvg], state.at[kExpAvgSq], s);
  }
};

}  // namespace wpadamw
