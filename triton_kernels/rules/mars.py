"""MARS-AdamW (Yuan et al. 2024, arXiv 2411.10438), approximate: with the last batch's gradient."""

from __future__ import annotations

import triton
import triton.language as tl
from wpadamw.triton_kernels.exact import sqrt
from wpadamw.triton_kernels.rules import adamw

predict, recover = adamw.predict, adamw.recover


@triton.jit
def scalars(hyper, count, ahead, share):
    """Those of AdamW, and of the correction; nothing is clipped."""
    lr, beta1, beta2, eps, weight_decay, predicted_decay, gamma = hyper
    step, look = adamw.scalars(
        (lr, beta1, beta2, eps, weight_decay, predicted_decay), count, ahead, share
    )
    correction = gamma * beta1 / (1.0 - beta1)
    return (step[0], step[1], step[2], step[3], step[4], correction, 1.0), look


@triton.jit
def with_sums(hyper, step, look, sums):
    """``clip_factor = 1 / max(1, sqrt(sum))``."""
    norm = sqrt(sums[0])
    clip_factor = 1.0 / tl.where(norm > 1.0, norm, 1.0)
    return (step[0], step[1], step[2], step[3], step[4], step[5], clip_factor), look


@triton.jit
def step(weight, state, grad, step, look):
    """That of AdamW with the corrected gradient; the gradient itself is kept."""
    exp_avg, last_grad, exp_avg_sq = state
    clipped = corrected(grad, last_grad, step) * step[6]
    of_adamw = step[0], step[1], step[2], step[3], step[4]
    weight, moments = adamw.step(weight, (exp_avg, exp_avg_sq), clipped, of_adamw, look)
    return weight, (moments[0], grad, moments[1])


@triton.jit
def terms(weight, state, grad, step, look):
    """``c*c``."""
    of_grad = corrected(grad, state[1], step)
    return (of_grad * of_grad,)


@triton.jit
def corrected(grad, last_grad, step):
    """``c = (g - last_g)*correction + g``."""
    return (grad - last_grad) * step[5] + grad
