"""AdaPlus (Guan 2023, arXiv 2309.01966, Algorithm 1)."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401 -- the interpreter looks for it
from wpadamw.triton_kernels.rules import adabelief

scalars, predict, recover = adabelief.scalars, adabelief.predict, adabelief.recover


@triton.jit
def step(weight, state, grad, step, look):
    """``n = m + (g - m)*(1-beta1)``; the update takes n, the prediction m."""
    grad = adabelief.with_decay(grad, weight, step)
    exp_avg, exp_avg_sq = adabelief.moments(state, grad, step)
    mix = adabelief.mean(exp_avg, grad, step)
    return adabelief.move(weight, (mix, exp_avg_sq), step, look), (exp_avg, exp_avg_sq)
