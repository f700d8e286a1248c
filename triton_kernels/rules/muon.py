"""Muon (Jordan et al. 2024): what stands in the place of the gradient is the finished update."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401 -- the interpreter looks for it
from wpadamw.triton_kernels.exact import divide


@triton.jit
def scalars(hyper, count, ahead, share):
    """The scalars of an update and of a share of a later one, which is as large."""
    lr, weight_decay, predicted_decay = hyper
    step = 1.0 - lr * weight_decay, lr
    return step, (1.0 - share * lr * predicted_decay, share * lr)


@triton.jit
def step(weight, state, grad, step, look):
    """``w = w*decay - u*step_size`` along the finished update u."""
    momentum_buffer, _direction = state
    decay, step_size = step
    return weight * decay - grad * step_size, (momentum_buffer, grad)


@triton.jit
def predict(weight, state, look):
    """``p = w*predict_decay - u*predict_size``."""
    _momentum_buffer, direction = state
    predict_decay, predict_size = look
    return weight * predict_decay - direction * predict_size


@triton.jit
def recover(predicted, state, look):
    """``w = (p + u*predict_size) / predict_decay``."""
    _momentum_buffer, direction = state
    predict_decay, predict_size = look
    return divide(predicted + direction * predict_size, predict_decay)
