"""The rule of ``blend.py`` in Triton."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401 -- the interpreter looks for it
from wpadamw.triton_kernels.exact import power


@triton.jit
def scalars(hyper, count, ahead, share):
    lr, beta1 = hyper
    return (1.0 - beta1,), (share * lr * power(beta1, ahead), 1.0)


@triton.jit
def with_sums(hyper, step, look, sums):
    predict_size, _predict_decay = look
    squares, products = sums
    return step, (predict_size / (1.0 + squares), 1.0 / (1.0 + products * products))


@triton.jit
def step(weight, state, grad, step, look):
    state = average(state, grad, step)
    return predict(weight, state, look), state


@triton.jit
def predict(weight, state, look):
    (exp_avg,) = state
    predict_size, predict_decay = look
    return weight * predict_decay - exp_avg * predict_size


@triton.jit
def terms(weight, state, grad, step, look):
    (exp_avg,) = average(state, grad, step)
    return exp_avg * exp_avg, weight * grad


@triton.jit
def average(state, grad, step):
    (exp_avg,) = state
    (one_minus_beta1,) = step
    return (exp_avg + (grad - exp_avg) * one_minus_beta1,)
