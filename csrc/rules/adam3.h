// AdaM3 (Wang et al. 2021, Algorithm 1): the second moment is that of the momentum itself.
#pragma once

#include "adabelief.h"

namespace wpadamw::adam3 {

struct Formulas : adabelief::Formulas {
  // m = m + (g - m)*(1-beta1), s = s*beta2 + (m*m)*(1-beta2) + eps
  template <typename real_t, typename step_t>
  static WPADAMW_HOST_DEVICE void move_moments(real_t& exp_avg, real_t& exp_avg_var, real_t grad,
                                               const step_t& step) {
    exp_avg = mean(exp_avg, grad, step);
    exp_avg_var = moved_square(exp_avg_var, exp_avg, step);
  }
};

struct Rule : adamw::WithMoments<Formulas, 2> {
  static constexpr Names<2> kStateNames = {"exp_avg", "exp_avg_var"};
};

}  // namespace wpadamw::adam3
