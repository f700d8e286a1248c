// AdamW along the Nesterov mix of gradient and momentum (Dozat 2016; Choi et al. 2019, Table 1).
// The prediction takes the plain direction of AdamW.
#pragma once

#include "adamw.h"

namespace wpadamw::nadamw {

// The update of a rule with these formulas along the mix.
template <typename Base>
struct WithMix : Base {
  // n = m + (g - m)*(1-beta1)
  template <typename real_t, typename step_t>
  static WPADAMW_HOST_DEVICE real_t mean_of_step(real_t exp_avg, real_t grad, const step_t& step) {
    return Base::mean(exp_avg, grad, step);
  }
};

struct Rule : adamw::WithMoments<WithMix<adamw::Formulas>, 2> {
  static constexpr Names<2> kStateNames = {"exp_avg", "exp_avg_sq"};
};

}  // namespace wpadamw::nadamw
