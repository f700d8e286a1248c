"""AdaBelief (Zhuang et al. 2020, arXiv 2010.07468, Algorithm 2), also rectified as RAdam."""

from __future__ import annotations

import triton
import triton.language as tl
from wpadamw.triton_kernels.exact import divide, power, sqrt
from wpadamw.triton_kernels.rules import adamw


@triton.jit
def scalars(hyper, count, ahead, share):
    """The scalars of update ``k = count + ahead`` and of a share of it, predicted."""
    (
        lr,
        beta1,
        beta2,
        state_eps,
        root_eps,
        outer_eps,
        rectified_eps,
        coupled_decay,
        lr_decay,
        fixed_decay,
        predicts_decay,
        rectify,
        degenerate,
    ) = hyper
    k = count + ahead
    beta2_k = power(beta2, k)
    bias_correction2 = 1.0 - beta2_k
    is_plain, is_rectified, is_along_m, factor = rectification(
        beta2, rectify, degenerate, k, beta2_k
    )
    size = lr * factor / (1.0 - power(beta1, k))
    decay = lr * lr_decay + fixed_decay
    step = (
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        state_eps,
        coupled_decay,
        1.0 - decay,
        size,
    )
    look = (
        (1.0 - is_along_m) * root_eps * bias_correction2,
        is_plain / sqrt(bias_correction2) + is_rectified,
        is_plain * outer_eps + is_rectified * rectified_eps + is_along_m,
        1.0 - share * predicts_decay * decay,
        share * power(beta1, ahead) * size,
    )
    return step, look


@triton.jit
def rectification(beta2, rectify, degenerate, k, beta2_k):
    """Whether update ``k`` is plain, rectified or along m, 1 or 0 each, and a factor of its size.

    By how many gradients are in the average (Liu et al. 2019, arXiv 1908.03265, Algorithm 2).
    """
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * beta2_k * k.to(tl.float64) / (1.0 - beta2_k)
    # Factors, not cases: the same operations as of numbers.
    is_rectified = rectify * (length >= 5.0).to(tl.float64)
    is_along_m, is_plain = rectify - is_rectified, 1.0 - rectify
    n = length * is_rectified + 5.0 * (1.0 - is_rectified)
    n_max = longest * is_rectified + 5.0 * (1.0 - is_rectified)
    rectified_size = sqrt(
        (1.0 - beta2_k) * (n - 4.0) / (n_max - 4.0) * (n - 2.0) / n * n_max / (n_max - 2.0)
    )
    size = is_plain + is_rectified * rectified_size + is_along_m * degenerate
    return is_plain, is_rectified, is_along_m, size


@triton.jit
def step(weight, state, grad, step, look):
    """``g = g + w*weight_decay``, ``w = w*decay - u*step_size``."""
    state = moments(state, with_decay(grad, weight, step), step)
    return move(weight, state, step, look), state


@triton.jit
def predict(weight, state, look):
    """``p = w*predict_decay - u*predict_size``."""
    _root_eps, _root_size, _eps, predict_decay, predict_size = look
    return weight * predict_decay - direction(state, look) * predict_size


@triton.jit
def recover(predicted, state, look):
    """``w = (p + u*predict_size) / predict_decay``."""
    _root_eps, _root_size, _eps, predict_decay, predict_size = look
    return divide(predicted + direction(state, look) * predict_size, predict_decay)


@triton.jit
def with_decay(grad, weight, step):
    """``g = g + w*weight_decay``."""
    _one_minus_beta1, _beta2, _one_minus_beta2, _state_eps, weight_decay, _decay, _step_size = step
    return grad + weight * weight_decay


@triton.jit
def move(weight, state, step, look):
    """The true weight after an update of the state."""
    _one_minus_beta1, _beta2, _one_minus_beta2, _state_eps, _weight_decay, decay, step_size = step
    return weight * decay - direction(state, look) * step_size


@triton.jit
def moments(state, grad, step):
    """``m = m + (g - m)*(1-beta1)``, ``r = g - m``."""
    exp_avg, exp_avg_var = state
    exp_avg = mean(exp_avg, grad, step)
    return exp_avg, moved_square(exp_avg_var, grad - exp_avg, step)


@triton.jit
def mean(exp_avg, grad, step):
    """``m + (g - m)*(1-beta1)``."""
    one_minus_beta1, _beta2, _one_minus_beta2, _state_eps, _weight_decay, _decay, _step_size = step
    return adamw.mean(exp_avg, grad, one_minus_beta1)


@triton.jit
def moved_square(square, residual, step):
    """``s = s*beta2 + (r*r)*(1-beta2) + eps``."""
    _one_minus_beta1, beta2, one_minus_beta2, state_eps, _weight_decay, _decay, _step_size = step
    return square * beta2 + (residual * residual) * one_minus_beta2 + state_eps


@triton.jit
def direction(state, look):
    """``u = m / (sqrt(s + root_eps)*root_size + eps)``."""
    root_eps, root_size, eps, _predict_decay, _predict_size = look
    return divide(state[0], sqrt(state[-1] + root_eps) * root_size + eps)
