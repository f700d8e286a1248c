"""AdaM3 (Wang et al. 2021, arXiv 2106.11514, Algorithm 1)."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401 -- the interpreter looks for it
from wpadamw.triton_kernels.rules import adabelief

scalars, predict, recover = adabelief.scalars, adabelief.predict, adabelief.recover


@triton.jit
def step(weight, state, grad, step, look):
    """``g = g + w*weight_decay``, ``w = w*decay - u*step_size``."""
    state = moments(state, adabelief.with_decay(grad, weight, step), step)
    return adabelief.move(weight, state, step, look), state


@triton.jit
def moments(state, grad, step):
    """``m = m + (g - m)*(1-beta1)``, ``r = m``."""
    exp_avg, exp_avg_var = state
    exp_avg = adabelief.mean(exp_avg, grad, step)
    return exp_avg, adabelief.moved_square(exp_avg_var, exp_avg, step)
