// AdamW (Loshchilov & Hutter 2019). Values in, values out: no pointer, no loop, no dtype.
#pragma once

#include <cmath>

#include "../rule.h"

namespace wpadamw::adamw {

// A rule of two moments with these formulas; a third state is the running maximum of the second one
// and takes its place (AMSGrad).
template <typename Formulas, int num_states>
struct WithMoments : Formulas {
  static constexpr int kNumStates = num_states;
  static constexpr int kNumTerms = 0;
  enum { kFirst, kSecond, kLargest };

  template <typename real_t>
  using State = Values<real_t, kNumStates>;
  template <typename real_t>
  using Step = typename Formulas::template Step<real_t>;
  template <typename real_t>
  using Look = typename Formulas::template Look<real_t>;

  template <typename real_t>
  static WPADAMW_HOST_DEVICE void step(real_t& weight, State<real_t>& state, real_t grad,
                                       const Step<real_t>& step, const Look<real_t>& look) {
    grad = Formulas::with_decay(grad, weight, step);
    Formulas::move_moments(state.at[kFirst], state.at[kSecond], grad, step);
    if constexpr (num_states > kLargest) {
      state.at[kLargest] = maximum(state.at[kLargest], state.at[kSecond]);
    }
    const real_t mean = Formulas::mean_of_step(state.at[kFirst], grad, step);
    const real_t direction = Formulas::direction(mean, state.at[num_states - 1], look);
    weight = Formulas::move(weight, direction, step);
  }

  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t predict(real_t weight, const State<real_t>& state,
                                            const Look<real_t>& look) {
    return Formulas::predict_along(weight, direction_of(state, look), look);
  }

  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t recover(real_t predicted, const State<real_t>& state,
                                            const Look<real_t>& look) {
    return Formulas::recover_along(predicted, direction_of(state, look), look);
  }

  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t direction_of(const State<real_t>& state,
                                                 const Look<real_t>& look) {
    return Formulas::direction(state.at[kFirst], state.at[num_states - 1], look);
  }
};

struct Formulas {
  struct Hyper {
    double lr;
    double beta1;
    double beta2;
    double eps;
    double weight_decay;
    double predicted_decay;  // weight_decay, or 0 where predictions leave the decay out
  };
  static constexpr Names<6> kHyperNames = {"lr",  "beta1",        "beta2",
                                           "eps", "weight_decay", "predicted_decay"};

  // What an update needs.
  template <typename real_t>
  struct Step {
    real_t one_minus_beta1;
    real_t beta2;
    real_t one_minus_beta2;
    real_t decay;      // 1 - lr*weight_decay
    real_t step_size;  // lr / (1 - beta1^k)
  };
  static constexpr Names<5> kStepNames = {"one_minus_beta1", "beta2", "one_minus_beta2", "decay",
                                          "step_size"};

  // What the direction and predictions along it need.
  template <typename real_t>
  struct Look {
    real_t inv_sqrt_bc2;  // 1 / sqrt(1 - beta2^k)
    real_t eps;
    real_t predict_decay;  // 1 - share*lr*predicted_decay
    real_t predict_size;   // share*lr*beta1^ahead / (1 - beta1^k)
  };
  static constexpr Names<4> kLookNames = {"inv_sqrt_bc2", "eps", "predict_decay", "predict_size"};

  // Of update k = count + ahead and of a share of it, predicted.
  static WPADAMW_HOST_DEVICE Row<Step<double>, Look<double>> scalars(const Hyper& h, int64_t count,
                                                                     int64_t ahead, double share) {
    const double bias_correction1 = 1.0 - power(h.beta1, count + ahead);
    return {{1.0 - h.beta1, h.beta2, 1.0 - h.beta2, 1.0 - h.lr * h.weight_decay,
             h.lr / bias_correction1},
            {1.0 / std::sqrt(1.0 - power(h.beta2, count + ahead)), h.eps,
             1.0 - share * h.lr * h.predicted_decay,
             share * h.lr * power(h.beta1, ahead) / bias_correction1}};
  }

  // The decay is not in the gradient.
  template <typename real_t, typename step_t>
  static WPADAMW_HOST_DEVICE real_t with_decay(real_t grad, real_t, const step_t&) {
    return grad;
  }

  // m = m + (g - m)*(1-beta1), v = v*beta2 + (g*g)*(1-beta2)
  template <typename real_t, typename step_t>
  static WPADAMW_HOST_DEVICE void move_moments(real_t& exp_avg, real_t& exp_avg_sq, real_t grad,
                                               const step_t& step) {
    exp_avg = mean(exp_avg, grad, step);
    exp_avg_sq = exp_avg_sq * step.beta2 + (grad * grad) * step.one_minus_beta2;
  }

  // m = m + (g - m)*(1-beta1)
  template <typename real_t, typename step_t>
  static WPADAMW_HOST_DEVICE real_t mean(real_t exp_avg, real_t grad, const step_t& step) {
    return exp_avg + (grad - exp_avg) * step.one_minus_beta1;
  }

  // What an update moves along: m, as predictions do.
  template <typename real_t, typename step_t>
  static WPADAMW_HOST_DEVICE real_t mean_of_step(real_t exp_avg, real_t, const step_t&) {
    return exp_avg;
  }

  // u = m / (sqrt(v)*inv_sqrt_bc2 + eps)
  template <typename real_t, typename look_t>
  static WPADAMW_HOST_DEVICE real_t direction(real_t exp_avg, real_t exp_avg_sq,
                                              const look_t& look) {
    return exp_avg / (std::sqrt(exp_avg_sq) * look.inv_sqrt_bc2 + look.eps);
  }

  // w = w*decay - u*step_size (Loshchilov & Hutter 2019, Algorithm 2).
  template <typename real_t, typename step_t>
  static WPADAMW_HOST_DEVICE real_t move(real_t weight, real_t direction, const step_t& step) {
    return weight * step.decay - direction * step.step_size;
  }

  // p = w*predict_decay - u*predict_size (docs/algorithm.md, equation 1).
  template <typename real_t, typename look_t>
  static WPADAMW_HOST_DEVICE real_t predict_along(real_t weight, real_t direction,
                                                  const look_t& look) {
    return weight * look.predict_decay - direction * look.predict_size;
  }

  // The prediction solved for w.
  template <typename real_t, typename look_t>
  static WPADAMW_HOST_DEVICE real_t recover_along(real_t predicted, real_t direction,
                                                  const look_t& look) {
    return (predicted + direction * look.predict_size) / look.predict_decay;
  }
};

struct Rule : WithMoments<Formulas, 2> {
  static constexpr Names<2> kStateNames = {"exp_avg", "exp_avg_sq"};
};

}  // namespace wpadamw::adamw
