"""AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, Algorithm 2)."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401 -- the interpreter looks for it
from wpadamw.triton_kernels.exact import divide, power, sqrt


@triton.jit
def scalars(hyper, count, ahead, share):
    """The scalars of update ``k = count + ahead`` and of a share of it, predicted."""
    lr, beta1, beta2, eps, weight_decay, predicted_decay = hyper
    bias_correction1 = 1.0 - power(beta1, count + ahead)
    step = 1.0 - beta1, beta2, 1.0 - beta2, 1.0 - lr * weight_decay, lr / bias_correction1
    look = (
        1.0 / sqrt(1.0 - power(beta2, count + ahead)),
        eps,
        1.0 - share * lr * predicted_decay,
        share * lr * power(beta1, ahead) / bias_correction1,
    )
    return step, look


@triton.jit
def step(weight, state, grad, step, look):
    """``w = w*decay - u*step_size``."""
    state = moments(state, grad, step)
    return move(weight, state, step, look), state


@triton.jit
def predict(weight, state, look):
    """``p = w*predict_decay - u*predict_size``."""
    _inv_sqrt_bc2, _eps, predict_decay, predict_size = look
    return weight * predict_decay - direction(state, look) * predict_size


@triton.jit
def recover(predicted, state, look):
    """``w = (p + u*predict_size) / predict_decay``."""
    _inv_sqrt_bc2, _eps, predict_decay, predict_size = look
    return divide(predicted + direction(state, look) * predict_size, predict_decay)


@triton.jit
def move(weight, state, step, look):
    """The true weight after an update of the state."""
    _one_minus_beta1, _beta2, _one_minus_beta2, decay, step_size = step
    return weight * decay - direction(state, look) * step_size


@triton.jit
def moments(state, grad, step):
    """The moments after a gradient."""
    exp_avg, exp_avg_sq = state
    one_minus_beta1, beta2, one_minus_beta2, _decay, _step_size = step
    return move_moments(exp_avg, exp_avg_sq, grad, one_minus_beta1, beta2, one_minus_beta2)


@triton.jit
def direction(state, look):
    """The direction of predictions."""
    inv_sqrt_bc2, eps, _predict_decay, _predict_size = look
    return over_root(state[0], state[-1], inv_sqrt_bc2, eps)


# Formulas of other rules, too.


@triton.jit
def move_moments(exp_avg, exp_avg_sq, grad, one_minus_beta1, beta2, one_minus_beta2):
    """``m = m + (g - m)*(1-beta1)``, ``v = v*beta2 + (g*g)*(1-beta2)``."""
    exp_avg = mean(exp_avg, grad, one_minus_beta1)
    exp_avg_sq = exp_avg_sq * beta2 + (grad * grad) * one_minus_beta2
    return exp_avg, exp_avg_sq


@triton.jit
def mean(exp_avg, grad, one_minus_beta1):
    """``m + (g - m)*(1-beta1)``."""
    return exp_avg + (grad - exp_avg) * one_minus_beta1


@triton.jit
def over_root(exp_avg, exp_avg_sq, inv_sqrt_bc2, eps):
    """``u = m / (sqrt(v)*inv_sqrt_bc2 + eps)``."""
    return divide(exp_avg, sqrt(exp_avg_sq) * inv_sqrt_bc2 + eps)
