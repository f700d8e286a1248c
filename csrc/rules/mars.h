// MARS-AdamW (Yuan et al. 2024), approximate: with the last batch's gradient.
#pragma once

#include "adamw.h"

namespace wpadamw::mars {

struct Rule {
  using AdamW = adamw::Formulas;

  // The second moment last, as in Python.
  static constexpr Names<3> kStateNames = {"exp_avg", "last_grad", "exp_avg_sq"};
  static constexpr int kNumStates = 3;
  static constexpr int kNumTerms = 1;
  enum { kFirst, kLastGrad, kSecond };

  template <typename real_t>
  using State = Values<real_t, kNumStates>;

  struct Hyper {
    double lr;
    double beta1;
    double beta2;
    double eps;
    double weight_decay;
    double predicted_decay;  // weight_decay, or 0 where predictions leave the decay out
    double gamma;
  };
  static constexpr Names<7> kHyperNames = {"lr",           "beta1",           "beta2", "eps",
                                           "weight_decay", "predicted_decay", "gamma"};

  // What an update needs.
  template <typename real_t>
  struct Step {
    real_t one_minus_beta1;
    real_t beta2;
    real_t one_minus_beta2;
    real_t decay;        // 1 - lr*weight_decay
    real_t step_size;    // lr / (1 - beta1^k)
    real_t correction;   // gamma*beta1 / (1 - beta1)
    real_t clip_factor;  // 1 / max(1, |c|)
  };
  static constexpr Names<7> kStepNames = {"one_minus_beta1", "beta2",      "one_minus_beta2",
                                          "decay",           "step_size",  "correction",
                                          "clip_factor"};

  template <typename real_t>
  using Look = AdamW::Look<real_t>;
  static constexpr Names<4> kLookNames = AdamW::kLookNames;
  using Scalars = Row<Step<double>, Look<double>>;

  // Those of AdamW, and of the correction; nothing is clipped.
  static WPADAMW_HOST_DEVICE Scalars scalars(const Hyper& h, int64_t count, int64_t ahead,
                                             double share) {
    const auto [step, look] = AdamW::scalars(
        {h.lr, h.beta1, h.beta2, h.eps, h.weight_decay, h.predicted_decay}, count, ahead, share);
    return {{step.one_minus_beta1, step.beta2, step.one_minus_beta2, step.decay, step.step_size,
             h.gamma * h.beta1 / (1.0 - h.beta1), 1.0},
            look};
  }

  // clip_factor = 1 / max(1, sqrt(sum))
  static WPADAMW_HOST_DEVICE Scalars with_sums(const Hyper&, Scalars row,
                                               const Values<double, kNumTerms>& sums) {
    const double norm = std::sqrt(sums.at[0]);
    row.step.clip_factor = 1.0 / (norm > 1.0 ? norm : 1.0);
    return row;
  }

  // AdamW's update with the corrected gradient; the gradient itself is kept.
  template <typename real_t>
  static WPADAMW_HOST_DEVICE void step(real_t& weight, State<real_t>& state, real_t grad,
                                       const Step<real_t>& step, const Look<real_t>& look) {
    const real_t clipped = corrected(grad, state.at[kLastGrad], step) * step.clip_factor;
    AdamW::move_moments(state.at[kFirst], state.at[kSecond], clipped, step);
    state.at[kLastGrad] = grad;
    weight = AdamW::move(weight, direction_of(state, look), step);
  }

  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t predict(real_t weight, const State<real_t>& state,
                                            const Look<real_t>& look) {
    return AdamW::predict_along(weight, direction_of(state, look), look);
  }

  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t recover(real_t predicted, const State<real_t>& state,
                                            const Look<real_t>& look) {
    return AdamW::recover_along(predicted, direction_of(state, look), look);
  }

  // c*c
  template <typename real_t>
  static WPADAMW_HOST_DEVICE Values<real_t, kNumTerms> terms(real_t, const State<real_t>& state,
                                                             real_t grad, const Step<real_t>& step,
                                                             const Look<real_t>&) {
    const real_t of_grad = corrected(grad, state.at[kLastGrad], step);
    return {{of_grad * of_grad}};
  }

  // c = (g - last_g)*correction + g
  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t corrected(real_t grad, real_t last_grad,
                                              const Step<real_t>& step) {
    return (grad - last_grad) * step.correction + grad;
  }

  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t direction_of(const State<real_t>& state,
                                                 const Look<real_t>& look) {
    return AdamW::direction(state.at[kFirst], state.at[kSecond], look);
  }
};

}  // namespace wpadamw::mars
