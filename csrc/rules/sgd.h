// SGD with momentum, as torch.optim.SGD has it (Sutskever et al. 2013 with lr outside).
#pragma once

#include "../rule.h"

namespace wpadamw::sgd {

struct Rule {
  static constexpr Names<1> kStateNames = {"momentum_buffer"};
  static constexpr int kNumStates = 1;
  static constexpr int kNumTerms = 0;
  enum { kMomentumBuffer };

  template <typename real_t>
  using State = Values<real_t, kNumStates>;

  struct Hyper {
    double lr;
    double momentum;
    double dampening;
    double weight_decay;
    double nesterov;  // 1 or 0
  };
  static constexpr Names<5> kHyperNames = {"lr", "momentum", "dampening", "weight_decay",
                                           "nesterov"};

  // What an update needs.
  template <typename real_t>
  struct Step {
    real_t weight_decay;
    real_t momentum;        // 0 in the first update, which takes the gradient as it is
    real_t grad_size;       // 1 - dampening; 1 in the first update and without momentum
    real_t grad_share;      // of the gradient in the direction of the step: 1 for Nesterov, else 0
    real_t momentum_share;  // of the momentum: its factor for Nesterov, else 1
    real_t lr;
  };
  static constexpr Names<6> kStepNames = {"weight_decay", "momentum",       "grad_size",
                                          "grad_share",   "momentum_share", "lr"};

  // What predictions need.
  template <typename real_t>
  struct Look {
    real_t predict_size;  // share*lr*momentum^ahead
  };
  static constexpr Names<1> kLookNames = {"predict_size"};

  // Of update number `count` and of a share of a later one, predicted.
  static WPADAMW_HOST_DEVICE Row<Step<double>, Look<double>> scalars(const Hyper& h, int64_t count,
                                                                     int64_t ahead, double share) {
    const double is_plain = count == 1 || h.momentum == 0.0;
    return {{h.weight_decay, h.momentum * (1.0 - is_plain), 1.0 - h.dampening * (1.0 - is_plain),
             h.nesterov, 1.0 - h.nesterov + h.nesterov * h.momentum, h.lr},
            {share * h.lr * power(h.momentum, ahead)}};
  }

  // g = g + w*decay, m = m*momentum + g*(1-dampening), w = w - (g or m, mixed)*lr
  template <typename real_t>
  static WPADAMW_HOST_DEVICE void step(real_t& weight, State<real_t>& state, real_t grad,
                                       const Step<real_t>& step, const Look<real_t>&) {
    real_t& momentum_buffer = state.at[kMomentumBuffer];
    grad = grad + weight * step.weight_decay;
    momentum_buffer = momentum_buffer * step.momentum + grad * step.grad_size;
    const real_t direction = grad * step.grad_share + momentum_buffer * step.momentum_share;
    weight = weight - direction * step.lr;
  }

  // p = w - m*predict_size
  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t predict(real_t weight, const State<real_t>& state,
                                            const Look<real_t>& look) {
    return weight - state.at[kMomentumBuffer] * look.predict_size;
  }

  // w = p + m*predict_size
  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t recover(real_t predicted, const State<real_t>& state,
                                            const Look<real_t>& look) {
    return predicted + state.at[kMomentumBuffer] * look.predict_size;
  }
};

}  // namespace wpadamw::sgd
