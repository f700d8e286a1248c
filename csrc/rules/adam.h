// Adam (Kingma & Ba 2015, Algorithm 1) with the decay in the gradient.
#pragma once

#include "adamw.h"

namespace wpadamw::adam {

struct Formulas : adamw::Formulas {
  using AdamW = adamw::Formulas;

  struct Hyper {
    double lr;
    double beta1;
    double beta2;
    double eps;
    double weight_decay;
  };
  static constexpr Names<5> kHyperNames = {"lr", "beta1", "beta2", "eps", "weight_decay"};

  // What an update needs.
  template <typename real_t>
  struct Step {
    real_t one_minus_beta1;
    real_t beta2;
    real_t one_minus_beta2;
    real_t weight_decay;
    real_t step_size;  // lr / (1 - beta1^k)
  };
  static constexpr Names<5> kStepNames = {"one_minus_beta1", "beta2", "one_minus_beta2",
                                          "weight_decay", "step_size"};

  // What the direction and predictions along it need.
  template <typename real_t>
  struct Look {
    real_t inv_sqrt_bc2;  // 1 / sqrt(1 - beta2^k)
    real_t eps;
    real_t predict_size;  // share*lr*beta1^ahead / (1 - beta1^k)
  };
  static constexpr Names<3> kLookNames = {"inv_sqrt_bc2", "eps", "predict_size"};

  // Of update k = count + ahead and of a share of it, predicted.
  static WPADAMW_HOST_DEVICE Row<Step<double>, Look<double>> scalars(const Hyper& h, int64_t count,
                                                                     int64_t ahead, double share) {
    const auto [step, look] = AdamW::scalars({h.lr, h.beta1, h.beta2, h.eps, h.weight_decay, 0.0},
                                             count, ahead, share);
    return {{step.one_minus_beta1, step.beta2, step.one_minus_beta2, h.weight_decay,
             step.step_size},
            {look.inv_sqrt_bc2, look.eps, look.predict_size}};
  }

  // g = g + w*weight_decay
  template <typename real_t, typename step_t>
  static WPADAMW_HOST_DEVICE real_t with_decay(real_t grad, real_t weight, const step_t& step) {
    return grad + weight * step.weight_decay;
  }

  // w = w - u*step_size
  template <typename real_t, typename step_t>
  static WPADAMW_HOST_DEVICE real_t move(real_t weight, real_t direction, const step_t& step) {
    return weight - direction * step.step_size;
  }

  // p = w - u*predict_size
  template <typename real_t, typename look_t>
  static WPADAMW_HOST_DEVICE real_t predict_along(real_t weight, real_t direction,
                                                  const look_t& look) {
    return weight - direction * look.predict_size;
  }

  // w = p + u*predict_size
  template <typename real_t, typename look_t>
  static WPADAMW_HOST_DEVICE real_t recover_along(real_t predicted, real_t direction,
                                                  const look_t& look) {
    return predicted + direction * look.predict_size;
  }
};

struct Rule : adamw::WithMoments<Formulas, 2> {
  static constexpr Names<2> kStateNames = {"exp_avg", "exp_avg_sq"};
};

}  // namespace wpadamw::adam
