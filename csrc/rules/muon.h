// Muon (Jordan et al. 2024): what stands in the place of the gradient is the finished update.
#pragma once

#include "../rule.h"

namespace wpadamw::muon {

struct Rule {
  static constexpr Names<2> kStateNames = {"momentum_buffer", "direction"};
  static constexpr int kNumStates = 2;
  static constexpr int kNumTerms = 0;
  enum { kMomentumBuffer, kDirection };

  template <typename real_t>
  using State = Values<real_t, kNumStates>;

  struct Hyper {
    double lr;
    double weight_decay;
    double predicted_decay;  // weight_decay, or 0 where predictions leave the decay out
  };
  static constexpr Names<3> kHyperNames = {"lr", "weight_decay", "predicted_decay"};

  // What an update needs.
  template <typename real_t>
  struct Step {
    real_t decay;      // 1 - lr*weight_decay
    real_t step_size;  // lr
  };
  static constexpr Names<2> kStepNames = {"decay", "step_size"};

  // What predictions need.
  template <typename real_t>
  struct Look {
    real_t predict_decay;  // 1 - share*lr*predicted_decay
    real_t predict_size;   // share*lr
  };
  static constexpr Names<2> kLookNames = {"predict_decay", "predict_size"};

  // Of an update and of a share of a later one, which is as large.
  static WPADAMW_HOST_DEVICE Row<Step<double>, Look<double>> scalars(const Hyper& h, int64_t,
                                                                     int64_t, double share) {
    return {{1.0 - h.lr * h.weight_decay, h.lr},
            {1.0 - share * h.lr * h.predicted_decay, share * h.lr}};
  }

  // w = w*decay - u*step_size
  template <typename real_t>
  static WPADAMW_HOST_DEVICE void step(real_t& weight, State<real_t>& state, real_t grad,
                                       const Step<real_t>& step, const Look<real_t>&) {
    state.at[kDirection] = grad;
    weight = weight * step.decay - grad * step.step_size;
  }

  // p = w*predict_decay - u*predict_size
  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t predict(real_t weight, const State<real_t>& state,
                                            const Look<real_t>& look) {
    return weight * look.predict_decay - state.at[kDirection] * look.predict_size;
  }

  // w = (p + u*predict_size) / predict_decay
  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t recover(real_t predicted, const State<real_t>& state,
                                            const Look<real_t>& look) {
    return (predicted + state.at[kDirection] * look.predict_size) / look.predict_decay;
  }
};

}  // namespace wpadamw::muon
