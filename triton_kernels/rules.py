"""The update rules, element by element: the functions of ``csrc/rules`` under the same names.

Values in, values out: no pointer, no mask. One rounding per operation, in the order of
``wpadamw/rules.py``; kernels are compiled without contraction to FMA.
"""

from __future__ import annotations

import triton
import triton.language as tl
from wpadamw.triton_kernels.exact import divide, sqrt


@triton.jit
def exp_avg(exp_avg, grad, one_minus_beta1):
    """``m = m + (g - m)*(1-beta1)``."""
    return exp_avg + (grad - exp_avg) * one_minus_beta1


@triton.jit
def exp_avg_sq(exp_avg_sq, grad, beta2, one_minus_beta2):
    """``v = v*beta2 + (g*g)*(1-beta2)``."""
    return exp_avg_sq * beta2 + (grad * grad) * one_minus_beta2


@triton.jit
def maximum(a, b):
    """The larger one; a NaN on either side wins, as in torch.maximum."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def adam_direction(exp_avg, exp_avg_sq, inv_sqrt_bc2, eps):
    """``u = m / (sqrt(v)*inv_sqrt_bc2 + eps)``."""
    return divide(exp_avg, sqrt(exp_avg_sq) * inv_sqrt_bc2 + eps)


@triton.jit
def step_weight(weight, direction, decay, step_size):
    """``w = w*decay - u*step_size`` (Loshchilov & Hutter 2019, Algorithm 2)."""
    return weight * decay - direction * step_size


@triton.jit
def predict_weight(weight, direction, predict_decay, predict_size):
    """``p = w*predict_decay - u*predict_size`` (docs/algorithm.md, equation 1)."""
    return weight * predict_decay - direction * predict_size


@triton.jit
def recover_weight(predicted, direction, predict_decay, predict_size):
    """``w = (p + u*predict_size) / predict_decay``: the prediction solved for w."""
    return divide(predicted + direction * predict_size, predict_decay)
