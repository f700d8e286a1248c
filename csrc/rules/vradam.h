// VRAdam (arXiv 2505.13196): the learning rate falls where the momentum is large.
#pragma once

#include "adamw.h"

namespace wpadamw::vradam {

struct Formulas : adamw::Formulas {
  using AdamW = adamw::Formulas;
  using Scalars = Row<AdamW::Step<double>, AdamW::Look<double>>;

  struct Hyper {
    double lr;
    double beta1;
    double beta2;
    double eps;
    double weight_decay;
    double predicted_decay;  // weight_decay, or 0 where predictions leave the decay out
    double beta3;
    double lr_cutoff;
  };
  static constexpr Names<8> kHyperNames = {"lr",           "beta1",           "beta2", "eps",
                                           "weight_decay", "predicted_decay", "beta3", "lr_cutoff"};

  // Those of AdamW with the highest learning rate.
  static WPADAMW_HOST_DEVICE Scalars scalars(const Hyper& h, int64_t count, int64_t ahead,
                                             double share) {
    return AdamW::scalars({h.lr, h.beta1, h.beta2, h.eps, h.weight_decay, h.predicted_decay}, count,
                          ahead, share);
  }

  // Every lr times 1 / (1 + min(beta3*sum, lr_cutoff)).
  static WPADAMW_HOST_DEVICE Scalars with_sums(const Hyper& h, Scalars row,
                                               const Values<double, 1>& sums) {
    const double reduction = h.beta3 * sums.at[0];
    const double factor = 1.0 / (1.0 + (reduction > h.lr_cutoff ? h.lr_cutoff : reduction));
    row.step.decay = 1.0 - (1.0 - row.step.decay) * factor;
    row.step.step_size *= factor;
    row.look.predict_decay = 1.0 - (1.0 - row.look.predict_decay) * factor;
    row.look.predict_size *= factor;
    return row;
  }
};

struct Rule : adamw::WithMoments<Formulas, 2> {
  static constexpr Names<2> kStateNames = {"exp_avg", "exp_avg_sq"};
  static constexpr int kNumTerms = 1;

  // m*m, of the new m
  template <typename real_t>
  static WPADAMW_HOST_DEVICE Values<real_t, kNumTerms> terms(real_t, const State<real_t>& state,
                                                             real_t grad, const Step<real_t>& step,
                                                             const Look<real_t>&) {
    const real_t exp_avg = mean(state.at[kFirst], grad, step);
    return {{exp_avg * exp_avg}};
  }
};

}  // namespace wpadamw::vradam
