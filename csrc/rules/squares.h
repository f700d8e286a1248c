// The squares of gradients: a sum without an update, for norms.
#pragma once

#include "../rule.h"

namespace wpadamw::squares {

struct Rule {
  static constexpr Names<0> kStateNames = {};
  static constexpr int kNumStates = 0;
  static constexpr int kNumTerms = 1;

  template <typename real_t>
  using State = Values<real_t, kNumStates>;

  struct Hyper {};
  template <typename real_t>
  struct Step {};
  template <typename real_t>
  struct Look {};
  static constexpr Names<0> kHyperNames = {}, kStepNames = {}, kLookNames = {};

  // g*g
  template <typename real_t>
  static WPADAMW_HOST_DEVICE Values<real_t, kNumTerms> terms(real_t, const State<real_t>&,
                                                             real_t grad, const Step<real_t>&,
                                                             const Look<real_t>&) {
    return {{grad * grad}};
  }
};

}  // namespace wpadamw::squares
