// AdamW with the running maximum of v in the place of v (Reddi et al. 2018, Algorithm 2).
#pragma once

#include "adamw.h"

namespace wpadamw::amsgrad {

struct Rule : adamw::WithMoments<adamw::Formulas, 3> {
  static constexpr Names<3> kStateNames = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
};

}  // namespace wpadamw::amsgrad
