// AdaPlus (Guan 2023, Algorithm 1): AdaBelief's second moment under NAdamW's mix. The prediction
// takes the plain direction.
#pragma once

#include "adabelief.h"
#include "nadamw.h"

namespace wpadamw::adaplus {

using Formulas = nadamw::WithMix<adabelief::Formulas>;

struct Rule : adamw::WithMoments<Formulas, 2> {
  static constexpr Names<2> kStateNames = {"exp_avg", "exp_avg_sq"};
};

}  // namespace wpadamw::adaplus
