"""VRAdam (arXiv 2505.13196): the learning rate falls where the momentum is large."""

from __future__ import annotations

import triton
import triton.language as tl
from wpadamw.triton_kernels.rules import adamw

step, predict, recover = adamw.step, adamw.predict, adamw.recover


@triton.jit
def scalars(hyper, count, ahead, share):
    """Those of AdamW with the highest learning rate."""
    lr, beta1, beta2, eps, weight_decay, predicted_decay, _beta3, _lr_cutoff = hyper
    return adamw.scalars(
        (lr, beta1, beta2, eps, weight_decay, predicted_decay), count, ahead, share
    )


@triton.jit
def with_sums(hyper, step, look, sums):
    """Every lr times ``1 / (1 + min(beta3*sum, lr_cutoff))``."""
    _lr, _beta1, _beta2, _eps, _weight_decay, _predicted_decay, beta3, lr_cutoff = hyper
    reduction = beta3 * sums[0]
    factor = 1.0 / (1.0 + tl.where(reduction > lr_cutoff, lr_cutoff, reduction))
    one_minus_beta1, beta2, one_minus_beta2, decay, step_size = step
    inv_sqrt_bc2, eps, predict_decay, predict_size = look
    decay = 1.0 - (1.0 - decay) * factor
    predict_decay = 1.0 - (1.0 - predict_decay) * factor
    step = one_minus_beta1, beta2, one_minus_beta2, decay, step_size * factor
    return step, (inv_sqrt_bc2, eps, predict_decay, predict_size * factor)


@triton.jit
def terms(weight, state, grad, step, look):
    """``m*m``, of the new m."""
    one_minus_beta1, _beta2, _one_minus_beta2, _decay, _step_size = step
    exp_avg = adamw.mean(state[0], grad, one_minus_beta1)
    return (exp_avg * exp_avg,)
