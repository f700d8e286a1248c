// A rule for tests: moves along an average of gradients, cannot be solved for the weight, and has two
// terms to sum.
#pragma once

#include "rule.h"

namespace wpadamw::blend {

struct Rule {
  static constexpr Names<1> kStateNames = {"exp_avg"};
  static constexpr int kNumStates = 1;
  static constexpr int kNumTerms = 2;

  template <typename real_t>
  using State = Values<real_t, kNumStates>;

  struct Hyper {
    double lr;
    double beta1;
  };
  static constexpr Names<2> kHyperNames = {"lr", "beta1"};

  template <typename real_t>
  struct Step {
    real_t one_minus_beta1;
  };
  static constexpr Names<1> kStepNames = {"one_minus_beta1"};

  template <typename real_t>
  struct Look {
    real_t predict_size;
    real_t predict_decay;
  };
  static constexpr Names<2> kLookNames = {"predict_size", "predict_decay"};

  static WPADAMW_HOST_DEVICE Row<Step<double>, Look<double>> scalars(const Hyper& hyper, int64_t,
                                                                     int64_t ahead, double share) {
    return {{1.0 - hyper.beta1}, {share * hyper.lr * power(hyper.beta1, ahead), 1.0}};
  }

  // Both are smaller, the larger the sums are.
  static WPADAMW_HOST_DEVICE Row<Step<double>, Look<double>> with_sums(
      const Hyper&, const Row<Step<double>, Look<double>>& row,
      const Values<double, kNumTerms>& sums) {
    return {row.step,
            {row.look.predict_size / (1.0 + sums.at[0]), 1.0 / (1.0 + sums.at[1] * sums.at[1])}};
  }

  // m = m + (g - m)*(1-beta1), w = w*predict_decay - m*predict_size
  template <typename real_t>
  static WPADAMW_HOST_DEVICE void step(real_t& weight, State<real_t>& state, real_t grad,
                                       const Step<real_t>& step, const Look<real_t>& look) {
    state.at[0] = state.at[0] + (grad - state.at[0]) * step.one_minus_beta1;
    weight = weight * look.predict_decay - state.at[0] * look.predict_size;
  }

  // p = w*predict_decay - m*predict_size
  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t predict(real_t weight, const State<real_t>& state,
                                            const Look<real_t>& look) {
    return weight * look.predict_decay - state.at[0] * look.predict_size;
  }

  // The square of the new m, and w*g.
  template <typename real_t>
  static WPADAMW_HOST_DEVICE Values<real_t, kNumTerms> terms(real_t weight,
                                                             const State<real_t>& state,
                                                             real_t grad, const Step<real_t>& step,
                                                             const Look<real_t>&) {
    const real_t exp_avg = state.at[0] + (grad - state.at[0]) * step.one_minus_beta1;
    return {{exp_avg * exp_avg, weight * grad}};
  }
};

}  // namespace wpadamw::blend
