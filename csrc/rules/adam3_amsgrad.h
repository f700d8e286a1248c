// AdaM3 with the running maximum of s in the place of s (Reddi et al. 2018, Algorithm 2).
#pragma once

#include "adam3.h"

namespace wpadamw::adam3_amsgrad {

struct Rule : adamw::WithMoments<adam3::Formulas, 3> {
  static constexpr Names<3> kStateNames = {"exp_avg", "exp_avg_var", "max_exp_avg_var"};
};

}  // namespace wpadamw::adam3_amsgrad
