// AdaPlus with the running maximum of s in the place of s (Reddi et al. 2018, Algorithm 2).
#pragma once

#include "adaplus.h"

namespace wpadamw::adaplus_amsgrad {

struct Rule : adamw::WithMoments<adaplus::Formulas, 3> {
  static constexpr Names<3> kStateNames = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
};

}  // namespace wpadamw::adaplus_amsgrad
