"""Adam (Kingma & Ba 2015, arXiv 1412.6980, Algorithm 1) with the decay in the gradient."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401 -- the interpreter looks for it
from wpadamw.triton_kernels.rules import adamw


@triton.jit
def scalars(hyper, count, ahead, share):
    """The scalars of update ``k = count + ahead`` and of a share of it, predicted."""
    lr, beta1, beta2, eps, weight_decay = hyper
    step, look = adamw.scalars((lr, beta1, beta2, eps, weight_decay, 0.0), count, ahead, share)
    return (step[0], step[1], step[2], weight_decay, step[4]), (look[0], look[1], look[3])


@triton.jit
def step(weight, state, grad, step, look):
    """``g = g + w*weight_decay``, ``w = w - u*step_size``."""
    state = moments(state, with_decay(grad, weight, step), step)
    return move(weight, state, step, look), state


@triton.jit
def predict(weight, state, look):
    """``p = w - u*predict_size``."""
    _inv_sqrt_bc2, _eps, predict_size = look
    return weight - direction(state, look) * predict_size


@triton.jit
def recover(predicted, state, look):
    """``w = p + u*predict_size``."""
    _inv_sqrt_bc2, _eps, predict_size = look
    return predicted + direction(state, look) * predict_size


@triton.jit
def with_decay(grad, weight, step):
    """``g = g + w*weight_decay``."""
    _one_minus_beta1, _beta2, _one_minus_beta2, weight_decay, _step_size = step
    return grad + weight * weight_decay


@triton.jit
def move(weight, state, step, look):
    """The true weight after an update of the state."""
    _one_minus_beta1, _beta2, _one_minus_beta2, _weight_decay, step_size = step
    return weight - direction(state, look) * step_size


@triton.jit
def moments(state, grad, step):
    """The moments after a gradient."""
    exp_avg, exp_avg_sq = state
    one_minus_beta1, beta2, one_minus_beta2, _weight_decay, _step_size = step
    return adamw.move_moments(exp_avg, exp_avg_sq, grad, one_minus_beta1, beta2, one_minus_beta2)


@triton.jit
def direction(state, look):
    """The direction of updates and predictions."""
    inv_sqrt_bc2, eps, _predict_size = look
    return adamw.over_root(state[0], state[-1], inv_sqrt_bc2, eps)
