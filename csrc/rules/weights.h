// How a direction u moves a weight: the same for every rule with decoupled decay.
#pragma once

#include "../host_device.h"
#include "../scalars.h"

namespace wpadamw {

struct DecoupledDecay {
  // w = w*decay - u*step_size (Loshchilov & Hutter 2019, Algorithm 2).
  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t step_weight(real_t weight, real_t direction,
                                                const Scalars<real_t>& s) {
    return weight * s.decay - direction * s.step_size;
  }

  // p = w*predict_decay - u*predict_size (docs/algorithm.md, equation 1).
  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t predict_weight(real_t weight, real_t direction,
                                                   const Scalars<real_t>& s) {
    return weight * s.predict_decay - direction * s.predict_size;
  }

  // The prediction solved for w.
  template <typename real_t>
  static WPADAMW_HOST_DEVICE real_t recover_weight(real_t predicted, real_t direction,
                                                   const Scalars<real_t>& s) {
    return (predicted + direction * s.predict_size) / s.predict_decay;
  }
};

}  // namespace wpadamw
