// The scalars of a step and of a prediction, computed from hyper-parameters and a count in float64,
// as wpadamw/scalars.py computes them, for counts and learning rates that live on the device. The
// last bits of a power may differ from the host's; rounded to float32 the scalars are the same.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"
#include "scalars.h"

namespace wpadamw {

// wpadamw.scalars.Prediction.
struct Prediction {
  double made;
  double lr;
  double beta1;
  double beta2;
  double eps;
  double weight_decay;  // 0 where the prediction leaves the decay out
  double prediction_steps;
};

struct StepOptions {
  Prediction prediction;
  double weight_decay;
  double grad_factor;
};

// base^exponent by repeated squaring.
WPADAMW_HOST_DEVICE double power(double base, int64_t exponent) {
  double result = 1.0;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

// Of update number `count` and of the prediction from it.
WPADAMW_HOST_DEVICE Scalars<double> step_scalars(const Prediction& p, double weight_decay,
                                                 int64_t count, double grad_factor) {
  const double bias_correction1 = 1.0 - power(p.beta1, count);
  return {grad_factor,
          1.0 - p.beta1,
          p.beta2,
          1.0 - p.beta2,
          1.0 / std::sqrt(1.0 - power(p.beta2, count)),
          p.eps,
          1.0 - p.lr * weight_decay,
          p.lr / bias_correction1,
          1.0 - p.prediction_steps * p.lr * p.weight_decay,
          p.prediction_steps * p.lr / bias_correction1};
}

// Whether the parameter holds its true weights all the same: before its first update, or because
// they came from outside.
WPADAMW_HOST_DEVICE bool moves_nothing(const Prediction& p, int64_t count) {
  return count == 0 || (p.lr == 0.0 && p.beta1 == 0.0 && p.beta2 == 0.0 && p.eps == 0.0 &&
                        p.weight_decay == 0.0 && p.prediction_steps == 0.0);
}

// The scalars that re-create a recorded prediction after `count` updates.
WPADAMW_HOST_DEVICE Scalars<double> prediction_scalars(const Prediction& p, int64_t count) {
  if (moves_nothing(p, count)) return {1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0};
  return step_scalars(p, 0.0, count, 1.0);
}

}  // namespace wpadamw
