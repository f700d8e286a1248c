// AdaBelief (Zhuang et al. 2020, Algorithm 2), also rectified as RAdam (Liu et al. 2019).
#pragma once

#include "adamw.h"

namespace wpadamw::adabelief {

struct Formulas : adamw::Formulas {
  struct Hyper {
    double lr;
    double beta1;
    double beta2;
    double state_eps;       // eps where it is added: to the state,
    double root_eps;        // under the root,
    double outer_eps;       // to the root,
    double rectified_eps;   // to the root of a rectified update
    double coupled_decay;   // weight_decay where it is added to gradients,
    double lr_decay;        // where it shrinks weights by its product with lr,
    double fixed_decay;     // or by itself; 0 where it does not
    double predicts_decay;  // 1 or 0
    double rectify;         // 1 or 0
    double degenerate;      // 1 where updates that cannot be rectified go along m, 0 for none
  };
  static constexpr Names<13> kHyperNames = {
      "lr",          "beta1",          "beta2",         "state_eps",     "root_eps",
      "outer_eps",   "rectified_eps",  "coupled_decay", "lr_decay",
      "fixed_decay", "predicts_decay", "rectify",       "degenerate"};

  // What an update needs.
  template <typename real_t>
  struct Step {
    real_t one_minus_beta1;
    real_t beta2;
    real_t one_minus_beta2;
    real_t state_eps;
    real_t weight_decay;
    real_t decay;      // 1 - lr*weight_decay, or 1 - weight_decay
    real_t step_size;  // lr / (1 - beta1^k), rectified
  };
  static constexpr Names<7> kStepNames = {"one_minus_beta1", "beta2",        "one_minus_beta2",
                                          "state_eps",       "weight_decay", "decay",
                                          "step_size"};

  // What the direction and predictions along it need.
  template <typename real_t>
  struct Look {
    real_t root_eps;       // eps*(1 - beta2^k), or 0
    real_t root_size;      // 1 / sqrt(1 - beta2^k); 1 rectified, 0 along m
    real_t eps;            // 1 along m
    real_t predict_decay;  // 1 - share*lr*weight_decay, or 1 - share*weight_decay, or 1
    real_t predict_size;   // share*lr*beta1^ahead / (1 - beta1^k), rectified
  };
  static constexpr Names<5> kLookNames = {"root_eps", "root_size", "eps", "predict_decay",
                                          "predict_size"};

  // Of update k = count + ahead and of a share of it, predicted.
  static WPADAMW_HOST_DEVICE Row<Step<double>, Look<double>> scalars(const Hyper& h, int64_t count,
                                                                     int64_t ahead, double share) {
    const int64_t k = count + ahead;
    const double beta2_k = power(h.beta2, k);
    const double bias_correction2 = 1.0 - beta2_k;
    const auto [is_plain, is_rectified, is_along_m, factor] = rectification(h, k, beta2_k);
    const double size = h.lr * factor / (1.0 - power(h.beta1, k));
    const double decay = h.lr * h.lr_decay + h.fixed_decay;
    return {{1.0 - h.beta1, h.beta2, 1.0 - h.beta2, h.state_eps, h.coupled_decay, 1.0 - decay,
             size},
            {(1.0 - is_along_m) * h.root_eps * bias_correction2,
             is_plain / std::sqrt(bias_correction2) + is_rectified,
             is_plain * h.outer_eps + is_rectified * h.rectified_eps + is_along_m,
             1.0 - share * h.predicts_decay * decay, share * power(h.beta1, ahead) * size}};
  }

  // Whether an update is plain, rectified or along m, 1 or 0 each, and a factor of its size.
  struct Rectification {
    double is_plain;
    double is_rectified;
    double is_along_m;
    double size;
  };

  // By how many gradients are in the average (Liu et al. 2019, Algorithm 2). Factors, not cases:
  // the same operations as of tensors.
  static WPADAMW_HOST_DEVICE Rectification rectification(const Hyper& h, int64_t k,
                                                         double beta2_k) {
    const double longest = 2.0 / (1.0 - h.beta2) - 1.0;
    const double length = longest - 2.0 * beta2_k * double(k) / (1.0 - beta2_k);
    const double is_rectified = h.rectify * double(length >= 5.0);
    const double is_along_m = h.rectify - is_rectified, is_plain = 1.0 - h.rectify;
    const double n = length * is_rectified + 5.0 * (1.0 - is_rectified);
    const double n_max = longest * is_rectified + 5.0 * (1.0 - is_rectified);
    const double rectified_size = std::sqrt((1.0 - beta2_k) * (n - 4.0) / (n_max - 4.0) *
                                            (n - 2.0) / n * n_max / (n_max - 2.0));
    return {is_plain, is_rectified, is_along_m,
            is_plain + is_rectified * rectified_size + is_along_m * h.degenerate};
  }

  // g = g + w*weight_decay
  template <typename real_t, typename step_t>
  static WPADAMW_HOST_DEVICE real_t with_decay(real_t grad, real_t weight, const step_t& step) {
    return grad + weight * step.weight_decay;
  }

  // m = m + (g - m)*(1-beta1), r = g - m, s = s*beta2 + (r*r)*(1-beta2) + eps
  template <typename real_t, typename step_t>
  static WPADAMW_HOST_DEVICE void move_moments(real_t& exp_avg, real_t& exp_avg_var, real_t grad,
                                               const step_t& step) {
    exp_avg = mean(exp_avg, grad, step);
    exp_avg_var = moved_square(exp_avg_var, grad - exp_avg, step);
  }

  // s = s*beta2 + (r*r)*(1-beta2) + eps
  template <typename real_t, typename step_t>
  static WPADAMW_HOST_DEVICE real_t moved_square(real_t square, real_t residual,
                                                 const step_t& step) {
    return square * step.beta2 + (residual * residual) * step.one_minus_beta2 + step.state_eps;
  }

  // u = m / (sqrt(s + root_eps)*root_size + eps)
  template <typename real_t, typename look_t>
  static WPADAMW_HOST_DEVICE real_t direction(real_t exp_avg, real_t exp_avg_var,
                                              const look_t& look) {
    return exp_avg / (std::sqrt(exp_avg_var + look.root_eps) * look.root_size + look.eps);
  }
};

struct Rule : adamw::WithMoments<Formulas, 2> {
  static constexpr Names<2> kStateNames = {"exp_avg", "exp_avg_var"};
};

}  // namespace wpadamw::adabelief
