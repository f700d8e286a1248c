// What a step or a prediction needs that no element changes. wpadamw/scalars.py computes the fields
// in float64, in this order.
#pragma once

#include "host_device.h"

namespace wpadamw {

template <typename real_t>
struct Scalars {
  real_t grad_factor;      // -1 for maximize, divided by the gradient scale of mixed precision
  real_t one_minus_beta1;  // 1 - beta1
  real_t beta2;
  real_t one_minus_beta2;  // 1 - beta2
  real_t inv_sqrt_bc2;     // 1 / sqrt(1 - beta2^k)
  real_t eps;
  real_t decay;          // 1 - lr*weight_decay
  real_t step_size;      // lr / (1 - beta1^k)
  real_t predict_decay;  // 1 - s*lr*weight_decay
  real_t predict_size;   // s*lr / (1 - beta1^k)
};

constexpr int kNumScalars = 10;
constexpr const char* kScalarNames[kNumScalars] = {
    "grad_factor", "one_minus_beta1", "beta2",     "one_minus_beta2", "inv_sqrt_bc2",
    "eps",         "decay",           "step_size", "predict_decay",   "predict_size"};

// Rounds a row of float64 numbers to the dtype of the state.
template <typename real_t>
WPADAMW_HOST_DEVICE Scalars<real_t> round_scalars(const double* row) {
  return {real_t(row[0]), real_t(row[1]), real_t(row[2]), real_t(row[3]), real_t(row[4]),
          real_t(row[5]), real_t(row[6]), real_t(row[7]), real_t(row[8]), real_t(row[9])};
}

}  // namespace wpadamw
