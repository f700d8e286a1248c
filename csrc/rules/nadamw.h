// AdamW along the Nesterov mix of gradient and momentum (Dozat 2016; Choi et al. 2019, Table 1). The
// prediction takes the plain direction of AdamW.
#pragma once

#include "adamw.h"

namespace wpadamw::nadamw {

struct Rule : adamw::Rule {
  // n = m + (g - m)*(1-beta1), w = w*decay - n/(sqrt(v)*inv_sqrt_bc2 + eps)*step_size
  template <typename real_t>
  static WPADAMW_HOST_DEVICE void step(real_t& weight, State<real_t>& state, real_t grad,
                                       const Step<real_t>& step, const Look<real_t>& look) {
    real_t& exp_avg = state.at[kExpAvg];
    move_moments(exp_avg, state.at[kExpAvgSq], grad, step);
    const real_t mix = exp_avg + (grad - exp_avg) * step.one_minus_beta1;
    weight = move(weight, direction(mix, state.at[kExpAvgSq], look), step);
  }
};

}  // namespace wpadamw::nadamw
