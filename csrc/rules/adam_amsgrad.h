// Adam with the running maximum of v in the place of v (Reddi et al. 2018, Algorithm 2).
#pragma once

#include "adam.h"

namespace wpadamw::adam_amsgrad {

struct Rule : adamw::WithMoments<adam::Formulas, 3> {
  static constexpr Names<3> kStateNames = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
};

}  // namespace wpadamw::adam_amsgrad
